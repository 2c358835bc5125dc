// What a run says about memory: measured peaks beside the estimate, after the first two steps and at the end,
// on every rank; at the end the largest of all ranks for metrics.jsonl. Borrows the log and the ledger. Not
// thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/log.h"
#include "parallel/control_plane.h"
#include "trainer/memory_estimate.h"
#include "trainer/model/memory_ledger.h"

namespace hearth {

class MemoryReport {
 public:
  // Peaks count from here on.
  MemoryReport(Log& log, MemoryLedger& ledger, const MemoryEstimate& estimate);
  // After each training step; the first step allocates what the second one finds, later ones are like it.
  void step(int64_t step);
  // Collective. A line for metrics.jsonl: each part of the rank that held most of it; empty where no step
  // ran.
  std::optional<std::string> finish(ControlPlane& control, int64_t step);

 private:
  void write(int64_t step);

  Log& log_;
  MemoryLedger& ledger_;
  MemoryEstimate estimate_;
  int64_t steps_ = 0;
};

}  // namespace hearth
