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

// Counts calls of the tensor-parallel group that begin while one of a forward pass is under way: never where
// each is waited for at once.
class Together : public FlightRecorder::Observer {
 public:
  void begin(uint64_t id, const FlightRecorder::Call& call) override {
    if (call.group != "tp") return;
    if (!forwards_.empty()) ++count;
    static const std::set<std::string, std::less<>> sites = {"tp.qkv.x", "tp.attention_output.y",
                                                             "tp.gate_up.x", "tp.down.y"};
    if (sites.count(call.site) != 0) forwards_.insert(id);
  }
  void issued(uint64_t) override {}
  void end(uint64_t id) override { forwards_.erase(id); }
  int64_t count = 0;

 private:
  std::set<uint64_t> forwards_;
};

int64_t calls_together(const testing::Layout& layout) {
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
    // Four calls of a layer's forward, at least four layers a chunk: a call of the backward begins in each
    // but the last ones, which the longer half makes alone.
    BOOST_TEST(calls_together(layout) >= pairs * 8);
  }
  BOOST_TEST(calls_together({.tp = 2, .pp = 2, .schedule = "zbv"}) == 0);
  BOOST_TEST(calls_together({.tp = 2, .pp = 2, .schedule = "1f1b"}) == 0);
}
