// hearth data prepare INPUT... --tokenizer T --output DIR: text or token files -> HDF5 token shards
// (data/prepare.h).
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>

#include "data/prepare.h"
#include "launch/command.h"
#include "launch/commands/commands.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;

// One line that is redrawn on a terminal; otherwise a plain line at most every ten seconds and at the end of
// a phase.
class ProgressLine {
 public:
  ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0) {}
  void show(const PrepareProgress& progress) {
    const auto now = Clock::now();
    if (!started_ || progress.phase != phase_) {
      if (started_ && terminal_) std::cerr << "\n";
      started_ = true, phase_ = progress.phase, begun_ = last_ = now;
    }
    const bool ended = progress.done >= progress.total;
    if (!terminal_ && !ended && now - last_ < std::chrono::seconds(10)) return;
    if (!terminal_ && ended && phase_ == PreparePhase::Digest) return;  // a log needs no line for it
    last_ = now;
    const std::string line = text(progress, std::chrono::duration<double>(now - begun_).count());
    if (terminal_) {
      std::cerr << "\r\x1b[K" << line << std::flush;  // to column 0, clear the line
    } else {
      std::cerr << line << std::endl;
    }
  }
  void finish() {
    if (started_ && terminal_) std::cerr << std::endl;
  }

 private:
  std::string text(const PrepareProgress& progress, double seconds) const {
    const double share =
        progress.total > 0 ? static_cast<double>(progress.done) / static_cast<double>(progress.total) : 1;
    const char* names[] = {"digest  ", "tokenize", "write   "};
    std::string bar;
    if (terminal_) {
      const auto filled = static_cast<size_t>(share * 24);
      bar = " [" + std::string(filled, '#') + std::string(24 - filled, '.') + "]";
    }
    const double rate = seconds > 0 ? static_cast<double>(progress.done) / seconds : 0;
    const std::string speed = phase_ == PreparePhase::Write ? fmt::format("{:.1f} Mtokens/s", rate / 1e6)
                                                            : fmt::format("{:.1f} MB/s", rate / 1e6);
    const auto left =
        static_cast<int64_t>(rate > 0 ? static_cast<double>(progress.total - progress.done) / rate : 0);
    return fmt::format("{}{} {:3.0f}%  {}  {} documents  {} tokens  {}:{:02d}:{:02d} left",
                       names[static_cast<int>(phase_)], bar, share * 100, speed, progress.num_documents,
                       progress.num_tokens, left / 3600, left / 60 % 60, left % 60);
  }
  bool terminal_, started_ = false;
  PreparePhase phase_ = PreparePhase::Digest;
  Clock::time_point begun_, last_;
};

void print_report(const PrepareReport& report) {
  if (report.num_ignored_files > 0)
    std::cerr << report.num_ignored_files << " files with other endings ignored\n";
  if (report.num_known_sources > 0) {
    std::cerr << report.num_known_sources << " files left out: the dataset has their content already\n";
  }
  if (report.num_reused_units > 0) {
    std::cerr << report.num_reused_units << " of " << report.num_units
              << " work units kept from the interrupted run\n";
  }
  if (report.num_skipped_lines > 0)
    std::cerr << report.num_skipped_lines << " bad lines left out (--skip-bad)\n";
  if (report.num_empty_documents > 0)
    std::cerr << report.num_empty_documents << " empty documents left out\n";
  if (report.num_sources == 0) {
    std::cout << "nothing new\n";
    return;
  }
  std::cout << fmt::format("{} documents, {} tokens from {} files in {} new shards\n", report.num_documents,
                           report.num_tokens, report.num_sources, report.num_shards);
  for (const auto& folder : report.datasets) std::cout << "dataset " << folder << "\n";
}

}  // namespace

void add_data_prepare_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<PrepareOptions>();
  CLI::App* command = parent.add_subcommand(
      "prepare",
      "Tokenize .txt, .jsonl (also .gz, .zst) and .h5 files into shards; a second call appends new files");
  command->add_option("inputs", options->inputs, "Files and folders (searched recursively)")->required();
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "tokenizer.json, tokenizer.model, or a directory with one")
      ->required();
  command->add_option("--output", options->output, "Folder of the dataset; dataset.json is written there")
      ->required();
  command
      ->add_option("--workers", options->num_workers,
                   "Threads; the output does not depend on it (default: all cores)")
      ->check(CLI::Range(1, 4096));
  command->add_option("--seed", options->seed, "Seed of the shuffle of documents")->capture_default_str();
  command->add_option("--text-field", options->text_field, "Field of a .jsonl line that holds the text")
      ->capture_default_str();
  command
      ->add_option("--validation-fraction", options->validation_fraction,
                   "Share of documents held out; writes DIR/train and DIR/validation")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--dataset", options->token_dataset, "Dataset of .h5 files that holds the token ids")
      ->capture_default_str();
  command->add_flag_callback(
      "--skip-bad", [options] { options->bad_lines = BadLines::Skip; },
      "Leave out malformed .jsonl lines and count them, instead of stopping at the first");
  command->add_flag_callback(
      "--split-documents", [options] { options->text_documents = TextDocuments::Paragraphs; },
      "In .txt files a blank line ends a document (default: a file is one document)");
  command->callback([options, &context] {
    ProgressLine line;
    const PrepareReport report =
        prepare_dataset(context.fs, *options, [&](const PrepareProgress& progress) { line.show(progress); });
    line.finish();
    print_report(report);
  });
}

}  // namespace hearth
