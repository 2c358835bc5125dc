// Frozen weights split over ranks or in NF4: what a rank holds, to the byte, and that the values around a use
// are those of the whole model. Under mpirun.
#include "trainer/model/frozen_weights.h"

#include <ATen/ops/equal.h>

#include <boost/test/unit_test.hpp>

#include "base/error.h"
#include "parallel/single_comm.h"
#include "tests/compare.h"
#include "tests/parallel/mpi_fixture.h"
#include "tests/trainer/random_tensors.h"
#include "tests/trainer/tiny_model.h"

using namespace hearth;
using hearth::testing::compare;
using hearth::testing::RandomTensors;

namespace {

// Slices of two ranks hold whole blocks; a matrix has many, so that what is kept once weighs little.
ModelConfig config() {
  ModelConfig c = hearth::testing::tiny_config();
  c.hidden_size = 256;
  c.intermediate_size = 768;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.attention_bias = true;
  return c;
}

std::vector<ParameterShard> shards_of(int64_t size, int64_t rank) {
  ModelPartition partition = ModelPartition::whole(config());
  partition.tensor_size = size;
  partition.tensor_rank = rank;
  return parameter_shards(config(), partition);
}

RandomTensors source() {
  std::vector<TensorInfo> infos;
  for (const ParameterSpec& spec : parameter_specs(config()))
    infos.push_back({spec.name, DType::F32, spec.shape});
  return RandomTensors(std::move(infos));
}

ParameterStore whole_model() {
  ParameterStore store(shards_of(1, 0), {.dtype = DType::F32, .device = at::kCPU});
  store.load(source());
  return store;
}

int64_t held(FrozenWeights& weights) {
  return weights.parameters().memory().held(MemoryPart::Weights);
}

struct EndOfJob {
  EndOfJob() { test::job(); }
};

}  // namespace

BOOST_GLOBAL_FIXTURE(EndOfJob);

BOOST_AUTO_TEST_CASE(ranks_share_the_weights_and_gather_them_one_unit_ahead) {
  const auto comm = test::world_comm();
  const int64_t ranks = comm->size();
  BOOST_REQUIRE(frozen_form(3, ranks) == FrozenForm::Sharded);
  FrozenWeights weights(shards_of(1, 0), {.form = FrozenForm::Sharded}, *comm);
  weights.load(source());
  ParameterStore& store = weights.parameters();
  const ParameterStore whole = whole_model();
  int64_t split = 0, resident = 0;
  for (size_t b = 0; b < store.plan().buckets.size(); ++b) {
    const int64_t bytes = store.plan().buckets[b].arena.count() * 4;
    (store.weights_on_demand(static_cast<int64_t>(b)) ? split : resident) += bytes;
  }
  BOOST_TEST(resident < split / 100);  // norms and biases
  BOOST_TEST(held(weights) == split / ranks + resident);

  const auto there = [&](int64_t unit) {
    for (const int64_t bucket : store.buckets_of_unit(unit))
      if (!store.has_weights(bucket)) return false;
    return true;
  };
  const auto check = [&](int64_t unit) {
    for (const Parameter& p : store.parameters())
      if (p.shard.unit == unit) BOOST_TEST(at::equal(p.weight, whole.at(p.spec.name).weight), p.spec.name);
  };
  const int64_t head = 1 + config().num_hidden_layers;
  for (int64_t unit = 0; unit <= head; ++unit) {  // forward
    weights.events().before_use(unit, unit == head ? UsePhase::Loss : UsePhase::Forward);
    check(unit);
    BOOST_TEST(there(unit == head ? head - 1 : unit + 1));
    weights.events().after_use(unit, UsePhase::Forward);
    BOOST_TEST(!there(unit));
  }
  for (int64_t unit = head - 1; unit > 0; --unit) {  // backward
    weights.events().before_use(unit, UsePhase::Backward);
    check(unit);
    weights.events().after_use(unit, UsePhase::Backward);
  }
  BOOST_TEST(held(weights) == split / ranks + resident);
  // Fetched ahead for a use that does not come.
  weights.events().expect_use(1);
  BOOST_TEST(held(weights) > split / ranks + resident);
  weights.events().after_use(1, UsePhase::Forward);
  BOOST_TEST(held(weights) == split / ranks + resident);
}

BOOST_AUTO_TEST_CASE(nf4_takes_four_bits_and_an_eighth) {
  const auto alone = make_single_comm("dp");
  FrozenWeights weights(shards_of(1, 0), {.form = FrozenForm::Nf4}, *alone);
  weights.load(source());
  ParameterStore& store = weights.parameters();
  const ParameterStore whole = whole_model();
  int64_t quantized = 0, resident = 0;
  for (const ParameterShard& shard : shards_of(1, 0))
    if (is_quantized(shard)) quantized += shard.numel();
  for (size_t b = 0; b < store.plan().buckets.size(); ++b)
    if (!store.weights_on_demand(static_cast<int64_t>(b)))
      resident += store.plan().buckets[b].arena.count() * 4;
  BOOST_TEST(held(weights) == resident + nf4_bytes(shards_of(1, 0)));
  // 4 + 8 / 64 + 32 / (64 x 256) bits, what the last group of a matrix wastes, and the table of 1 KiB.
  const double bits =
      8.0 * static_cast<double>(held(weights) - resident - 1024) / static_cast<double>(quantized);
  BOOST_TEST(bits >= 4.126);
  BOOST_TEST(bits <= 4.13);

  for (const int64_t unit : {1, 2}) {
    weights.events().before_use(unit, UsePhase::Forward);
    for (const Parameter& p : store.parameters()) {
      if (p.shard.unit != unit) continue;
      const at::Tensor& want = whole.at(p.spec.name).weight;
      if (!is_quantized(p.shard)) {
        BOOST_TEST(at::equal(p.weight, want), p.spec.name);
        continue;
      }
      // Half of the widest gap between levels, of a scale up to the largest weight.
      const double most = want.abs().max().item<double>();
      BOOST_TEST(compare(p.weight, want, 0.16 * most).ok(), p.spec.name);
      BOOST_TEST(!at::equal(p.weight, want), p.spec.name);
    }
    BOOST_TEST(!store.has_weights(store.buckets_of_unit(3 - unit).back()));  // one unit at a time
    weights.events().after_use(unit, UsePhase::Forward);
  }
  BOOST_TEST(held(weights) == resident + nf4_bytes(shards_of(1, 0)));
}

BOOST_AUTO_TEST_CASE(nf4_does_not_depend_on_the_layout) {
  const auto alone = make_single_comm("dp");
  FrozenWeights whole(shards_of(1, 0), {.form = FrozenForm::Nf4}, *alone);
  whole.load(source());
  for (const int64_t rank : {0, 1}) {
    FrozenWeights part(shards_of(2, rank), {.form = FrozenForm::Nf4}, *alone);
    part.load(source());
    for (const int64_t unit : {1, 2}) {
      whole.events().before_use(unit, UsePhase::Forward);
      part.events().before_use(unit, UsePhase::Forward);
      for (const Parameter& p : part.parameters().parameters()) {
        if (p.shard.unit != unit || !is_quantized(p.shard)) continue;
        const Box& box = p.shard.box;
        const at::Tensor want = whole.parameters()
                                    .at(p.spec.name)
                                    .weight.narrow(0, box.offset[0], box.extent[0])
                                    .narrow(1, box.offset[1], box.extent[1]);
        BOOST_TEST(at::equal(p.weight, want), p.spec.name << " of rank " << rank);
      }
      whole.events().after_use(unit, UsePhase::Forward);
      part.events().after_use(unit, UsePhase::Forward);
    }
  }
}

BOOST_AUTO_TEST_CASE(slices_that_cut_blocks_are_refused) {
  ModelConfig narrow = config();
  narrow.intermediate_size = 192;  // 96 columns of down_proj a rank
  ConfigErrors fine, cut;
  check_nf4_slices(narrow, 1, fine);
  BOOST_TEST(fine.empty());
  check_nf4_slices(narrow, 2, cut);
  BOOST_TEST(!cut.empty());
  ModelPartition partition = ModelPartition::whole(narrow);
  partition.tensor_size = 2;
  const auto alone = make_single_comm("dp");
  BOOST_CHECK_THROW(FrozenWeights(parameter_shards(narrow, partition), {.form = FrozenForm::Nf4}, *alone),
                    Error);
}
