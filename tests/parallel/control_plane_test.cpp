// The control plane on 1, 2 and 4 ranks.
#include "parallel/control_plane.h"

#include <boost/test/unit_test.hpp>

#include "tests/parallel/mpi_fixture.h"

using namespace hearth;

namespace {
ControlPlane& plane() {
  return *test::job().control;
}
}  // namespace

BOOST_AUTO_TEST_CASE(all_gather_brings_texts_of_any_length_in_rank_order) {
  for (const size_t length : {size_t{0}, size_t{1}, size_t{100}, size_t{3000000}}) {
    const auto text_of = [&](int r) {
      return std::string(length * static_cast<size_t>(r), static_cast<char>('a' + r));
    };
    const auto all = plane().all_gather(text_of(plane().rank()), "test.gather");
    BOOST_TEST_REQUIRE(static_cast<int>(all.size()) == plane().world_size());
    for (int r = 0; r < plane().world_size(); ++r) BOOST_TEST((all[static_cast<size_t>(r)] == text_of(r)));
  }
}

BOOST_AUTO_TEST_CASE(broadcast_from_every_root) {
  for (int root = 0; root < plane().world_size(); ++root)
    BOOST_TEST(plane().broadcast(fmt::format("from {}", plane().rank()), "test.broadcast", root) ==
               fmt::format("from {}", root));
}

BOOST_AUTO_TEST_CASE(vote_names_those_who_refuse) {
  BOOST_TEST(plane().vote(true, "", "test.vote"));
  const int last = plane().world_size() - 1;
  std::vector<std::string> reasons;
  BOOST_TEST(!plane().vote(plane().rank() != last, "disk full", "test.vote", &reasons));
  BOOST_TEST(reasons == std::vector<std::string>{fmt::format("rank {}: disk full", last)},
             boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(require_same_names_the_odd_rank) {
  plane().require_same("build", "v1", "test.same");
  if (plane().world_size() < 3) return;
  BOOST_CHECK_EXCEPTION(plane().require_same("build", plane().rank() == 2 ? "v2" : "v1", "test.same"), Error,
                        [](const Error& e) {
                          return e.kind() == ErrorKind::Config &&
                                 e.message().find("rank 2 has 'v2'; the others have 'v1'") !=
                                     std::string::npos;
                        });
}

BOOST_AUTO_TEST_CASE(small_reductions) {
  const int64_t n = plane().world_size();
  BOOST_TEST(plane().all_reduce_max(plane().rank() - 5, "test.max") == n - 6);
  BOOST_TEST(plane().all_reduce_sum(plane().rank() + 1, "test.sum") == n * (n + 1) / 2);
}

BOOST_AUTO_TEST_CASE(one_host_holds_all_ranks) {
  BOOST_TEST(plane().local_rank() == plane().rank());
  BOOST_TEST(plane().local_world_size() == plane().world_size());
  BOOST_TEST(!plane().host().empty());
}

BOOST_AUTO_TEST_CASE(launchers_without_pmix_are_refused_with_advice) {
  const auto advises = [](std::string_view text) {
    return [text](const Error& e) {
      return e.kind() == ErrorKind::Config && e.message().find(text) != std::string::npos;
    };
  };
  LaunchEnvironment srun;
  srun.slurm_step_num_tasks = "4";
  BOOST_CHECK_EXCEPTION(start_job(srun, {}), Error, advises("srun --mpi=pmix"));
  LaunchEnvironment pmi;
  pmi.pmi_size = "2";
  BOOST_CHECK_EXCEPTION(start_job(pmi, {}), Error, advises("needs PMIx"));
  srun.slurm_step_num_tasks = "1";  // one task needs nobody
  BOOST_TEST(start_job(srun, {}).launcher == "single");
}
