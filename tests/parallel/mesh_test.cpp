// Mesh arithmetic for every factorisation of every world size up to 16, against a plain nested loop.
#include "parallel/mesh.h"

#include <boost/test/unit_test.hpp>
#include <set>

#include "base/error.h"

using namespace hearth;

namespace {

constexpr std::array<MeshAxis, kMeshAxes> kAxes{MeshAxis::Pp, MeshAxis::Dp, MeshAxis::Cp, MeshAxis::Ep,
                                                MeshAxis::Tp};

// Calls f(sizes) for all five-factor products equal to `world`.
template <class F>
void for_each_factorisation(int world, F f) {
  for (int pp = 1; pp <= world; ++pp)
    for (int dp = 1; pp * dp <= world; ++dp)
      for (int cp = 1; pp * dp * cp <= world; ++cp)
        for (int ep = 1; pp * dp * cp * ep <= world; ++ep)
          if (world % (pp * dp * cp * ep) == 0) f(Mesh::Sizes{pp, dp, cp, ep, world / (pp * dp * cp * ep)});
}

void check_ranks(const Mesh& mesh, const Mesh::Sizes& s) {
  int rank = 0;  // tp fastest
  for (int pp = 0; pp < s[0]; ++pp)
    for (int dp = 0; dp < s[1]; ++dp)
      for (int cp = 0; cp < s[2]; ++cp)
        for (int ep = 0; ep < s[3]; ++ep)
          for (int tp = 0; tp < s[4]; ++tp, ++rank) {
            const Mesh::Coordinates at{pp, dp, cp, ep, tp};
            BOOST_REQUIRE(mesh.coordinates(rank) == at);
            BOOST_REQUIRE(mesh.rank(at) == rank);
          }
  BOOST_TEST(mesh.world_size() == rank);
}

void check_groups(const Mesh& mesh) {
  for (const MeshAxis axis : kAxes) {
    const auto groups = mesh.groups(axis);
    BOOST_REQUIRE(static_cast<int>(groups.size()) == mesh.world_size() / mesh.size(axis));
    std::set<int> seen;
    for (const auto& group : groups) {
      BOOST_REQUIRE(static_cast<int>(group.size()) == mesh.size(axis));
      for (size_t i = 0; i < group.size(); ++i) {
        BOOST_REQUIRE(mesh.coordinate(group[i], axis) == static_cast<int>(i));
        BOOST_REQUIRE(mesh.group(group[i], axis) == group);
        for (const MeshAxis other : kAxes) {
          if (other != axis)
            BOOST_REQUIRE(mesh.coordinate(group[i], other) == mesh.coordinate(group[0], other));
        }
        BOOST_REQUIRE(seen.insert(group[i]).second);
      }
    }
    BOOST_REQUIRE(static_cast<int>(seen.size()) == mesh.world_size());
  }
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_factorisation_up_to_16_ranks) {
  int meshes = 0;
  for (int world = 1; world <= 16; ++world)
    for_each_factorisation(world, [&](const Mesh::Sizes& sizes) {
      const Mesh mesh(sizes);
      check_ranks(mesh, sizes);
      check_groups(mesh);
      ++meshes;
    });
  // Sum over n <= 16 of the ordered factorisations into five: 1+5+5+15+5+25+5+35+15+25+5+75+5+25+25+70.
  BOOST_TEST(meshes == 341);
}

BOOST_AUTO_TEST_CASE(a_group_over_two_axes_is_their_product) {
  const Mesh mesh(Mesh::Sizes{2, 2, 1, 2, 2});
  const auto ranks = mesh.group(5, {MeshAxis::Dp, MeshAxis::Ep});
  const std::vector<int> want{1, 3, 5, 7};
  BOOST_TEST(ranks == want, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(data_parallel_size_follows_from_the_config) {
  ParallelConfig config;
  config.tensor_model_parallel_size = 2;
  config.pipeline_model_parallel_size = 3;
  const Mesh mesh = Mesh::from_config(config, 24);
  BOOST_TEST(mesh.size(MeshAxis::Dp) == 4);
  BOOST_TEST(mesh.size(MeshAxis::Tp) == 2);
  BOOST_TEST(mesh.describe() == "pp 3 x dp 4 x cp 1 x ep 1 x tp 2 = 24 ranks");
}

BOOST_AUTO_TEST_CASE(a_world_that_does_not_divide_prints_every_factor) {
  ParallelConfig config;
  config.tensor_model_parallel_size = 4;
  config.pipeline_model_parallel_size = 3;
  config.context_parallel_size = 5;
  config.expert_model_parallel_size = 7;
  BOOST_CHECK_EXCEPTION(Mesh::from_config(config, 64), Error, [](const Error& e) {
    return e.kind() == ErrorKind::Config &&
           e.message().find(
               "world size 64 is not a multiple of pipeline_model_parallel_size 3 x "
               "context_parallel_size 5 x expert_model_parallel_size 7 x "
               "tensor_model_parallel_size 4") != std::string::npos;
  });
  config.tensor_model_parallel_size = int64_t{1} << 62;
  BOOST_CHECK_THROW(Mesh::from_config(config, 64), Error);
  config.tensor_model_parallel_size = 0;
  BOOST_CHECK_THROW(Mesh::from_config(config, 64), Error);
}

BOOST_AUTO_TEST_CASE(out_of_range_is_refused) {
  const Mesh mesh(Mesh::Sizes{1, 4, 1, 1, 2});
  BOOST_CHECK_THROW(mesh.coordinates(8), Error);
  BOOST_CHECK_THROW(mesh.coordinates(-1), Error);
  BOOST_CHECK_THROW(mesh.rank({0, 4, 0, 0, 0}), Error);
  BOOST_CHECK_THROW(Mesh(Mesh::Sizes{1, 0, 1, 1, 1}), Error);
}

BOOST_AUTO_TEST_CASE(config_values_without_code_say_so) {
  const auto messages = [](const ParallelConfig& config) {
    ConfigErrors errors;
    config.validate(errors);
    std::string text;
    for (const auto& e : errors.entries()) text += e.key + ": " + e.message + "\n";
    return text;
  };
  ParallelConfig config;
  BOOST_TEST(messages(config) == "");
  config.zero_stage = 0;
  BOOST_TEST(messages(config) == "");
  config.zero_stage = 4;
  config.expert_model_parallel_size = 2;
  config.virtual_pipeline_model_parallel_size = 2;
  config.collective_timeout_s = std::numeric_limits<double>::quiet_NaN();
  const std::string text = messages(config);
  BOOST_TEST(text.find("zero_stage: must be 0, 1, 2 or 3, got 4") != std::string::npos);
  BOOST_TEST(text.find("expert_model_parallel_size: 2 is not available yet") != std::string::npos);
  BOOST_TEST(
      text.find(
          "virtual_pipeline_model_parallel_size: has a meaning for pipeline_schedule interleaved only") !=
      std::string::npos);
  BOOST_TEST(text.find("collective_timeout_s: must be in") != std::string::npos);
  config = {};
  config.pipeline_schedule = "gpipe";
  config.zero_stage = 4;
  BOOST_TEST(messages(config).find("must be one of 1f1b, interleaved, zb_h1, zbv, dualpipev") !=
             std::string::npos);
  BOOST_TEST(messages(config).find("zero_stage: must be 0, 1, 2 or 3, got 4") != std::string::npos);
}
