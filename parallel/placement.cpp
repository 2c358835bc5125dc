#include "parallel/placement.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <array>
#include <set>

#include "base/error.h"

namespace hearth {
namespace {

using Hosts = std::vector<std::string>;

Hosts hosts_of(const std::vector<int>& group, const Hosts& hosts) {
  Hosts out;
  for (const int rank : group) out.push_back(hosts[static_cast<size_t>(rank)]);
  return out;
}

size_t distinct(const Hosts& hosts) {
  return std::set<std::string>(hosts.begin(), hosts.end()).size();
}

size_t changes(const Hosts& hosts) {
  size_t count = 0;
  for (size_t i = 1; i < hosts.size(); ++i) count += hosts[i] != hosts[i - 1] ? 1 : 0;
  return count;
}

std::string titled(const MeshPart& part, const std::string& text) {
  return part.name.empty() ? text : part.name + " " + text;
}

bool spans(const Hosts& hosts) {
  return distinct(hosts) > 1;
}
// Each host left once at most.
bool pipeline_returns(const Hosts& hosts) {
  return changes(hosts) > distinct(hosts) - 1;
}
// The last rank sends to the first.
bool ring_returns(const Hosts& hosts) {
  const size_t closing = hosts.back() != hosts.front() ? 1 : 0;
  return spans(hosts) && changes(hosts) + closing > distinct(hosts);
}

struct Rule {
  MeshAxis axis;
  bool (*broken)(const Hosts&);
  std::string_view what, advice;
};
constexpr std::array kRules{
    Rule{MeshAxis::Tp, spans,
         "tensor-parallel groups span hosts and will wait for the network in every layer",
         "give each host a multiple of tensor_model_parallel_size ranks and number them host by host (mpirun "
         "--map-by slot, srun --distribution=block), or lower tensor_model_parallel_size"},
    Rule{MeshAxis::Cp, ring_returns,
         "context-parallel rings cross between hosts more often than they have hosts",
         "number the ranks host by host (mpirun --map-by slot, srun --distribution=block)"},
    Rule{MeshAxis::Pp, pipeline_returns, "pipelines leave a host and come back to it",
         "number the ranks host by host (mpirun --map-by slot, srun --distribution=block)"},
};

}  // namespace

std::string describe_coordinates(const Mesh& mesh, int rank) {
  std::string text;
  for (const MeshAxis axis : {MeshAxis::Pp, MeshAxis::Dp, MeshAxis::Cp, MeshAxis::Ep, MeshAxis::Tp})
    if (mesh.size(axis) > 1)
      text += fmt::format("{}{} {}", text.empty() ? "" : " ", name(axis), mesh.coordinate(rank, axis));
  return text.empty() ? "alone" : text;
}

std::vector<std::string> placement_warnings(const Mesh& mesh, const std::vector<std::string>& hosts) {
  HEARTH_REQUIRE(static_cast<int>(hosts.size()) == mesh.world_size(),
                 "placement of {} ranks for a mesh of {}", hosts.size(), mesh.world_size());
  std::vector<std::string> warnings;
  for (const Rule& rule : kRules) {
    const auto groups = mesh.groups(rule.axis);
    std::vector<std::vector<int>> broken;
    for (const auto& group : groups)
      if (rule.broken(hosts_of(group, hosts))) broken.push_back(group);
    if (broken.empty()) continue;
    warnings.push_back(fmt::format("{} of {} {}, e.g. ranks {} on {}: {}", broken.size(), groups.size(),
                                   rule.what, fmt::join(broken.front(), ", "),
                                   fmt::join(hosts_of(broken.front(), hosts), ", "), rule.advice));
  }
  return warnings;
}

std::string describe(const std::vector<MeshPart>& parts) {
  std::string text;
  for (const MeshPart& part : parts) text += (text.empty() ? "" : "; ") + titled(part, part.mesh.describe());
  return text;
}

std::vector<std::string> describe_coordinates(const std::vector<MeshPart>& parts) {
  std::vector<std::string> texts;
  for (const MeshPart& part : parts)
    for (int rank = 0; rank < part.mesh.world_size(); ++rank)
      texts.push_back(titled(part, describe_coordinates(part.mesh, rank)));
  return texts;
}

std::vector<std::string> placement_warnings(const std::vector<MeshPart>& parts,
                                            const std::vector<RankPlace>& places) {
  std::vector<std::string> warnings;
  auto first = places.begin();
  for (const MeshPart& part : parts) {
    Hosts hosts;
    for (; static_cast<int>(hosts.size()) < part.mesh.world_size() && first != places.end(); ++first)
      hosts.push_back(first->host);
    for (const std::string& warning : placement_warnings(part.mesh, hosts))
      warnings.push_back(titled(part, warning));
  }
  return warnings;
}

}  // namespace hearth
