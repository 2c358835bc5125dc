// One small model trained under any layout inside one process, on synthetic samples: what the tests of
// parallel layouts share. A process goes from layout to layout; starting 8 ranks for each would cost seconds.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainer/parallel_model.h"

namespace hearth::testing {

// Grouped queries, a vocabulary that no tensor-parallel size divides. `Tied` has the family switches of
// llama, `QkNormAndBias` those of qwen2 and qwen3 together, and an untied head.
enum class Shape { Tied, QkNormAndBias };

struct Layout {
  int tp = 1, pp = 1, cp = 1, dp = 1;
  int64_t zero_stage = 0;
  std::string schedule = "1f1b";
  std::string cp_comm_type = "p2p";
  Shape shape = Shape::Tied;
  int64_t instances = 1;                // copies of the sharded state
  std::string recompute = "selective";  // or "none", "full" (of every 3 layers), "core_attn"
  bool rows_whole = false;              // sequence_parallel: false
  bool uneven = false;  // a written split of layers, one more on the first virtual stage than on the last
  int ranks() const { return tp * pp * cp * dp; }
  int chunks() const;  // of the model on a pipeline rank
  std::string describe() const;
};

struct Curve {
  double start_seconds = 0;  // to make the communicators
  std::vector<double> losses;
  std::map<std::string, at::Tensor>
      gradients;  // fp32, whole tensors: what this rank counts of step 1, zero elsewhere
};

struct RunOptions {
  int64_t steps = 20;
  DType dtype = DType::F32, grads_dtype = DType::F32;
  at::Device device = at::kCPU;
  double clip_grad = 1.0;
  int64_t layers = 16;        // two a rank for the widest pipeline of two chunks
  int64_t global_batch = 16;  // micro-batches of one sample
  int64_t least_cut = 0;      // see ModelContext; 0: every product that can be cut is
};

ExperimentConfig layout_config(const Layout& layout, const RunOptions& options);
// Collective over the job, whose size is layout.ranks().
Curve run_layout(Job& job, const Layout& layout, const RunOptions& options);
// The same on this rank alone; touches no other rank.
Curve run_alone(const Layout& layout, const RunOptions& options);

}  // namespace hearth::testing
