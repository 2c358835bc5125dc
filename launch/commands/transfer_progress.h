// What `import` and `export` share: the --dtype argument and a progress line on stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "base/dtype.h"

namespace hearth {

struct CommandContext;

// "" -> none; "bf16", "fp32", "fp16" (or torch's long names); anything else is Error{Usage}.
std::optional<DType> parse_transfer_dtype(const std::string& name);

// One line on rank 0's stderr, rewritten at most five times a second on a terminal and every ten seconds
// elsewhere.
class TransferProgress {
 public:
  TransferProgress(const CommandContext& context, std::string verb);
  void update(int64_t done, int64_t total);  // bytes of this rank
  void finish();                             // ends the line

 private:
  using Clock = std::chrono::steady_clock;
  std::string verb_;
  bool silent_, terminal_, printed_ = false;
  Clock::time_point start_, last_;
};

}  // namespace hearth
