// hearth data train-tokenizer INPUT... --vocab-size N --output DIR: a byte-level BPE tokenizer from text.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "data/train_tokenizer.h"
#include "launch/command.h"
#include "launch/commands/commands.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;

// One line that is redrawn on a terminal, otherwise a plain line every ten seconds.
class ProgressLine {
 public:
  explicit ProgressLine(bool terminal) : terminal_(terminal) {}
  void show(const TrainTokenizerProgress& progress) {
    const auto now = Clock::now();
    if (now - last_ < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::seconds(10))) return;
    last_ = now;
    const double share =
        progress.total > 0 ? static_cast<double>(progress.done) / static_cast<double>(progress.total) : 1;
    const std::string line =
        progress.phase == TrainTokenizerPhase::Count
            ? fmt::format("count words {:3.0f}% of {:.1f} MB", share * 100,
                          static_cast<double>(progress.total) / 1e6)
            : fmt::format("merge pairs {:3.0f}% ({} of {})", share * 100, progress.done, progress.total);
    drawn_ = true;
    std::cerr << (terminal_ ? "\r\x1b[K" : "") << line << (terminal_ ? "" : "\n") << std::flush;
  }
  void finish() const {
    if (drawn_ && terminal_) std::cerr << std::endl;
  }

 private:
  bool terminal_, drawn_ = false;
  Clock::time_point last_ = Clock::now();
};

void run_train_tokenizer(const TrainTokenizerOptions& options, const CommandContext& context) {
  ProgressLine line(context.environment.stderr_is_terminal);
  const auto report = train_tokenizer(context.fs, options,
                                      [&](const TrainTokenizerProgress& progress) { line.show(progress); });
  line.finish();
  if (report.vocab_size < options.training.vocab_size)
    std::cerr << fmt::format("the text has no more pairs that occur {} times: {} tokens instead of {}\n",
                             options.training.min_frequency, report.vocab_size, options.training.vocab_size);
  std::cout << fmt::format("{} tokens from {} documents in {} files ({} distinct words)\ntokenizer {}\n",
                           report.vocab_size, report.num_documents, report.num_sources, report.num_words,
                           options.output);
}

}  // namespace

void add_data_train_tokenizer_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<TrainTokenizerOptions>();
  CLI::App* command = parent.add_subcommand(
      "train-tokenizer", "Train a byte-level BPE tokenizer on .txt and .jsonl files (also .gz, .zst)");
  command->add_option("inputs", options->inputs, "Files and folders (searched recursively)")->required();
  command
      ->add_option("--vocab-size", options->training.vocab_size,
                   "Number of tokens, with the 256 bytes and the special tokens")
      ->required();
  command->add_option("--output", options->output, "Folder for tokenizer.json and tokenizer_config.json")
      ->required();
  command->add_option("--text-field", options->text_field, "Field of a .jsonl line that holds the text")
      ->capture_default_str();
  command
      ->add_option("--workers", options->num_workers,
                   "Threads; the output does not depend on it (default: all cores)")
      ->check(CLI::Range(1, 4096));
  command->callback([options, &context] { run_train_tokenizer(*options, context); });
}

}  // namespace hearth
