// From experiment file and mesh to what each rank does, without any other rank.
#include "trainer/parallel_layout.h"

#include <boost/test/unit_test.hpp>
#include <numeric>
#include <set>

#include "base/error.h"
#include "trainer/parallel_groups.h"
#include "trainer/pipeline_costs.h"

using namespace hearth;

namespace {

ExperimentConfig config(int pp, const std::string& schedule, int64_t layers = 8) {
  ExperimentConfig c;
  c.model.vocab_size = 128;
  c.model.hidden_size = 64;
  c.model.intermediate_size = 192;
  c.model.num_hidden_layers = layers;
  c.model.num_attention_heads = 4;
  c.data.seq_length = 64;
  c.training.global_batch_size = 32;
  c.training.micro_batch_size = 2;
  c.parallel.pipeline_model_parallel_size = pp;
  c.parallel.pipeline_schedule = schedule;
  return c;
}

Mesh mesh_of(const ExperimentConfig& c, int ranks) {
  return Mesh::from_config(c.parallel, ranks);
}

bool is_config_error(const Error& e) {
  return e.kind() == ErrorKind::Config;
}

}  // namespace

BOOST_AUTO_TEST_CASE(micro_batches_and_chunks) {
  const auto c = config(2, "zbv");
  const Mesh mesh = mesh_of(c, 8);
  BOOST_TEST(micro_batches_per_step(c, mesh) == 32 / (4 * 2));
  const PipelineSchedule schedule = pipeline_schedule(c, mesh);
  BOOST_TEST(schedule.stages == 2);
  BOOST_TEST(schedule.chunks == 2);  // implied, whatever virtual_pipeline_model_parallel_size says
  BOOST_TEST(schedule.micros == 4);
  BOOST_CHECK_NO_THROW(check_schedule(schedule));
  auto interleaved = config(2, "interleaved");
  interleaved.parallel.virtual_pipeline_model_parallel_size = 4;
  BOOST_TEST(pipeline_schedule(interleaved, mesh_of(interleaved, 2)).chunks == 4);
}

BOOST_AUTO_TEST_CASE(counts_that_a_schedule_refuses) {
  auto c = config(4, "dualpipev");
  c.training.global_batch_size = 8;  // 4 micro-batches, 8 are needed
  BOOST_CHECK_EXCEPTION(pipeline_schedule(c, mesh_of(c, 4)), Error, is_config_error);
}

BOOST_AUTO_TEST_CASE(layers_as_written_or_balanced) {
  auto c = config(4, "1f1b");
  const auto split = [&] { return layers_per_stage(c, pipeline_schedule(c, mesh_of(c, 4))); };
  const auto even = split();
  BOOST_TEST(std::accumulate(even.begin(), even.end(), 0) == 8);
  // A head of two layers' flops: 2 x (4 D^2 + 3 D F + S D) = 2 x 57344 multiply-adds a token.
  c.model.vocab_size = 2 * 57344 / 64;
  BOOST_CHECK((split() == std::vector{2, 2, 3, 1}));  // the odd layer goes to a later stage
  c.parallel.pipeline_model_parallel_layout = {1, 1, 1, 5};
  BOOST_CHECK((split() == std::vector{1, 1, 1, 5}));
  c.parallel.pipeline_model_parallel_layout = {1, 1, 6};
  BOOST_CHECK_EXCEPTION(split(), Error, is_config_error);
}

// Every layer is on one pipeline rank, embedding and head on the virtual stages at the ends.
BOOST_AUTO_TEST_CASE(parts_make_the_model) {
  for (const ScheduleKind kind : schedule_kinds()) {
    auto c = config(2, std::string(config_name(kind)));
    c.model.tie_word_embeddings = true;
    c.parallel.tensor_model_parallel_size = 2;
    if (kind == ScheduleKind::Interleaved) c.parallel.virtual_pipeline_model_parallel_size = 2;
    const Mesh mesh = mesh_of(c, 8);
    const PipelineSchedule schedule = pipeline_schedule(c, mesh);
    std::multiset<int64_t> layers;
    int embeddings = 0, heads = 0;
    for (int rank = 0; rank < 8; ++rank) {
      const ModelPartition p = model_partition(c, mesh, schedule, rank);
      BOOST_TEST(p.tensor_rank == mesh.coordinate(rank, MeshAxis::Tp));
      const bool v_shape = schedule.kind == ScheduleKind::Zbv || schedule.kind == ScheduleKind::DualPipeV;
      BOOST_TEST(p.tied_ends_apart == !v_shape);  // a V brings both ends to rank 0
      if (mesh.coordinate(rank, MeshAxis::Tp) != 0 || mesh.coordinate(rank, MeshAxis::Dp) != 0) continue;
      embeddings += p.has_embedding() ? 1 : 0;
      heads += p.has_head() ? 1 : 0;
      for (const ModelChunk& chunk : p.chunks)
        for (int64_t i = 0; i < chunk.num_layers; ++i) layers.insert(chunk.first_layer + i);
    }
    BOOST_TEST(embeddings == 1);
    BOOST_TEST(heads == 1);
    BOOST_CHECK((layers == std::multiset<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  }
}

// Of one layer by hand: G = 2 (4 D^2 + 3 D F) and A = 2 S D a token, D = 64, F = 192, S = 64; norms are 2 x 2
// D more.
BOOST_AUTO_TEST_CASE(costs_by_hand) {
  auto c = config(4, "1f1b", 4);
  c.recompute.granularity = "none";
  c.parallel.pipeline_model_parallel_layout = {1, 1, 1, 1};
  const auto costs = [&] { return pipeline_costs(c, pipeline_schedule(c, mesh_of(c, 4))).times; };
  const double tokens = 2 * 64, matrices = tokens * 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64),
               attention = tokens * 2 * 64 * 64, head = tokens * 2 * 128 * 64,
               share = 2 * tokens * (64 + 64) / 4;
  // model_flops counts the final norm and a table of one row among the layers: `share` a layer, at most.
  const auto near = [&](double value, double expected) {
    return value >= expected && value <= expected + share;
  };
  auto times = costs();
  BOOST_TEST(times.size() == 4U);
  for (size_t stage = 0; stage < 4; ++stage) {
    BOOST_TEST(near(times[stage].forward, matrices + attention + (stage == 3 ? 3 * head : 0)));
    BOOST_TEST(near(times[stage].backward_input, matrices + 2 * attention));
    BOOST_TEST(near(times[stage].backward_weight, matrices));
  }
  const double before = times[0].backward_input, forward = times[0].forward;
  c.recompute.granularity = "full";
  BOOST_TEST(costs()[0].backward_input == before + forward);
  c.recompute = {.granularity = "selective", .modules = {"core_attn"}};
  BOOST_TEST(costs()[0].backward_input == before + attention);
}

// Each neighbouring pair of ranks is connected in both directions, once; the pairs of a round share no rank,
// so that all of them can be made at the same time.
BOOST_AUTO_TEST_CASE(links_in_rounds) {
  for (const ScheduleKind kind : schedule_kinds())
    for (int stages = 1; stages <= 8; ++stages) {
      const int chunks = kind == ScheduleKind::Interleaved ? 2 : implied_chunks(kind);
      const auto schedule = make_schedule(kind, stages, chunks, 2 * stages);
      std::set<std::pair<int, int>> expected, seen;
      for (int v = 0; v + 1 < schedule.virtual_stages(); ++v) {
        const int a = schedule.place(v).rank, b = schedule.place(v + 1).rank;
        if (a != b) expected.insert({{a, b}, {b, a}});
      }
      const auto rounds = link_rounds(schedule);
      for (const auto& round : rounds) {
        std::set<int> busy;
        for (const auto& pair : round) {
          BOOST_REQUIRE(busy.insert(pair.first).second);
          BOOST_REQUIRE(busy.insert(pair.second).second);
          BOOST_REQUIRE(seen.insert(pair).second);
        }
        BOOST_REQUIRE(!round.empty());
      }
      BOOST_CHECK(seen == expected);
      // A rank has at most two neighbours, four channels; a greedy choice needs at most 2 x 4 - 1 rounds.
      BOOST_TEST(rounds.size() <= 7U);
    }
  BOOST_TEST(link_rounds(make_schedule(ScheduleKind::OneFOneB, 1, 1, 1)).empty());
}
