#include "trainer/optimizer/lr_schedule.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace hearth {

double learning_rate(const OptimizerConfig& config, int64_t train_iters, int64_t step) {
  constexpr double kPi = 3.14159265358979323846;
  const int64_t horizon = config.decay_horizon(train_iters);
  const int64_t warmup = config.lr_warmup_iters;
  // The first update already moves (1/warmup of the peak); the first one after the warm-up has the peak.
  if (step < warmup) return config.lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (config.lr_decay_style == "constant") return config.lr;
  if (step >= horizon) return config.min_lr;
  const double span = config.lr - config.min_lr;
  if (config.lr_decay_style == "wsd") {
    const int64_t left = horizon - step;
    if (left >= config.lr_wsd_decay_iters) return config.lr;
    return config.min_lr + span * static_cast<double>(left) / static_cast<double>(config.lr_wsd_decay_iters);
  }
  const double progress =
      static_cast<double>(step - warmup) / static_cast<double>(std::max<int64_t>(1, horizon - warmup));
  if (config.lr_decay_style == "linear") return config.min_lr + span * (1.0 - progress);
  if (config.lr_decay_style == "cosine") return config.min_lr + span * 0.5 * (1.0 + std::cos(kPi * progress));
  fail(ErrorKind::Config, "optimizer.lr_decay_style: '{}' is not known", config.lr_decay_style);
}

}  // namespace hearth
