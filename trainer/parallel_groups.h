// The groups of ranks that one training job communicates in, made once at start from the mesh. Owns the
// communicators; destroy it before the Job. Making it is collective: every rank of the job calls it with the
// same mesh and shape.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <utility>

#include "parallel/bootstrap.h"
#include "parallel/mesh.h"
#include "parallel/pipeline/schedule.h"
#include "trainer/experiment_config.h"
#include "trainer/model/model_context.h"

namespace hearth {

// One-way channels between pipeline ranks, each a communicator of its own: a send never waits for a recv of
// the other direction, and messages of one channel arrive in the order in which they were posted.
class PipelineLinks {
 public:
  void add(int from, int to, std::unique_ptr<Comm> comm) { links_[{from, to}] = std::move(comm); }
  // Channels that this rank is an end of. In a link's group, rank 0 is the sender.
  Comm& link(int from, int to) const { return *links_.at({from, to}); }
  const std::map<std::pair<int, int>, std::unique_ptr<Comm>>& all() const { return links_; }

 private:
  std::map<std::pair<int, int>, std::unique_ptr<Comm>> links_;
};

struct ParallelGroups {
  Mesh mesh;
  int rank = 0;                 // of the job
  std::unique_ptr<Comm> world;  // null where `data` is the whole job
  std::unique_ptr<Comm> data;   // data x context parallel: over which gradients are summed
  std::unique_ptr<Comm> shard,
      replicas;                    // of `data`, which is sharded over `shard` (null: over all of `data`)
  std::unique_ptr<Comm> pipeline;  // all stages in order; null for one
  std::unique_ptr<Comm> tensor, context, kv_replicas,
      tied_embedding;  // null where the group is this rank alone
  PipelineLinks links;

  int coordinate(MeshAxis axis) const { return mesh.coordinate(rank, axis); }
  Comm& shards() const { return shard ? *shard : *data; }
  Comm& everyone() const { return world ? *world : *data; }
  // Sets the compute stream of every communicator.
  void set_compute_stream(StreamHandle stream);
};

// `device`: where buffers live. Throws Error{Config} where the mesh does not fit the model or the batch.
ParallelGroups make_parallel_groups(Job& job, const ExperimentConfig& config, const Mesh& mesh,
                                    at::Device device);

// How a model's pieces share rows and sequences with other ranks; no events. Null: that group is this rank
// alone.
ModelContext model_context(const ParallelConfig& config, Comm* tensor, Comm* context);

// Ordered pairs of pipeline ranks between which neighbouring virtual stages pass tensors, both directions, in
// rounds: the pairs of one round share no rank. Pure.
std::vector<std::vector<std::pair<int, int>>> link_rounds(const PipelineSchedule& schedule);

}  // namespace hearth
