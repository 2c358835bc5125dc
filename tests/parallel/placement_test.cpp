// Ranks on hosts that exist as names only.
#include "parallel/placement.h"

#include <boost/test/unit_test.hpp>

#include "base/error.h"

using namespace hearth;

namespace {

// pp, dp, cp, tp
Mesh mesh(int pp, int dp, int cp, int tp) {
  return Mesh(Mesh::Sizes{pp, dp, cp, 1, tp});
}

// Host by host, as mpirun --map-by slot and srun --distribution=block number the ranks.
std::vector<std::string> blocks(int ranks, int per_host) {
  std::vector<std::string> hosts;
  for (int rank = 0; rank < ranks; ++rank) hosts.push_back("gpu" + std::to_string(rank / per_host));
  return hosts;
}

// Round robin, as mpirun --map-by node does.
std::vector<std::string> cyclic(int ranks, int num_hosts) {
  std::vector<std::string> hosts;
  for (int rank = 0; rank < ranks; ++rank) hosts.push_back("gpu" + std::to_string(rank % num_hosts));
  return hosts;
}

bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

BOOST_AUTO_TEST_CASE(coordinates_of_axes_that_exist) {
  BOOST_TEST(describe_coordinates(mesh(2, 2, 1, 4), 13) == "pp 1 dp 1 tp 1");
  BOOST_TEST(describe_coordinates(mesh(1, 1, 3, 1), 2) == "cp 2");
  BOOST_TEST(describe_coordinates(mesh(1, 1, 1, 1), 0) == "alone");
}

BOOST_AUTO_TEST_CASE(a_job_in_parts) {
  const std::vector<MeshPart> parts{{"", mesh(1, 2, 1, 1)}, {"teacher", mesh(1, 1, 1, 2)}};
  BOOST_TEST(
      describe(parts) ==
      "pp 1 x dp 2 x cp 1 x ep 1 x tp 1 = 2 ranks; teacher pp 1 x dp 1 x cp 1 x ep 1 x tp 2 = 2 ranks");
  const std::vector<std::string> want{"dp 0", "dp 1", "teacher tp 0", "teacher tp 1"};
  BOOST_TEST(describe_coordinates(parts) == want, boost::test_tools::per_element());
  std::vector<RankPlace> places(4);
  for (int r = 0; r < 4; ++r) places[static_cast<size_t>(r)].host = r < 3 ? "gpu0" : "gpu1";
  const auto warnings = placement_warnings(parts, places);
  BOOST_TEST_REQUIRE(warnings.size() == 1U);
  BOOST_TEST(warnings[0].starts_with("teacher "));
  BOOST_TEST(mentions(warnings[0], "tensor-parallel groups span hosts"));
}

// Every factorisation of 16 ranks over blocks of 8: right unless a tensor-parallel group is wider than a
// host.
BOOST_AUTO_TEST_CASE(host_by_host_is_right) {
  int meshes = 0;
  for (const int tp : {1, 2, 4, 8, 16})
    for (const int cp : {1, 2, 4, 8, 16})
      for (const int pp : {1, 2, 4, 8, 16}) {
        if (16 % (tp * cp * pp) != 0) continue;
        const Mesh m = mesh(pp, 16 / (tp * cp * pp), cp, tp);
        BOOST_REQUIRE(placement_warnings(m, blocks(16, 8)).size() == (tp == 16 ? 1U : 0U));
        BOOST_REQUIRE(placement_warnings(m, blocks(16, 16)).empty());
        ++meshes;
      }
  BOOST_TEST(meshes > 30);
}

BOOST_AUTO_TEST_CASE(tensor_groups_that_span_hosts) {
  // Six ranks per host and groups of four: ranks 4 to 7 lie on both.
  const auto warnings = placement_warnings(mesh(1, 3, 1, 4), blocks(12, 6));
  BOOST_REQUIRE(warnings.size() == 1U);
  BOOST_TEST(mentions(warnings[0], "1 of 3 tensor-parallel groups span hosts"));
  BOOST_TEST(mentions(warnings[0], "ranks 4, 5, 6, 7 on gpu0, gpu0, gpu1, gpu1"));
  const auto round_robin = placement_warnings(mesh(1, 4, 1, 2), cyclic(8, 2));
  BOOST_REQUIRE(round_robin.size() == 1U);
  BOOST_TEST(mentions(round_robin[0], "4 of 4 tensor-parallel groups"));
}

BOOST_AUTO_TEST_CASE(pipelines_that_come_back) {
  // Eight stages over four hosts, round robin: seven changes of host where three would do.
  const auto warnings = placement_warnings(mesh(8, 1, 1, 1), cyclic(8, 4));
  BOOST_REQUIRE(warnings.size() == 1U);
  BOOST_TEST(mentions(warnings[0], "1 of 1 pipelines leave a host"));
  BOOST_TEST(placement_warnings(mesh(8, 1, 1, 1), blocks(8, 2)).empty());
  // Four stages of two data-parallel ranks, round robin over two hosts: each pipeline stays on one.
  BOOST_TEST(placement_warnings(mesh(4, 2, 1, 1), cyclic(8, 2)).empty());
}

BOOST_AUTO_TEST_CASE(rings_that_come_back) {
  BOOST_TEST(placement_warnings(mesh(1, 1, 8, 1), blocks(8, 4)).empty());  // two crossings, two hosts
  const auto warnings = placement_warnings(mesh(1, 1, 8, 1), cyclic(8, 2));
  BOOST_REQUIRE(warnings.size() == 1U);
  BOOST_TEST(mentions(warnings[0], "1 of 1 context-parallel rings"));
  BOOST_TEST(placement_warnings(mesh(1, 1, 2, 1), cyclic(2, 2)).empty());  // no other order is possible
}

BOOST_AUTO_TEST_CASE(places_count_by_their_host) {
  std::vector<RankPlace> places(2);
  places[0] = {.rank = 0, .local_rank = 0, .host = "a", .cores = "0", .num_cores = 1, .device = {}};
  places[1] = {.rank = 1, .local_rank = 0, .host = "b", .cores = "0", .num_cores = 1, .device = {}};
  BOOST_TEST(placement_warnings({MeshPart{"", mesh(1, 1, 1, 2)}}, places).size() == 1U);
  places[1].host = "a";
  BOOST_TEST(placement_warnings({MeshPart{"", mesh(1, 1, 1, 2)}}, places).empty());
}

BOOST_AUTO_TEST_CASE(as_many_hosts_as_ranks) {
  BOOST_CHECK_EXCEPTION(placement_warnings(mesh(1, 1, 1, 4), blocks(3, 3)), Error,
                        [](const Error& e) { return e.kind() == ErrorKind::Usage; });
}
