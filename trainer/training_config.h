// The `training` section of the experiment file: how long, in what batches, and how often the loop looks up.
#pragma once

#include <cstdint>
#include <string>

#include "base/config_visit.h"

namespace hearth {

struct TrainingConfig {
  int64_t train_iters = 0;  // required; 0 = not given
  int64_t micro_batch_size = 4;
  int64_t global_batch_size = 64;
  int64_t seed = 1234;
  int64_t eval_interval = 100;
  int64_t eval_iters = 10;
  int64_t log_interval = 1;
  bool deterministic_mode = false;
  std::string cuda_graph = "auto";
  std::string attention_backend = "auto";
  bool operator==(const TrainingConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("train_iters", train_iters, OnResume::MayChange, "optimizer steps of the whole run; required");
    v("micro_batch_size", micro_batch_size, OnResume::MayChange,
      "samples of one forward and backward on one rank");
    v("global_batch_size", global_batch_size, OnResume::MustConfirm,
      "samples of one optimizer step over all ranks");
    v("seed", seed, OnResume::Frozen, "of initial weights and of the sample order");
    v("eval_interval", eval_interval, OnResume::MayChange, "steps between evaluations; 0 = never");
    v("eval_iters", eval_iters, OnResume::MayChange, "global batches of one evaluation");
    v("log_interval", log_interval, OnResume::MayChange, "steps between lines of metrics.jsonl");
    v("deterministic_mode", deterministic_mode, OnResume::MayChange,
      "bit-for-bit repeatable on GPUs, at a cost; the CPU always is");
    v("cuda_graph", cuda_graph, OnResume::MayChange,
      "auto | on | off: a step's forward and backward as one CUDA graph, on one GPU; auto times both ways "
      "and keeps the faster");
    v("attention_backend", attention_backend, OnResume::MayChange,
      "auto, or the kernels that attend on GPUs: cudnn (bf16, heads of 64 or 128; not with "
      "deterministic_mode), "
      "flash (FlashAttention-2), aten (LibTorch's choice); where ranks share a sequence, cudnn is for "
      "samples "
      "of one document, and all else is flash");
  }
  void validate(ConfigErrors& e) const {
    e.require(train_iters > 0, "train_iters", "is required and must be > 0, got {}", train_iters);
    e.require(micro_batch_size > 0, "micro_batch_size", "must be > 0, got {}", micro_batch_size);
    e.require(global_batch_size > 0, "global_batch_size", "must be > 0, got {}", global_batch_size);
    e.require(seed >= 0, "seed", "must be >= 0, got {}", seed);
    e.require(eval_interval >= 0, "eval_interval", "must be >= 0 (0 = never), got {}", eval_interval);
    e.require(eval_iters > 0, "eval_iters", "must be > 0, got {}", eval_iters);
    e.one_of(cuda_graph, "cuda_graph", {"auto", "on", "off"});
    e.one_of(attention_backend, "attention_backend", {"auto", "cudnn", "flash", "aten"});
    e.require(log_interval > 0, "log_interval", "must be > 0, got {}", log_interval);
  }
};

}  // namespace hearth
