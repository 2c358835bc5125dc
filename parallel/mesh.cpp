#include "parallel/mesh.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace hearth {
namespace {
constexpr std::array<MeshAxis, kMeshAxes> kAxes{MeshAxis::Pp, MeshAxis::Dp, MeshAxis::Cp, MeshAxis::Ep,
                                                MeshAxis::Tp};

size_t index(MeshAxis axis) {
  return static_cast<size_t>(axis);
}
}  // namespace

std::string_view name(MeshAxis axis) {
  constexpr std::array<std::string_view, kMeshAxes> kNames{"pp", "dp", "cp", "ep", "tp"};
  return kNames[index(axis)];
}

Mesh::Mesh(const Sizes& sizes) : sizes_(sizes) {
  int64_t product = 1;
  for (const MeshAxis axis : kAxes) {
    HEARTH_CHECK(size(axis) >= 1, Config, "mesh: {} must be >= 1, got {}", name(axis), size(axis));
    product *= size(axis);
    HEARTH_CHECK(product <= std::numeric_limits<int>::max(), Config,
                 "mesh: more ranks than an int can number");
  }
}

Mesh Mesh::from_config(const ParallelConfig& c, int world_size) {
  const std::array<int64_t, 4> factors{c.pipeline_model_parallel_size, c.context_parallel_size,
                                       c.expert_model_parallel_size, c.tensor_model_parallel_size};
  int64_t product = 1;
  for (const int64_t factor : factors) {
    // A factor above the world size cannot divide it; stopping there also keeps the product small.
    product = factor >= 1 && factor <= world_size && product <= world_size ? product * factor : 0;
    if (product == 0) break;
  }
  HEARTH_CHECK(
      product >= 1 && world_size % product == 0, Config,
      "the world size {} is not a multiple of pipeline_model_parallel_size {} x context_parallel_size {} x "
      "expert_model_parallel_size {} x tensor_model_parallel_size {}: start a multiple of that product of "
      "ranks, or change the sizes in section parallel",
      world_size, factors[0], factors[1], factors[2], factors[3]);
  return Mesh(Sizes{static_cast<int>(factors[0]), static_cast<int>(world_size / product),
                    static_cast<int>(factors[1]), static_cast<int>(factors[2]),
                    static_cast<int>(factors[3])});
}

int Mesh::world_size() const {
  int product = 1;
  for (const int size : sizes_) product *= size;
  return product;
}

std::string Mesh::describe() const {
  std::string text;
  for (const MeshAxis axis : kAxes)
    text += fmt::format("{}{} {}", text.empty() ? "" : " x ", name(axis), size(axis));
  return fmt::format("{} = {} ranks", text, world_size());
}

Mesh::Coordinates Mesh::coordinates(int rank) const {
  HEARTH_REQUIRE(rank >= 0 && rank < world_size(), "mesh: rank {} is not in {}", rank, describe());
  Coordinates out{};
  for (int axis = kMeshAxes - 1; axis >= 0; --axis) {
    const auto i = static_cast<size_t>(axis);
    out[i] = rank % sizes_[i];
    rank /= sizes_[i];
  }
  return out;
}

int Mesh::rank(const Coordinates& coordinates) const {
  int rank = 0;
  for (const MeshAxis axis : kAxes) {
    const int at = coordinates[index(axis)];
    HEARTH_REQUIRE(at >= 0 && at < size(axis), "mesh: coordinate {} is not on axis {} of {}", at, name(axis),
                   describe());
    rank = rank * size(axis) + at;
  }
  return rank;
}

std::vector<int> Mesh::group(int rank, MeshAxis axis) const {
  return group(rank, std::vector<MeshAxis>{axis});
}

std::vector<int> Mesh::group(int rank, const std::vector<MeshAxis>& axes) const {
  const Coordinates mine = coordinates(rank);
  std::vector<int> ranks;
  for (int other = 0; other < world_size(); ++other) {
    const Coordinates theirs = coordinates(other);
    bool together = true;
    for (const MeshAxis axis : kAxes) {
      const bool free = std::find(axes.begin(), axes.end(), axis) != axes.end();
      together = together && (free || theirs[index(axis)] == mine[index(axis)]);
    }
    if (together) ranks.push_back(other);
  }
  return ranks;
}

std::vector<std::vector<int>> Mesh::groups(MeshAxis axis) const {
  std::vector<std::vector<int>> out;
  for (int rank = 0; rank < world_size(); ++rank)
    if (coordinate(rank, axis) == 0) out.push_back(group(rank, axis));
  return out;
}

}  // namespace hearth
