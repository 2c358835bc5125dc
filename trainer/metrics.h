// What a run reports: one JSON line per logged step in metrics.jsonl, and a line of progress for people.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/file_system.h"
#include "base/log.h"

namespace hearth {

// What an objective reports beside the loss, in its order.
using NamedValues = std::vector<std::pair<std::string, double>>;

struct StepMetrics {
  int64_t step = 0;  // steps done, this one included
  double lm_loss = 0, grad_norm = 0, learning_rate = 0;
  double tokens_per_second = 0;
  double tflops = 0;                  // of one rank, attention counted causal
  std::optional<double> mfu_percent;  // of the device's dense bf16 peak; empty where that is not known
  int64_t consumed_tokens = 0, skipped_iterations = 0;
  NamedValues objective;
  std::string to_json()
      const;  // field names of the design: "lm loss", "grad_norm", ...; losses with 17 digits
};

struct ValidationMetrics {
  int64_t step = 0;
  double loss = std::numeric_limits<double>::quiet_NaN();  // NaN: no data.validation
  int64_t num_tokens = 0;
  NamedValues objective;
  std::string to_json() const;
};

// Appends lines to a file; each line is one write, so that a kill tears at most the last one. Rank 0 only.
class JsonlWriter {
 public:
  // Keeps the lines of `path` whose "step" is at most `keep_up_to_step` (a resumed run repeats the later
  // ones) and drops a torn last line.
  JsonlWriter(FileSystem& fs, const std::string& path, int64_t keep_up_to_step);
  void write(const std::string& json);

 private:
  std::unique_ptr<WritableFile> file_;
};

// Progress on stderr: one line that rewrites itself on a terminal, log lines otherwise. Rank 0 only.
class Progress {
 public:
  Progress(Log& log, int64_t first_step, int64_t last_step);
  void step(const StepMetrics& metrics);
  void validation(const ValidationMetrics& metrics);
  void finish();  // ends the rewritten line

 private:
  Log& log_;
  int64_t last_step_;
  bool terminal_;
  bool line_open_ = false;
};

}  // namespace hearth
