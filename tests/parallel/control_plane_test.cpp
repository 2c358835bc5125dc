// The control plane on 1, 2 and 4 ranks.
#include "parallel/control_plane.h"

#include <boost/test/unit_test.hpp>

#include "parallel/agreement.h"
#include "parallel/binding.h"
#include "parallel/device_info.h"
#include "parallel/self_test.h"
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

BOOST_AUTO_TEST_CASE(agreement_names_every_odd_fact_and_rank) {
  const std::string quoted = "any \"text\",\nwith separators";
  require_agreement(plane(), {{"build id", "a"}, {"config hash", quoted}});
  if (plane().world_size() < 4) return;
  const bool odd = plane().rank() == 1, lost = plane().rank() == 3;
  const Facts mine{
      {"build id", "a"}, {"dataset digest", odd ? "77" : "5f"}, {"run folder", lost ? "" : "nonce"}};
  BOOST_CHECK_EXCEPTION(require_agreement(plane(), mine), Error, [](const Error& e) {
    return e.kind() == ErrorKind::Config && e.message().find("build id") == std::string::npos &&
           e.message().find("dataset digest: rank 1 has '77'; the others have '5f'") != std::string::npos &&
           e.message().find("run folder: rank 3 has ''; the others have 'nonce'") != std::string::npos;
  });
  const Facts other{{plane().rank() == 2 ? "x" : "y", "a"}};
  BOOST_CHECK_THROW(require_agreement(plane(), other), Error);
}

BOOST_AUTO_TEST_CASE(places_of_all_ranks) {
  const auto places =
      gather_places(plane(), plane().rank() == 0 ? std::optional<int>() : std::optional<int>(7));
  BOOST_TEST_REQUIRE(static_cast<int>(places.size()) == plane().world_size());
  for (const auto& place : places) {
    BOOST_TEST(place.host == plane().host());
    BOOST_TEST(place.local_rank == place.rank);
    BOOST_TEST(place.num_cores > 0);
    BOOST_CHECK(place.device == (place.rank == 0 ? std::nullopt : std::optional<int>(7)));
  }
  BOOST_TEST(describe(places[0]).find("rank=0 host=" + plane().host() + " local_rank=0 device=cpu cores=") ==
             0u);
}

BOOST_AUTO_TEST_CASE(ranks_that_share_a_device_get_host_ids_of_their_own) {
  BOOST_CHECK(nccl_host_id(plane(), 0) == std::nullopt);
  BOOST_CHECK(nccl_host_id(plane(), plane().world_size()) == std::nullopt);
  if (plane().world_size() == 1) return;
  const auto mine = nccl_host_id(plane(), plane().world_size() - 1);
  BOOST_TEST_REQUIRE(mine.has_value());
  const auto all = plane().all_gather(*mine, "test.host_ids");
  for (size_t a = 0; a < all.size(); ++a)
    for (size_t b = 0; b < a; ++b) BOOST_TEST(all[a] != all[b]);
}

// Two parts of one job, each with votes and groups of its own, beside those of the whole.
BOOST_AUTO_TEST_CASE(a_job_in_parts) {
  if (plane().world_size() < 2) return;
  const int border = plane().world_size() - 1, rank = plane().rank();  // the last rank alone
  const int first = rank < border ? 0 : border, count = rank < border ? border : 1;
  Job part = split_job(test::job(), "part", first, count);
  BOOST_TEST(part.control->rank() == rank - first);
  BOOST_TEST(part.control->world_size() == count);
  BOOST_TEST(part.control->job_rank(part.control->rank()) == rank);
  BOOST_TEST(part.control->local_rank() == plane().local_rank());
  BOOST_TEST(part.control->local_world_size() == plane().local_world_size());
  // As many exchanges of the parts as they like: their numbers are their own.
  for (int i = 0; i <= first; ++i) {
    const auto texts = part.control->all_gather(std::to_string(rank), "test.part");
    BOOST_TEST_REQUIRE(static_cast<int>(texts.size()) == count);
    for (int r = 0; r < count; ++r) BOOST_TEST(texts[static_cast<size_t>(r)] == std::to_string(first + r));
  }
  std::vector<std::string> reasons;
  BOOST_TEST(!part.control->vote(false, "no", "test.part_vote", &reasons));
  BOOST_TEST(reasons.front() == fmt::format("rank {}: no", first));
  std::vector<int> ranks(static_cast<size_t>(count));
  std::iota(ranks.begin(), ranks.end(), 0);
  const auto comm = make_comm(part, {.group = "part", .ranks = ranks, .cuda_device = {}, .timeout_s = {}});
  float sum = static_cast<float>(rank);
  comm->all_reduce(&sum, 1, DType::F32, ReduceOp::Sum, "test.part_sum")->wait();
  BOOST_TEST(sum == static_cast<float>(rank < border ? border * (border - 1) / 2 : border));
  BOOST_TEST(plane().all_reduce_max(rank, "test.whole") == border);
}

// As the whole job numbers it; the other part has nothing to complain about.
BOOST_AUTO_TEST_CASE(the_odd_rank_of_a_part_is_named) {
  if (plane().world_size() < 4) return;
  const int rank = plane().rank();
  Job part = split_job(test::job(), "part", rank < 2 ? 0 : 2, 2);
  const auto agree = [&] {
    part.control->require_same("word", rank == 3 ? "odd" : "even", "test.part_same");
  };
  if (rank < 2) return agree();
  BOOST_CHECK_EXCEPTION(agree(), Error, [](const Error& e) {
    return e.message().find("rank 3 has 'odd'; the others have 'even'") != std::string::npos;
  });
}

BOOST_AUTO_TEST_CASE(one_checked_collective) {
  const auto check = check_collective(test::job(), std::nullopt, 100000);
  BOOST_TEST(check.ranks == plane().world_size());
  BOOST_TEST(check.backend == (plane().world_size() == 1 ? "single" : "mpi"));
  BOOST_TEST(check.size_bytes == 100000);
}

BOOST_AUTO_TEST_CASE(versions_are_known_in_every_build) {
  BOOST_TEST(!parallel_versions().mpi.empty());
  const auto devices = cuda_devices();
  BOOST_TEST(devices.devices.empty() == !devices.why_none.empty());
}
