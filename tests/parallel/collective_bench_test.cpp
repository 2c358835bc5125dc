// What `hearth bench collectives` counts with, and its measurement over MPI on 1, 2 and 4 ranks. No figure of
// speed is judged.
#include "parallel/collective_bench.h"

#include <boost/test/unit_test.hpp>
#include <cmath>

#include "base/error.h"
#include "tests/parallel/mpi_fixture.h"

using namespace hearth;
using Sizes = std::vector<int64_t>;

namespace {
constexpr BenchCollective kCollectives[] = {BenchCollective::AllReduce, BenchCollective::ReduceScatter,
                                            BenchCollective::AllGather};

bool is_usage(const Error& error) {
  return error.kind() == ErrorKind::Usage;
}
}  // namespace

// 8 GB in 2 s on 4 ranks, by the table of nccl-tests' doc/PERFORMANCE.md.
BOOST_AUTO_TEST_CASE(bus_bandwidth_by_hand) {
  const int64_t size = 8'000'000'000;
  BOOST_TEST(bus_bandwidth(BenchCollective::AllReduce, 4, size, 2.0) == 6e9);
  BOOST_TEST(bus_bandwidth(BenchCollective::ReduceScatter, 4, size, 2.0) == 3e9);
  BOOST_TEST(bus_bandwidth(BenchCollective::AllGather, 4, size, 2.0) == 3e9);
  // Two ranks: each link carries the whole buffer in an all_reduce, half of it in the others.
  BOOST_TEST(bus_bandwidth(BenchCollective::AllReduce, 2, size, 2.0) == 4e9);
  BOOST_TEST(bus_bandwidth(BenchCollective::AllGather, 2, size, 2.0) == 2e9);
}

BOOST_AUTO_TEST_CASE(sizes_grow_fourfold_in_whole_chunks) {
  BOOST_TEST((bench_sizes(1 << 20, 16 << 20, 8) == Sizes{1 << 20, 4 << 20, 16 << 20}));
  BOOST_TEST((bench_sizes(1 << 20, (16 << 20) - 1, 8) == Sizes{1 << 20, 4 << 20}));
  BOOST_TEST((bench_sizes(1000, 1000, 12) == Sizes{996}));
  BOOST_TEST((bench_sizes(1, 64, 12) == Sizes{12, 60}));  // 1, 4 and 16 all become one chunk each
  BOOST_TEST((bench_sizes(int64_t{1} << 62, INT64_MAX, 8) == Sizes{int64_t{1} << 62}));
  BOOST_CHECK_EXCEPTION(bench_sizes(0, 64, 8), Error, is_usage);
  BOOST_CHECK_EXCEPTION(bench_sizes(65, 64, 8), Error, is_usage);
}

BOOST_AUTO_TEST_CASE(every_collective_at_every_size_and_alike_on_all_ranks) {
  std::vector<CollectiveTiming> seen;
  CollectiveBenchOptions options{
      .min_bytes = 1000, .max_bytes = 70000, .on_timing = [&](const auto& t) { seen.push_back(t); }};
  ControlPlane& control = *test::job().control;
  if (control.world_size() == 1) {
    BOOST_CHECK_EXCEPTION(bench_collectives(test::job(), options), Error, is_usage);
    return;
  }
  const auto timings = bench_collectives(test::job(), options);
  const auto sizes = bench_sizes(1000, 70000, 4 * control.world_size());
  BOOST_TEST_REQUIRE(timings.size() == std::size(kCollectives) * sizes.size());
  BOOST_TEST(seen.size() == timings.size());
  for (size_t i = 0; i < timings.size(); ++i) {
    const CollectiveTiming& t = timings[i];
    BOOST_TEST((t.op == kCollectives[i / sizes.size()]));
    BOOST_TEST(t.size_bytes == sizes[i % sizes.size()]);
    BOOST_TEST(t.calls >= 3);
    for (const double seconds : {t.seconds, t.library_seconds}) {
      BOOST_TEST((std::isfinite(seconds) && seconds > 0));
      control.require_same("time", fmt::format("{}", seconds), "test.time");
    }
  }
}

BOOST_AUTO_TEST_CASE(mpi_has_no_bf16) {
  if (test::job().control->world_size() == 1) return;
  CollectiveBenchOptions options{.dtype = DType::BF16, .min_bytes = 64, .max_bytes = 64};
  BOOST_CHECK_EXCEPTION(bench_collectives(test::job(), options), Error, is_usage);
}
