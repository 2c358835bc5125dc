// hearth data prepare INPUT... --tokenizer T --output DIR: text, token files or conversations -> HDF5 token
// shards (data/prepare.h).
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "data/prepare.h"
#include "launch/command.h"
#include "launch/commands/commands.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kFormats = "text|messages|alpaca|sharegpt|prompt_completion|preference";

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
  const auto note_long = [&](int64_t count, const char* what) {
    if (count == 0) return;
    std::cerr << fmt::format("{} {} longer than {} tokens {}\n", count,
                             report.kind == "preference" ? "pairs" : "documents", report.pack_length, what);
  };
  note_long(report.num_cut_documents, "cut (--drop-long leaves them out)");
  note_long(report.num_dropped_documents, "left out (--drop-long)");
  if (report.num_untrained_documents > 0)
    std::cerr << report.num_untrained_documents << " records hold no token that is learnt\n";
  if (report.num_sources == 0) {
    std::cout << "nothing new\n";
    return;
  }
  std::cout << fmt::format("{} documents, {} tokens from {} files in {} new shards\n", report.num_documents,
                           report.num_tokens, report.num_sources, report.num_shards);
  if (report.kind != "text") {
    const auto share = [&](int64_t part, int64_t whole) {
      return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
    };
    std::cout << fmt::format("{} tokens ({:.1f}%) are learnt\n", report.num_trained_tokens,
                             share(report.num_trained_tokens, report.num_tokens));
    if (report.pack_length > 0) {
      const int64_t all = report.num_tokens + report.num_padding_tokens;
      std::cout << fmt::format("packed into {} windows of {} tokens, {:.2f}% of them filled\n",
                               all / report.pack_length, report.pack_length, share(report.num_tokens, all));
    }
  }
  for (const auto& folder : report.datasets) std::cout << "dataset " << folder << "\n";
}

// Options of conversations; their names as in LLaMA-Factory and TRL where these have them.
void add_conversation_options(CLI::App& command, ConversationOptions& options) {
  command
      .add_option_function<std::string>(
          "--format",
          [&options](const std::string& given) {
            const auto format = record_format_from(given);
            HEARTH_REQUIRE(format.has_value(), "--format is '{}', expected one of {}", given, kFormats);
            options.format = *format;
          },
          "What a record holds: text, or a conversation of one of these kinds (then .json files too)")
      ->option_text(fmt::format("{} [text]", kFormats));
  const std::string group = "Conversations (--format other than text)";
  command
      .add_option("--messages-field", options.fields.messages,
                  "Field of a record that holds the turns (default: messages; sharegpt: conversations)")
      ->group(group);
  command.add_option("--prompt-field", options.fields.prompt, "Field that holds the prompt")
      ->capture_default_str()
      ->group(group);
  command.add_option("--response-field", options.fields.response, "Field that holds what answers it")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--chat-template", options.chat_template,
                  "Jinja file (default: the tokenizer's own); none: prompt and answer without markup")
      ->group(group);
  command
      .add_option("--template-variable", options.template_variables,
                  "key=value for the template, value as JSON, e.g. enable_thinking=false; may be repeated")
      ->group(group)
      ->allow_extra_args(false);
  CLI::Option* all = command
                         .add_flag_callback(
                             "--train-on-prompt", [&options] { options.train_on = TrainOn::Everything; },
                             "Learn every token of a conversation (default: the assistant's turns)")
                         ->group(group);
  command
      .add_flag_callback(
          "--last-turn-only", [&options] { options.train_on = TrainOn::LastTurn; },
          "Learn the assistant's last turn only")
      ->group(group)
      ->excludes(all);
  CLI::Option* packed =
      command
          .add_option("--pack-length", options.pack_length,
                      "Tokens per packed window: data.seq_length of the run, or a divisor of it")
          ->group(group);
  command
      .add_flag_callback(
          "--no-packing", [&options] { options.pack_length = 0; },
          "Conversations one behind the other; windows cut through them")
      ->group(group)
      ->excludes(packed);
  command
      .add_flag_callback(
          "--drop-long", [&options] { options.long_documents = LongDocuments::Drop; },
          "Leave out conversations longer than --pack-length, instead of cutting them")
      ->group(group)
      ->needs(packed);
}

}  // namespace

void add_data_prepare_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<PrepareOptions>();
  CLI::App* command = parent.add_subcommand("prepare",
                                            "Tokenize text, conversations (.txt, .jsonl, .json, also .gz, "
                                            ".zst) and .h5 files into shards; a second "
                                            "call appends new files");
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
      "Leave out malformed records and count them, instead of stopping at the first");
  command->add_flag_callback(
      "--split-documents", [options] { options->text_documents = TextDocuments::Paragraphs; },
      "In .txt files a blank line ends a document (default: a file is one document)");
  add_conversation_options(*command, options->conversations);
  command->callback([options, &context] {
    ProgressLine line;
    const PrepareReport report =
        prepare_dataset(context.fs, *options, [&](const PrepareProgress& progress) { line.show(progress); });
    line.finish();
    print_report(report);
  });
}

}  // namespace hearth
