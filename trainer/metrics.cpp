#include "trainer/metrics.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace hearth {
namespace {

// JSON has no NaN: null says that there is no number.
std::string number(double value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

// ", \"prefix name\": value" of each.
std::string members(const NamedValues& values, std::string_view prefix) {
  std::string text;
  for (const auto& [name, value] : values) text += fmt::format(", \"{}{}\": {}", prefix, name, number(value));
  return text;
}

// " name=value" of each, as log lines have them.
std::string words(const NamedValues& values) {
  std::string text;
  for (const auto& [name, value] : values) {
    std::string word = name;
    std::replace(word.begin(), word.end(), ' ', '_');
    text += fmt::format(" {}={:.4f}", word, value);
  }
  return text;
}

std::string time_left(double seconds) {
  const auto total = static_cast<int64_t>(seconds);
  return total >= 3600 ? fmt::format("{}h{:02}m", total / 3600, total / 60 % 60)
                       : fmt::format("{}m{:02}s", total / 60, total % 60);
}

}  // namespace

std::string StepMetrics::to_json() const {
  return fmt::format(
      "{{\"step\": {}, \"lm loss\": {}, \"grad_norm\": {}, \"learning_rate\": {}, \"tokens/s\": {:.1f}, "
      "\"tflops\": {:.4f}, \"mfu(%)\": {}, \"consumed_tokens\": {}, \"skipped_iterations\": {}{}}}",
      step, number(lm_loss), number(grad_norm), number(learning_rate), tokens_per_second, tflops,
      mfu_percent ? fmt::format("{:.2f}", *mfu_percent) : "null", consumed_tokens, skipped_iterations,
      members(objective, ""));
}

std::string ValidationMetrics::to_json() const {
  return fmt::format(
      "{{\"step\": {}, \"validation loss\": {}, \"validation perplexity\": {}, \"validation tokens\": {}{}}}",
      step, number(loss), number(std::exp(loss)), num_tokens, members(objective, "validation "));
}

JsonlWriter::JsonlWriter(FileSystem& fs, const std::string& path, int64_t keep_up_to_step) {
  if (fs.exists(path)) {
    const std::string text = fs.read_text(path);
    std::string kept;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = text.find('\n', begin);
      if (end == std::string::npos) break;  // torn by a kill
      const auto line =
          nlohmann::json::parse(text.substr(begin, end - begin), nullptr, /*allow_exceptions=*/false);
      if (line.is_object() && line.value("step", int64_t{0}) <= keep_up_to_step)
        kept += text.substr(begin, end + 1 - begin);
      begin = end + 1;
    }
    if (kept != text) fs.write_atomically(path, kept);
  }
  file_ = fs.create(path, CreateMode::Append);
}

void JsonlWriter::write(const std::string& json) {
  file_->write(json + "\n");
}

Progress::Progress(Log& log, int64_t first_step, int64_t last_step)
    : log_(log), last_step_(last_step), terminal_(::isatty(STDERR_FILENO) == 1) {
  log_.info("event=train_begin step={} train_iters={}", first_step, last_step);
}

void Progress::step(const StepMetrics& m) {
  if (!terminal_) {
    log_.info(
        "step={}/{} lm_loss={:.6f} grad_norm={:.4f} learning_rate={:.4e} tokens/s={:.0f} tflops={:.2f} "
        "skipped={}{}",
        m.step, last_step_, m.lm_loss, m.grad_norm, m.learning_rate, m.tokens_per_second, m.tflops,
        m.skipped_iterations, words(m.objective));
    return;
  }
  const double done = last_step_ > 0 ? static_cast<double>(m.step) / static_cast<double>(last_step_) : 1.0;
  const double tokens_per_step =
      m.step > 0 ? static_cast<double>(m.consumed_tokens) / static_cast<double>(m.step) : 0;
  const double left = m.tokens_per_second > 0
                          ? static_cast<double>(last_step_ - m.step) * tokens_per_step / m.tokens_per_second
                          : 0.0;
  const int filled = static_cast<int>(done * 20);
  fmt::print(
      stderr, "\r\x1b[K[{}{}] step {}/{}  loss {:.4f}  lr {:.2e}  {:.0f} tok/s  {:.1f} TFLOP/s  {} left",
      std::string(static_cast<size_t>(filled), '#'), std::string(static_cast<size_t>(20 - filled), '.'),
      m.step, last_step_, m.lm_loss, m.learning_rate, m.tokens_per_second, m.tflops, time_left(left));
  std::fflush(stderr);
  line_open_ = true;
}

void Progress::validation(const ValidationMetrics& m) {
  finish();
  log_.info("event=validation step={} loss={:.6f} perplexity={:.4f} tokens={}{}", m.step, m.loss,
            std::exp(m.loss), m.num_tokens, words(m.objective));
}

void Progress::finish() {
  if (line_open_) fmt::print(stderr, "\n");
  line_open_ = false;
}

}  // namespace hearth
