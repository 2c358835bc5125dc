// The `optimizer` section of the experiment file: AdamW (Loshchilov & Hutter 2019) and the learning-rate
// schedule. Names are those of Megatron-LM.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "base/config_visit.h"

namespace hearth {

struct OptimizerConfig {
  double lr = 3e-4;
  double min_lr = 3e-5;
  std::string lr_decay_style = "cosine";
  int64_t lr_warmup_iters = 100;
  std::optional<int64_t> lr_decay_iters;  // the schedule's horizon; does not move when a run is cut short
  int64_t lr_wsd_decay_iters = 0;
  double weight_decay = 0.1;  // decoupled; not applied to 1-D parameters
  double adam_beta1 = 0.9, adam_beta2 = 0.95;
  double adam_eps = 1e-8;
  double clip_grad = 1.0;
  bool operator==(const OptimizerConfig&) const = default;

  // Steps from 0 to the end of the decay.
  int64_t decay_horizon(int64_t train_iters) const { return lr_decay_iters.value_or(train_iters); }

  template <class V>
  void visit(V&& v) {
    v("lr", lr, OnResume::MustConfirm, "peak rate, reached after lr_warmup_iters");
    v("min_lr", min_lr, OnResume::MustConfirm, "rate at the end of the decay and after it");
    v("lr_decay_style", lr_decay_style, OnResume::MustConfirm, "cosine | linear | constant | wsd");
    v("lr_warmup_iters", lr_warmup_iters, OnResume::MustConfirm, "steps of linear warm-up from 0");
    v("lr_decay_iters", lr_decay_iters, OnResume::MayChange,
      "step at which the decay ends, warm-up included; null = training.train_iters");
    v("lr_wsd_decay_iters", lr_wsd_decay_iters, OnResume::MayChange,
      "wsd: steps of the last, decaying phase; it ends at lr_decay_iters");
    v("weight_decay", weight_decay, OnResume::MustConfirm, "decoupled; not applied to 1-D parameters");
    v("adam_beta1", adam_beta1, OnResume::MustConfirm, "decay of the gradient's running mean");
    v("adam_beta2", adam_beta2, OnResume::MustConfirm, "decay of the squared gradient's running mean");
    v("adam_eps", adam_eps, OnResume::MustConfirm, "added to the root of the second moment");
    v("clip_grad", clip_grad, OnResume::MustConfirm, "largest global norm of the gradient; 0 = no clipping");
  }
  void validate(ConfigErrors& e) const {
    e.require(std::isfinite(lr) && lr > 0, "lr", "must be finite and > 0, got {}", lr);
    e.require(std::isfinite(min_lr) && min_lr >= 0, "min_lr", "must be finite and >= 0, got {}", min_lr);
    e.one_of(lr_decay_style, "lr_decay_style", {"cosine", "linear", "constant", "wsd"});
    e.require(lr_warmup_iters >= 0, "lr_warmup_iters", "must be >= 0, got {}", lr_warmup_iters);
    e.require(lr_decay_iters.value_or(1) > 0, "lr_decay_iters", "must be > 0 or null, got {}",
              lr_decay_iters.value_or(1));
    e.require(lr_wsd_decay_iters >= 0, "lr_wsd_decay_iters", "must be >= 0, got {}", lr_wsd_decay_iters);
    e.require(std::isfinite(weight_decay) && weight_decay >= 0, "weight_decay",
              "must be finite and >= 0, got {}", weight_decay);
    e.require(0 <= adam_beta1 && adam_beta1 < 1, "adam_beta1", "must be in [0, 1), got {}", adam_beta1);
    e.require(0 <= adam_beta2 && adam_beta2 < 1, "adam_beta2", "must be in [0, 1), got {}", adam_beta2);
    e.require(std::isfinite(adam_eps) && adam_eps > 0, "adam_eps", "must be finite and > 0, got {}",
              adam_eps);
    e.require(std::isfinite(clip_grad) && clip_grad >= 0, "clip_grad", "must be finite and >= 0, got {}",
              clip_grad);
  }
};

}  // namespace hearth
