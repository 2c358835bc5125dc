// The formulas against the bytes that a step sends: every call that the flight recorder sees, under layouts
// that use each axis alone and together. Two runs of one and of two steps differ by one step, whatever
// happens at the start.
#include "trainer/communication_volume.h"

#include <fmt/core.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <map>
#include <set>

#include "../parallel/mpi_fixture.h"
#include "layouts/layout_run.h"
#include "trainer/parallel_layout.h"

using namespace hearth;

namespace {

// Bytes sent by kind of traffic, from the sizes that the recorder keeps: of the whole buffer for an
// all-reduce, of one rank's part for the others.
class Counter : public FlightRecorder::Observer {
 public:
  explicit Counter(std::map<std::string, int64_t> group_sizes) : sizes_(std::move(group_sizes)) {}
  void begin(uint64_t, const FlightRecorder::Call& call) override {
    const std::string group(call.group), site(call.site);
    if (sizes_.count(group) == 0 || site == "step.totals") return;
    int64_t& bytes = bytes_[kind(group, site)];
    const int64_t others = sizes_.at(group) - 1;
    if (call.op == "all_reduce") {
      bytes += 2 * call.size_bytes * others / (others + 1);
    } else if (call.op == "send") {
      bytes += call.size_bytes;
    } else if (call.op == "reduce_scatter" || call.op == "all_gather" || call.op == "all_to_all") {
      bytes += call.size_bytes * others;
    } else if (call.op != "recv") {
      unknown.insert(std::string(call.op));
    }
  }
  void issued(uint64_t) override {}
  void end(uint64_t) override {}
  int64_t sent(const std::string& what) const { return bytes_.count(what) == 0 ? 0 : bytes_.at(what); }
  std::set<std::string> unknown;

 private:
  static std::string kind(const std::string& group, const std::string& site) {
    if (site.rfind("grad.sum.", 0) == 0) return "replicated";
    if (group.rfind("dp", 0) == 0) return site.rfind("grad.", 0) == 0 ? "gradients" : "weights";
    return group;
  }
  std::map<std::string, int64_t> sizes_, bytes_;
};

struct Counted {
  int64_t tensor, pipeline, context, gradients, weights, replicated;
};

Counted one_step(const testing::Layout& layout, const testing::RunOptions& options) {
  Job& job = test::job();
  const ExperimentConfig config = testing::layout_config(layout, options);
  const std::map<std::string, int64_t> sizes{{"tp", layout.tp},
                                             {"pp", 2},
                                             {"cp", layout.cp},
                                             {"dp", layout.dp * layout.cp},
                                             {"dp.shard", layout.dp * layout.cp / layout.instances},
                                             {"dp.replica", layout.instances},
                                             {"kv", local_heads(config.model, layout.tp, 0).replicas},
                                             {"embd", 2}};
  Counted out{};
  for (const int64_t steps : {1, 2}) {
    Counter counter(sizes);
    job.recorder->observe(&counter);
    testing::RunOptions run = options;
    run.steps = steps;
    testing::run_layout(job, layout, run);
    job.recorder->observe(nullptr);
    BOOST_TEST(counter.unknown.empty());
    const int64_t sign = steps == 1 ? -1 : 1;
    out.tensor += sign * counter.sent("tp");
    out.pipeline += sign * counter.sent("pp");
    out.context += sign * counter.sent("cp");
    out.gradients += sign * counter.sent("gradients");
    out.weights += sign * counter.sent("weights");
    out.replicated += sign * counter.sent("replicated");
  }
  return out;
}

// Elements that the buckets of a rank hold, padding included, over those that the formula counts.
double padding(const ExperimentConfig& config, const std::vector<ParameterShard>& shards,
               int64_t data_ranks) {
  const ParameterStore store(
      shards, {.dtype = DType::F32,
               .device = at::kCPU,
               .gradients = WithGradients::No,
               .data_parallel_size = data_ranks,
               .bucket_elements = static_cast<int64_t>(config.parallel.bucket_size_mb * (1 << 18)),
               .weights = DistributedOptimizer::weight_memory(config.parallel.zero_stage),
               .grads = BucketMemory::Resident});
  double elements = 0;
  for (const ParameterShard& shard : shards) elements += static_cast<double>(shard.storage_elements());
  return static_cast<double>(store.plan().arena_count()) / elements;
}

// Neighbouring vectors are summed in one call, the gaps between their aligned starts included: how much that
// can add.
double gaps(const std::vector<ParameterShard>& shards) {
  double most = 1;
  for (const ParameterShard& shard : shards) {
    if (shard.sum == GradientSum::None) continue;
    const int64_t count = shard.storage_elements();
    const int64_t aligned = (count + kBucketAlignment - 1) / kBucketAlignment * kBucketAlignment;
    most = std::max(most, static_cast<double>(aligned) / static_cast<double>(count));
  }
  return most;
}

void check(const testing::Layout& layout, const testing::RunOptions& options) {
  BOOST_TEST_CONTEXT(layout.describe()) {
    const ExperimentConfig config = testing::layout_config(layout, options);
    const Mesh mesh = Mesh::from_config(config.parallel, layout.ranks());
    const PipelineSchedule schedule = pipeline_schedule(config, mesh);
    const int rank = test::job().control->rank();
    const auto shards = parameter_shards(config.model, model_partition(config, mesh, schedule, rank));
    const CommunicationVolume formula = communication_volume(config, mesh, schedule, rank);
    const Counted counted = one_step(layout, options);
    BOOST_TEST(counted.tensor == formula.tensor);
    BOOST_TEST(counted.pipeline == formula.pipeline);
    BOOST_TEST(counted.context == formula.context);
    const auto within = [](int64_t count, int64_t least, double most, const char* what) {
      BOOST_TEST((count >= least && static_cast<double>(count) <= most),
                 what << ": counted " << count << ", expected " << least << " to " << most);
    };
    // Each call's share is rounded down by less than a byte per rank; there are far fewer than 1000 calls.
    const double padded = padding(config, shards, layout.dp * layout.cp / layout.instances), rounding = 1000;
    const auto gradients = static_cast<double>(formula.gradients),
               weights = static_cast<double>(formula.weights);
    // From stage 2 on the formula is an upper bound: it is met where one micro-batch at a time is in flight.
    const int64_t shared = layout.zero_stage >= 2 && layout.pp > 1 ? schedule.micros : 1;
    within(counted.gradients, formula.gradients / shared, gradients * padded + rounding, "gradients");
    within(counted.weights, layout.zero_stage == 3 ? formula.weights / schedule.micros : formula.weights,
           weights * padded + rounding, "weights");
    if (layout.zero_stage == 0)
      within(counted.replicated, formula.replicated - 1000,
             static_cast<double>(formula.replicated) * gaps(shards) + rounding, "replicated");
  }
}

}  // namespace

BOOST_AUTO_TEST_CASE(formulas_equal_what_is_sent) {
  const int ranks = test::job().control->world_size();
  using testing::Layout;
  using testing::Shape;
  std::vector<Layout> layouts;
  if (ranks == 2)
    layouts = {{.tp = 2},
               {.pp = 2},
               {.pp = 2, .schedule = "zbv", .shape = Shape::QkNormAndBias},
               {.cp = 2},
               {.cp = 2, .cp_comm_type = "a2a", .recompute = "core_attn"},
               {.dp = 2},
               {.dp = 2, .zero_stage = 1},
               {.dp = 2, .zero_stage = 2},
               {.dp = 2, .zero_stage = 3},
               {.tp = 2, .recompute = "full"}};
  if (ranks == 4)
    layouts = {{.tp = 2, .pp = 2, .schedule = "interleaved"},
               {.tp = 2, .cp = 2, .zero_stage = 1, .shape = Shape::QkNormAndBias},
               {.pp = 2, .dp = 2, .zero_stage = 2, .schedule = "dualpipev"},
               {.tp = 2, .dp = 2, .zero_stage = 3},
               {.dp = 4, .zero_stage = 1, .instances = 2},
               {.cp = 2, .dp = 2, .zero_stage = 3, .instances = 2},
               {.cp = 4, .recompute = "full"}};
  if (ranks == 8) layouts = {{.tp = 8}, {.tp = 2, .pp = 2, .cp = 2, .schedule = "zb_h1"}};
  for (const Layout& layout : layouts) check(layout, {});
  BOOST_TEST(!layouts.empty());
}

BOOST_AUTO_TEST_CASE(activations_in_bf16) {
  const int ranks = test::job().control->world_size();
  if (ranks != 4) return;
  check({.tp = 2, .dp = 2, .zero_stage = 1}, {.dtype = DType::BF16});
  check({.pp = 2, .cp = 2, .zero_stage = 1}, {.dtype = DType::BF16});
}
