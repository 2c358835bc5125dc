// What the executor promises beyond equal numbers (layouts/layout_product_test.cpp): the halves of an
// overlapped action communicate while the other half computes. 4 ranks.
#include "trainer/pipeline/pipeline_executor.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <set>
#include <string>

#include "../../parallel/mpi_fixture.h"
#include "../layouts/layout_run.h"
#include "trainer/parallel_layout.h"

using namespace hearth;

namespace {

// Counts how often calls of the tensor-parallel group change between a forward and a backward pass. The order
// in which calls begin depends on the turns alone.
class Together : public FlightRecorder::Observer {
 public:
  void begin(uint64_t, const FlightRecorder::Call& call) override {
    static const std::set<std::string, std::less<>> forward_sites = {"tp.qkv.x", "tp.attention_output.y",
                                                                     "tp.gate_up.x", "tp.down.y"};
    static const std::set<std::string, std::less<>> backward_sites = {"tp.column.x", "tp.column.dx",
                                                                      "tp.attention_output.dy", "tp.down.dy"};
    const bool forward = forward_sites.count(call.site) != 0;
    if (!forward && backward_sites.count(call.site) == 0) return;
    count += forward != last_forward_ ? 1 : 0;
    last_forward_ = forward;
  }
  void issued(uint64_t) override {}
  void end(uint64_t) override {}
  int64_t count = 0;

 private:
  bool last_forward_ = true;
};

int64_t changes(const testing::Layout& layout) {
  Job& job = test::job();
  Together together;
  job.recorder->observe(&together);
  testing::run_layout(job, layout, {.steps = 1});
  job.recorder->observe(nullptr);
  return together.count;
}

}  // namespace

BOOST_AUTO_TEST_CASE(halves_of_an_overlapped_action_take_turns) {
  if (test::job().control->world_size() != 4) return;
  for (const testing::Layout& layout : {testing::Layout{.tp = 2, .pp = 2, .schedule = "dualpipev"},
                                        testing::Layout{.tp = 4, .schedule = "dualpipev"}}) {
    const auto config = testing::layout_config(layout, {});
    const Mesh mesh = Mesh::from_config(config.parallel, 4);
    const auto schedule = pipeline_schedule(config, mesh);
    const auto& actions =
        schedule.ranks[static_cast<size_t>(mesh.coordinate(test::job().control->rank(), MeshAxis::Pp))];
    const auto pairs = std::count_if(actions.begin(), actions.end(),
                                     [](const Action& a) { return a.kind == ActionKind::ForwardBackward; });
    BOOST_TEST(pairs > 0);
    // Four calls of a layer's forward, at least four layers a chunk: there and back for each but the last
    // ones, which the longer half makes alone.
    BOOST_TEST(changes(layout) >= pairs * 16);
  }
  // One after the other: 16 micro-batches with two chunks each pass forward and backward at most once.
  BOOST_TEST(changes({.tp = 2, .pp = 2, .schedule = "zbv"}) <= 2 * 2 * 16);
  BOOST_TEST(changes({.tp = 2, .pp = 2, .schedule = "1f1b"}) <= 2 * 16);
}
