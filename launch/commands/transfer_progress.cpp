#include "launch/commands/transfer_progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <iostream>

#include "base/error.h"
#include "launch/command.h"

namespace hearth {

std::optional<DType> parse_transfer_dtype(const std::string& name) {
  if (name.empty()) return std::nullopt;
  const auto dtype = dtype_from_config(name);
  HEARTH_REQUIRE(dtype == DType::BF16 || dtype == DType::F32 || dtype == DType::F16,
                 "--dtype '{}': expected bf16, fp32 or fp16", name);
  return dtype;
}

TransferProgress::TransferProgress(const CommandContext& context, std::string verb)
    : verb_(std::move(verb)),
      silent_(context.job.control->rank() != 0),
      terminal_(context.environment.stderr_is_terminal),
      start_(Clock::now()),
      last_(start_) {}

void TransferProgress::update(int64_t done, int64_t total) {
  if (silent_ || total <= 0) return;
  const auto now = Clock::now();
  const auto pause = terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10'000);
  if (now - last_ < pause) return;
  last_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done) / std::max(seconds, 1e-3);
  const double left = static_cast<double>(std::max<int64_t>(total - done, 0)) / std::max(rate, 1.0);
  std::cerr << (terminal_ ? "\r" : "")
            << fmt::format("{}  {:5.1f} %  {:.2f} of {:.2f} GB  {:.0f} MB/s  {:.0f} s left", verb_,
                           100.0 * static_cast<double>(done) / static_cast<double>(total),
                           static_cast<double>(done) / 1e9, static_cast<double>(total) / 1e9, rate / 1e6,
                           left)
            << (terminal_ ? "\033[K" : "\n") << std::flush;
  printed_ = true;
}

void TransferProgress::finish() {
  if (printed_ && terminal_) std::cerr << "\n" << std::flush;
}

}  // namespace hearth
