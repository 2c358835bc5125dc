// Which ranks work together: the mesh pp x dp x cp x ep x tp, tp fastest (neighbouring ranks share the
// fastest links). Pure arithmetic, no communication; value type, thread-safe. "rank" is global, "coordinate"
// is along an axis.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/parallel_config.h"

namespace hearth {

enum class MeshAxis { Pp, Dp, Cp, Ep, Tp };  // slowest first
constexpr int kMeshAxes = 5;
std::string_view name(MeshAxis axis);  // "pp", "dp", ...

class Mesh {
 public:
  using Sizes = std::array<int, kMeshAxes>;  // indexed by MeshAxis
  using Coordinates = std::array<int, kMeshAxes>;

  // One rank.
  Mesh() : sizes_{1, 1, 1, 1, 1} {}
  // Throws Error{Config} for a size below 1 or a product that does not fit an int.
  explicit Mesh(const Sizes& sizes);
  // dp = world_size / (pp x cp x ep x tp). Throws Error{Config}, printing every factor, when that is no whole
  // number.
  static Mesh from_config(const ParallelConfig& config, int world_size);

  int world_size() const;
  int size(MeshAxis axis) const { return sizes_[static_cast<size_t>(axis)]; }
  const Sizes& sizes() const { return sizes_; }
  std::string describe() const;  // "pp 1 x dp 4 x cp 1 x ep 1 x tp 2 = 8 ranks"

  Coordinates coordinates(int rank) const;
  int coordinate(int rank, MeshAxis axis) const { return coordinates(rank)[static_cast<size_t>(axis)]; }
  int rank(const Coordinates& coordinates) const;

  // The ranks that differ from `rank` along `axis` only, in order of that coordinate; `rank` is among them.
  std::vector<int> group(int rank, MeshAxis axis) const;
  // The same over several axes at once, in rank order: e.g. {Dp, Ep}, over which the batch spreads.
  std::vector<int> group(int rank, const std::vector<MeshAxis>& axes) const;
  // All groups along `axis`, ordered by their lowest rank: a partition of the world.
  std::vector<std::vector<int>> groups(MeshAxis axis) const;

  bool operator==(const Mesh&) const = default;

 private:
  Sizes sizes_;
};

}  // namespace hearth
