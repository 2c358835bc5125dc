#include "trainer/memory_report.h"

#include <nlohmann/json.hpp>

namespace hearth {

MemoryReport::MemoryReport(Log& log, MemoryLedger& ledger, const MemoryEstimate& estimate)
    : log_(log), ledger_(ledger), estimate_(estimate) {
  ledger_.begin();
}

void MemoryReport::step(int64_t step) {
  if (++steps_ <= 2) write(step);
}

void MemoryReport::write(int64_t step) {
  const MemoryUse peak = ledger_.peak();
  log_.info(
      "event=memory step={} weights={} gradients={} optimizer={} activations={} estimated_weights={} "
      "estimated_gradients={} estimated_optimizer={} estimated_activations={} estimated_working={}",
      step, peak.weights, peak.gradients, peak.optimizer, peak.activations, estimate_.weights,
      estimate_.gradients, estimate_.optimizer, estimate_.activations(), estimate_.working);
}

std::optional<std::string> MemoryReport::finish(ControlPlane& control, int64_t step) {
  if (steps_ == 0) return std::nullopt;
  if (steps_ > 2) write(step);
  const MemoryUse peak = ledger_.peak();
  const auto largest = [&](int64_t bytes, const char* site) { return control.all_reduce_max(bytes, site); };
  return nlohmann::json{{"step", step},
                        {"peak_memory_bytes",
                         {{"weights", largest(peak.weights, "memory.weights")},
                          {"gradients", largest(peak.gradients, "memory.gradients")},
                          {"optimizer", largest(peak.optimizer, "memory.optimizer")},
                          {"activations", largest(peak.activations, "memory.activations")}}}}
      .dump();
}

}  // namespace hearth
