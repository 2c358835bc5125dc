// Section `parallel:` of the experiment file: how the ranks of a job share one model and one batch.
// data_parallel_size is not a key: it is the world size over the product of the model-parallel sizes
// (parallel/mesh.h). Every layout key may change at a resume: a checkpoint names global tensors and loads
// under any layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/config_visit.h"

namespace hearth {

struct ParallelConfig {
  int64_t tensor_model_parallel_size = 1;
  int64_t pipeline_model_parallel_size = 1;
  int64_t virtual_pipeline_model_parallel_size = 1;  // model chunks per pipeline stage
  std::string pipeline_schedule = "1f1b";
  std::vector<int64_t> pipeline_model_parallel_layout;  // layers per virtual stage; empty = balanced by flops
  int64_t context_parallel_size = 1;
  std::string cp_comm_type = "p2p";  // p2p: ring; a2a: heads for sequence (Ulysses)
  int64_t expert_model_parallel_size = 1;
  bool sequence_parallel = true;  // has an effect only with tensor_model_parallel_size > 1
  int64_t zero_stage = 1;
  int64_t num_distributed_optimizer_instances =
      1;  // copies of the sharded state; see parallel/zero/hierarchy.h
  // Gradient bucket, MiB of fp32: large enough for full link bandwidth, small enough to overlap; see
  // zero/bucket_plan.h
  double bucket_size_mb = 100.0;
  double collective_timeout_s = 300.0;  // deadline of every collective; passing it ends the job
  bool operator==(const ParallelConfig&) const = default;

  template <class V>
  void visit(V&& v) {
    using enum OnResume;
    v("tensor_model_parallel_size", tensor_model_parallel_size, MayChange,
      "ranks that share each layer's matrices");
    v("pipeline_model_parallel_size", pipeline_model_parallel_size, MayChange, "pipeline stages");
    v("virtual_pipeline_model_parallel_size", virtual_pipeline_model_parallel_size, MayChange,
      "model chunks per pipeline stage");
    v("pipeline_schedule", pipeline_schedule, MayChange, "1f1b, interleaved, zb_h1, zbv or dualpipev");
    v("pipeline_model_parallel_layout", pipeline_model_parallel_layout, MayChange,
      "layers per virtual stage, in model order; empty = balanced, the head's cost counted");
    v("context_parallel_size", context_parallel_size, MayChange, "ranks that share each sequence");
    v("cp_comm_type", cp_comm_type, MayChange,
      "p2p (ring attention) or a2a (Ulysses: all-to-all between heads and sequence)");
    v("expert_model_parallel_size", expert_model_parallel_size, MayChange, "ranks that share the experts");
    v("sequence_parallel", sequence_parallel, MayChange,
      "shard norms and residuals along the sequence inside a tensor-parallel group");
    v("zero_stage", zero_stage, MayChange,
      "what data-parallel ranks shard: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too");
    v("num_distributed_optimizer_instances", num_distributed_optimizer_instances, MayChange,
      "copies of the sharded state: as many as nodes keeps the sharding inside each node; zero_stage 1 to 3");
    v("bucket_size_mb", bucket_size_mb, MayChange, "size of a gradient bucket in MiB (fp32)");
    v("collective_timeout_s", collective_timeout_s, MayChange, "deadline of every collective in seconds");
  }

  void validate(ConfigErrors& e) const;
};

}  // namespace hearth
