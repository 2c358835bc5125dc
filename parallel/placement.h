// Which coordinates of the mesh lie on which hosts, and whether that suits what passes between them:
// tensor-parallel groups exchange activations several times a layer and belong inside a host; rings and
// pipelines should enter each host once. Pure functions of the mesh and of where ranks run; for `doctor` and
// for the start of a training.
#pragma once

#include <string>
#include <vector>

#include "parallel/binding.h"
#include "parallel/mesh.h"

namespace hearth {

// "pp 1 dp 0 tp 3": the coordinates along axes of more than one; "alone" for a mesh of one rank.
std::string describe_coordinates(const Mesh& mesh, int rank);

// Empty where the placement is right. One text per axis that is badly placed, which says how many groups are,
// names one, and what to do:
//   tp: a group spans several hosts;
//   cp: neighbours of the ring lie on different hosts more often than the group has hosts;
//   pp: a pipeline changes hosts more often than once per host that it enters.
// `hosts`: by rank, as many as the mesh has ranks (Error{Usage}).
std::vector<std::string> placement_warnings(const Mesh& mesh, const std::vector<std::string>& hosts);

// A part of a job with a mesh of its own; the ranks of the parts follow one another. The ranks that train
// come first and have no name.
struct MeshPart {
  std::string name;
  Mesh mesh;
};
// "pp 1 x dp 2 x cp 1 x ep 1 x tp 2 = 4 ranks; teacher pp 2 x ... = 2 ranks"
std::string describe(const std::vector<MeshPart>& parts);
// By rank of the job.
std::vector<std::string> describe_coordinates(const std::vector<MeshPart>& parts);
std::vector<std::string> placement_warnings(const std::vector<MeshPart>& parts,
                                            const std::vector<RankPlace>& places);

}  // namespace hearth
