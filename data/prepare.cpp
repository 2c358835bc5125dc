#include "data/prepare.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "data/folder_lock.h"
#include "data/prepare_commit.h"
#include "data/shard_writer.h"
#include "data/shuffle.h"
#include "data/workers.h"

namespace hearth {
namespace {

constexpr int64_t kMinUnitBytes = 1 << 20,
                  kMaxUnitBytes = 32 << 20;     // bounds memory per worker to some hundred MiB
constexpr int64_t kMaxTemplateBytes = 1 << 20;  // the longest real ones have some 20 KB
constexpr auto kProgressInterval = std::chrono::milliseconds(200);

std::string join_path(const std::string& folder, const std::string& name) {
  return name.empty() ? folder : folder + "/" + name;
}

// Passes progress on, at most every kProgressInterval. Thread-safe.
class ProgressMeter {
 public:
  explicit ProgressMeter(const std::function<void(const PrepareProgress&)>& sink) : sink_(sink) {}
  void begin(PreparePhase phase, int64_t total) {
    const std::lock_guard lock(mutex_);
    state_ = {phase, 0, total, state_.num_documents, state_.num_tokens};
    report(std::chrono::steady_clock::now());
  }
  void add(int64_t done, int64_t num_documents = 0, int64_t num_tokens = 0) {
    const std::lock_guard lock(mutex_);
    state_.done += done;
    state_.num_documents += num_documents;
    state_.num_tokens += num_tokens;
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ >= kProgressInterval || state_.done >= state_.total) report(now);
  }

 private:
  void report(std::chrono::steady_clock::time_point now) {
    last_ = now;
    if (sink_) sink_(state_);
  }
  const std::function<void(const PrepareProgress&)>& sink_;
  std::mutex mutex_;
  PrepareProgress state_;
  std::chrono::steady_clock::time_point last_;
};

class Preparation {
 public:
  Preparation(FileSystem& fs, const PrepareOptions& options,
              const std::function<void(const PrepareProgress&)>& progress)
      : fs_(fs), options_(options), meter_(progress) {}

  PrepareReport run() {
    check_options();
    fs_.create_directories(options_.output);
    const FolderLock lock(options_.output);
    finish_interrupted_commit(fs_, options_.output);
    load_tokenizer();
    make_conversation_encoder();
    num_workers_ = options_.num_workers > 0 ? options_.num_workers : available_cores();
    load_existing();
    find_sources();
    for (const auto& folder : folders_) report_.datasets.push_back(join_path(options_.output, folder));
    if (sources_.empty()) {
      fs_.remove_all(work());  // what an abandoned run left
      return report_;
    }
    open_plan();
    tokenize();
    write_shards();
    return report_;
  }

 private:
  std::string work() const { return prepare_work_folder(options_.output); }
  std::string run_path(int64_t unit) const { return fmt::format("{}/run-{:08d}", work(), unit); }
  bool is_split() const { return options_.validation_fraction > 0; }

  void check_options() const {
    HEARTH_REQUIRE(!options_.inputs.empty(), "data prepare: no input given");
    const double fraction = options_.validation_fraction;
    HEARTH_REQUIRE(fraction >= 0 && fraction < 1, "--validation-fraction is {}, expected 0 <= fraction < 1",
                   fraction);
    const ConversationOptions& chat = options_.conversations;
    if (is_chat()) {
      HEARTH_REQUIRE(
          chat.pack_length.has_value(),
          "--format {} needs --pack-length N, the number of tokens that conversations are packed into "
          "(data.seq_length of the training run, or a divisor of it), or --no-packing",
          name(chat.format));
      HEARTH_REQUIRE(
          *chat.pack_length == 0 || (*chat.pack_length >= 2 && *chat.pack_length <= kMaxPackLength),
          "--pack-length is {}, expected 2 to {}", *chat.pack_length, kMaxPackLength);
      HEARTH_REQUIRE(!is_preference() || chat.train_on != TrainOn::Everything,
                     "--train-on-prompt does not fit --format preference: a preference is between answers");
    } else {
      HEARTH_REQUIRE(
          chat.chat_template.empty() && chat.template_variables.empty() && !chat.pack_length &&
              chat.train_on == TrainOn::AssistantTurns,
          "--pack-length, --no-packing, --chat-template, --template-variable, --train-on-prompt and "
          "--last-turn-only are for conversations: say which kind with --format");
    }
    HEARTH_REQUIRE(options_.shard_bytes > 0 && options_.shard_bytes <= kMaxShardBytes,
                   "shard size is {}, expected 1 to {}", options_.shard_bytes, kMaxShardBytes);
  }

  bool is_chat() const { return options_.conversations.format != RecordFormat::Text; }
  bool is_preference() const { return options_.conversations.format == RecordFormat::Preference; }
  bool has_template() const { return is_chat() && options_.conversations.chat_template != "none"; }
  int64_t pack_length() const { return options_.conversations.pack_length.value_or(0); }

  // A template from --chat-template becomes the tokenizer's own, so it travels with the dataset.
  void load_tokenizer() {
    tokenizer_ = Tokenizer::load(fs_, options_.tokenizer);
    const std::string& path = options_.conversations.chat_template;
    if (path.empty() || !has_template()) return;
    HEARTH_CHECK(fs_.exists(path), BadInput, "--chat-template {}: no such file", path);
    TokenizerFiles files = tokenizer_->files();
    std::erase_if(files, [](const auto& file) { return file.first == "chat_template.jinja"; });
    files.emplace_back("chat_template.jinja", fs_.read_text(path, kMaxTemplateBytes));
    tokenizer_ = Tokenizer::from_files(std::move(files), options_.tokenizer);
  }

  // Also for a tokenizer without a template, as long as prompts and answers are plain strings.
  void make_conversation_encoder() {
    if (!is_chat()) return;
    const ConversationOptions& chat = options_.conversations;
    const auto variables = parse_template_variables(chat.template_variables);
    const bool plain_works = chat.format == RecordFormat::PromptCompletion || is_preference();
    HEARTH_REQUIRE(
        has_template() || plain_works,
        "--chat-template none is for prompt_completion and preference; {} has turns, which need one",
        name(chat.format));
    uses_template_ = has_template() && (!plain_works || !tokenizer_->chat_template().empty());
    std::optional<ChatFormat> format;
    if (uses_template_) format.emplace(*tokenizer_, options_.tokenizer, variables);
    settings_ = {.kind = is_preference() ? "preference" : "sft",
                 .record_format = std::string(name(chat.format)),
                 .chat_template_digest = uses_template_ ? xxh3_128_hex(tokenizer_->chat_template()) : "",
                 .template_variables = variables.dump(),
                 .train_on = std::string(name(chat.train_on)),
                 .long_documents = chat.long_documents == LongDocuments::Cut ? "cut" : "drop",
                 .pack_length = pack_length()};
    conversation_encoder_ =
        std::make_unique<ConversationEncoder>(*tokenizer_, std::move(format), chat.train_on);
    report_.kind = settings_->kind;
    report_.pack_length = pack_length();
  }

  void check_settings(const DatasetManifest& old, const std::string& path) const {
    if (old.fine_tuning == settings_) return;
    const auto kind = [](const std::optional<FineTuningSettings>& s) { return s ? s->kind : "text"; };
    HEARTH_REQUIRE(old.fine_tuning && settings_ && old.fine_tuning->kind == settings_->kind,
                   "{}: holds a dataset of kind {}, these inputs make one of kind {}; choose another folder",
                   path, kind(old.fine_tuning), kind(settings_));
    const FineTuningSettings &was = *old.fine_tuning, &is = *settings_;
    HEARTH_REQUIRE(
        was.chat_template_digest == is.chat_template_digest,
        "{}: was made with another chat template (digest '{}', now '{}'); append with --chat-template "
        "{}/tokenizer/chat_template.jinja where that file exists, or choose another folder",
        path, was.chat_template_digest, is.chat_template_digest, options_.output);
    const auto check = [&](const char* option, const auto& before, const auto& now) {
      HEARTH_REQUIRE(before == now,
                     "{}: was made with {} {}, asked for {}; append with the same, or choose another "
                     "folder",
                     path, option, before, now);
    };
    check("--format", was.record_format, is.record_format);
    check("--template-variable", was.template_variables, is.template_variables);
    check("--pack-length", was.pack_length, is.pack_length);
    check("training on", was.train_on, is.train_on);
    check("documents that are too long being", was.long_documents, is.long_documents);
  }

  // Reads the dataset.json files that are there and refuses what does not go together with them.
  void load_existing() {
    folders_ = is_split() ? std::vector<std::string>{"train", "validation"} : std::vector<std::string>{""};
    const std::string& output = options_.output;
    const bool plain = fs_.exists(output + "/dataset.json"),
               split = fs_.exists(output + "/train/dataset.json");
    HEARTH_REQUIRE(!plain || !is_split(),
                   "{}: holds a dataset that was not split; append without --validation-fraction, or "
                   "choose another folder",
                   output);
    HEARTH_REQUIRE(!split || is_split(),
                   "{}: holds a dataset that was split; append with the --validation-fraction it was "
                   "made with",
                   output);
    manifests_.resize(folders_.size());
    for (size_t i = 0; i < folders_.size(); ++i) {
      DatasetManifest& manifest = manifests_[i];
      const std::string path = join_path(output, folders_[i]) + "/dataset.json";
      manifest.common = {kShardFormatVersion, tokenizer_->digest(), tokenizer_->vocab_size(), -1, {}};
      if (tokenizer_->eos_id()) manifest.common.eos_id = *tokenizer_->eos_id();
      manifest.split = folders_[i];
      manifest.validation_fraction = options_.validation_fraction;
      manifest.fine_tuning = settings_;
      if (!fs_.exists(path)) continue;
      const DatasetManifest old = manifest_from_json(fs_.read_text(path), path);
      HEARTH_CHECK(
          old.common.tokenizer_digest == manifest.common.tokenizer_digest && old.common == manifest.common,
          BadInput,
          "{}: was made with another tokenizer (digest {}, vocabulary {}, eos {}; {} has {}, {}, {}); append "
          "with "
          "the one in {}/tokenizer, or choose another folder",
          path, old.common.tokenizer_digest, old.common.vocab_size, old.common.eos_id, options_.tokenizer,
          manifest.common.tokenizer_digest, manifest.common.vocab_size, manifest.common.eos_id,
          join_path(output, folders_[i]));
      check_settings(old, path);
      HEARTH_REQUIRE(old.validation_fraction == options_.validation_fraction,
                     "{}: was split with --validation-fraction {}, asked for {}; texts would change sides",
                     path, old.validation_fraction, options_.validation_fraction);
      manifest = old;
    }
  }

  // Lists and digests the inputs; keeps those that the dataset does not have.
  void find_sources() {
    CorpusListing listing =
        list_corpus(fs_, options_.inputs, is_chat() ? CorpusContent::Records : CorpusContent::Documents);
    report_.num_ignored_files = listing.num_ignored;
    HEARTH_CHECK(!listing.sources.empty(), BadInput, "{}: no {} file found; empty corpus",
                 options_.inputs.front(),
                 is_chat() ? ".jsonl or .json (also .gz, .zst)" : ".txt, .jsonl (also .gz, .zst) or .h5");
    int64_t total_bytes = 0;
    for (const auto& source : listing.sources) total_bytes += source.size_bytes;
    meter_.begin(PreparePhase::Digest, total_bytes);
    run_tasks(num_workers_, static_cast<int64_t>(listing.sources.size()), [&](int64_t i) {
      CorpusSource& source = listing.sources[static_cast<size_t>(i)];
      source.digest = file_digest(*fs_.open(source.path));
      if (source.kind == SourceKind::JsonLines) source.selector = options_.text_field;
      if (is_chat())
        source.selector = describe_fields(options_.conversations.format, options_.conversations.fields);
      if (source.kind == SourceKind::Tokens) source.selector = options_.token_dataset;
      meter_.add(source.size_bytes);
    });
    std::set<std::pair<std::string, std::string>> known;
    for (const auto& source : manifests_[0].sources) known.emplace(source.digest, source.selector);
    for (auto& source : listing.sources) {
      const bool is_new = known.emplace(source.digest, source.selector).second;
      if (is_new) sources_.push_back(std::move(source));
      if (!is_new) ++report_.num_known_sources;
    }
    report_.num_sources = static_cast<int64_t>(sources_.size());
  }

  int64_t unit_bytes() const {
    int64_t total = 0;
    for (const auto& source : sources_) total += source.size_bytes;
    return options_.unit_bytes > 0 ? options_.unit_bytes
                                   : std::clamp(total / 4096, kMinUnitBytes, kMaxUnitBytes);
  }

  // Everything that the output depends on. Runs of an earlier, killed call are used only under an equal plan.
  std::string plan_text() const {
    nlohmann::json sources = nlohmann::json::array();
    for (const auto& source : sources_) {
      sources.push_back({source.digest, source.selector, static_cast<int>(source.kind), source.size_bytes});
    }
    nlohmann::json before = nlohmann::json::array();
    for (const auto& manifest : manifests_) before.push_back(xxh3_128_hex(manifest_to_json(manifest)));
    return nlohmann::json({{"version", 1},
                           {"seed", options_.seed},
                           {"bad_lines", static_cast<int>(options_.bad_lines)},
                           {"text_documents", static_cast<int>(options_.text_documents)},
                           {"unit_bytes", unit_bytes()},
                           {"datasets",
                            before},  // hold tokenizer, validation fraction and how conversations are treated
                           {"sources", sources}})
        .dump();
  }

  void open_plan() {
    const std::string plan = plan_text(), path = work() + "/plan.json";
    if (fs_.exists(path) && fs_.read_text(path) == plan) return;
    fs_.remove_all(work());
    fs_.create_directories(work());
    fs_.write_atomically(path, plan);
  }

  void tokenize() {
    EncoderOptions encoding{.seed = options_.seed,
                            .validation_fraction = options_.validation_fraction,
                            .bad_lines = options_.bad_lines,
                            .text_documents = options_.text_documents};
    if (is_chat()) {
      encoding.conversations = {.format = options_.conversations.format,
                                .fields = options_.conversations.fields,
                                .encoder = conversation_encoder_.get(),
                                .pack_length = pack_length(),
                                .long_documents = options_.conversations.long_documents};
    }
    const DocumentEncoder encoder(*tokenizer_, sources_, encoding);
    CorpusReader reader(fs_, sources_,
                        {.text_documents = options_.text_documents,
                         .eos_id = tokenizer_->eos_id(),
                         .unit_bytes = unit_bytes()});
    int64_t total_bytes = 0, claimed_bytes = 0;
    for (const auto& source : sources_) total_bytes += source.size_bytes;
    meter_.begin(PreparePhase::Tokenize, total_bytes);
    run_stream(num_workers_, [&]() -> std::function<void()> {
      auto unit = reader.next();
      if (!unit) return nullptr;
      const int64_t bytes = unit->raw_bytes_done - std::exchange(claimed_bytes, unit->raw_bytes_done);
      runs_.push_back(run_path(unit->number));
      return [this, &encoder, bytes, unit = std::move(*unit)] { tokenize_unit(encoder, unit, bytes); };
    });
    report_.num_units = static_cast<int64_t>(runs_.size());
  }

  void tokenize_unit(const DocumentEncoder& encoder, const CorpusUnit& unit, int64_t bytes) {
    const std::string path = run_path(unit.number);
    auto run = RunIndex::read(fs_, path);
    const bool reused = run != nullptr;
    if (!reused) {
      encoder.encode(unit).write(fs_, path, token_bytes_for(tokenizer_->vocab_size()));
      run = RunIndex::read(fs_, path);
      HEARTH_CHECK(run != nullptr, Io, "{}: was written but cannot be read back", path);
    }
    const std::lock_guard lock(mutex_);
    if (reused) ++report_.num_reused_units;
    const int64_t documents = report_.num_documents;
    const int64_t tokens = take_counts(*run);
    meter_.add(bytes, report_.num_documents - documents, tokens);
  }

  int64_t take_counts(const RunIndex& run) {
    source_counts_.resize(sources_.size());
    for (const auto& counts : run.counts()) {
      RunCounts& sum = source_counts_[static_cast<size_t>(counts.source)];
      for (size_t split = 0; split < kNumSplits; ++split) {
        sum.num_documents[split] += counts.num_documents[split];
        split_documents_[split] += counts.num_documents[split];
      }
      sum.num_skipped += counts.num_skipped;
      report_.num_skipped_lines += counts.num_skipped;
      report_.num_empty_documents += counts.num_empty;
      report_.num_cut_documents += counts.num_cut;
      report_.num_dropped_documents += counts.num_dropped;
      report_.num_untrained_documents += counts.num_untrained;
    }
    for (size_t split = 0; split < kNumSplits; ++split)
      report_.num_tokens += static_cast<int64_t>(run.header().num_tokens[split]);
    report_.num_documents = split_documents_[0] + split_documents_[1];
    return static_cast<int64_t>(run.header().num_tokens[0] + run.header().num_tokens[1]);
  }

  void check_not_empty() const {
    HEARTH_CHECK(
        report_.num_documents > 0, BadInput,
        "empty corpus: {} new files hold no document ({} without text, {} bad lines and {} too long ones "
        "left out)",
        sources_.size(), report_.num_empty_documents, report_.num_skipped_lines,
        report_.num_dropped_documents);
    for (size_t i = 0; is_split() && i < folders_.size(); ++i) {
      HEARTH_CHECK(split_documents_[i] > 0 || !manifests_[i].shards.empty(), BadInput,
                   "the {} part would be empty: {} documents, --validation-fraction {}; change the fraction, "
                   "give more "
                   "documents, or cut text files into paragraphs with --split-documents",
                   folders_[i], report_.num_documents, options_.validation_fraction);
    }
  }

  void write_shards() {
    check_not_empty();
    std::string all_sources;
    for (const auto& source : sources_) all_sources += source.digest + "\n" + source.selector + "\n";
    meter_.begin(PreparePhase::Write, report_.num_tokens);
    std::vector<std::pair<std::string, std::string>> texts;
    for (size_t i = 0; i < folders_.size(); ++i) {
      DatasetManifest& manifest = manifests_[i];
      const std::string directory = join_path(options_.output, folders_[i]);
      fs_.create_directories(directory);
      ShardAttributes attributes = manifest.common;
      attributes.source_digest = xxh3_128_hex(all_sources);
      const auto shards = write_shuffled_shards(fs_, runs_,
                                                {.directory = directory,
                                                 .split = i,
                                                 .first_shard = static_cast<int64_t>(manifest.shards.size()),
                                                 .shard_bytes = options_.shard_bytes,
                                                 .attributes = attributes,
                                                 .num_threads = num_workers_,
                                                 .has_loss_mask = is_chat(),
                                                 .pack_length = pack_length(),
                                                 .padding_id = padding_id()},
                                                [this](int64_t tokens) { meter_.add(tokens); });
      manifest.shards.insert(manifest.shards.end(), shards.begin(), shards.end());
      report_.num_shards += static_cast<int64_t>(shards.size());
      for (const auto& shard : shards) {
        report_.num_trained_tokens += shard.num_trained_tokens.value_or(0);
        report_.num_padding_tokens += shard.num_padding_tokens.value_or(0);
      }
      for (size_t s = 0; s < sources_.size(); ++s) {
        manifest.sources.push_back({sources_[s].path, sources_[s].digest, sources_[s].selector,
                                    source_counts_[s].num_documents[i], source_counts_[s].num_skipped});
      }
      save_tokenizer(directory);
      texts.emplace_back(folders_[i], manifest_to_json(manifest));
    }
    if (is_split()) save_tokenizer(options_.output);
    commit_manifests(fs_, options_.output, texts);
  }

  // Its mask is 0, so any id does; one that says what it is reads better.
  int32_t padding_id() const { return tokenizer_->pad_id().value_or(tokenizer_->eos_id().value_or(0)); }

  void save_tokenizer(const std::string& directory) {
    fs_.create_directories(directory + "/tokenizer");
    for (const auto& [name, bytes] : tokenizer_->files())
      fs_.write_atomically(directory + "/tokenizer/" + name, bytes);
  }

  FileSystem& fs_;
  const PrepareOptions& options_;
  ProgressMeter meter_;
  std::unique_ptr<Tokenizer> tokenizer_;
  bool uses_template_ = false;
  std::unique_ptr<ConversationEncoder> conversation_encoder_;  // of a chat format
  std::optional<FineTuningSettings> settings_;
  int num_workers_ = 1;
  std::vector<std::string> folders_;        // below the output: {""} or {"train", "validation"}
  std::vector<DatasetManifest> manifests_;  // [folders]
  std::vector<CorpusSource> sources_;       // new ones
  std::vector<std::string> runs_;
  std::mutex mutex_;  // guards what follows while workers run
  PrepareReport report_;
  std::vector<RunCounts> source_counts_;
  int64_t split_documents_[kNumSplits] = {0, 0};
};

}  // namespace

PrepareReport prepare_dataset(FileSystem& fs, const PrepareOptions& options,
                              const std::function<void(const PrepareProgress&)>& progress) {
  return Preparation(fs, options, progress).run();
}

std::vector<std::string> dataset_folders(FileSystem& fs, const std::string& directory) {
  if (!fs.exists(directory + "/dataset.json") && fs.exists(directory + "/train/dataset.json")) {
    return {directory + "/train", directory + "/validation"};
  }
  return {directory};
}

namespace {

void verify_template(const Dataset& dataset, const Tokenizer& tokenizer) {
  const auto& settings = dataset.manifest().fine_tuning;
  if (!settings || settings->chat_template_digest.empty()) return;
  const std::string digest = xxh3_128_hex(tokenizer.chat_template());
  HEARTH_CHECK(digest == settings->chat_template_digest, BadInput,
               "{}: the chat template has digest {}, the conversations were written with {}",
               dataset.tokenizer_directory(), digest, settings->chat_template_digest);
}

void verify_bins(const Shard& shard, int64_t pack_length) {
  if (pack_length == 0) return;
  for (int64_t at = 0; at + 1 < shard.num_tokens(); at += pack_length) {
    HEARTH_CHECK(!shard.boundaries(at, 1).empty(), BadInput,
                 "{}: no document begins at token {}, where a bin of {} tokens does", shard.path(), at,
                 pack_length);
  }
}

}  // namespace

VerifyReport verify_dataset(FileSystem& fs, const std::string& directory, int num_workers) {
  VerifyReport report;
  for (const auto& folder : dataset_folders(fs, directory)) {
    const auto dataset = Dataset::open(fs, folder);
    const auto tokenizer = Tokenizer::load(fs, dataset->tokenizer_directory());
    HEARTH_CHECK(tokenizer->digest() == dataset->tokenizer_digest(), BadInput,
                 "{}: tokenizer files have digest {}, the shards were made with {}",
                 dataset->tokenizer_directory(), tokenizer->digest(), dataset->tokenizer_digest());
    verify_template(*dataset, *tokenizer);
    run_tasks(num_workers > 0 ? num_workers : available_cores(), dataset->num_shards(), [&](int64_t i) {
      dataset->shard(i).verify_all();
      verify_bins(dataset->shard(i), dataset->pack_length());
    });
    report.num_shards += dataset->num_shards();
    report.num_tokens += dataset->num_tokens();
    report.num_documents += dataset->num_documents();
    for (const auto& shard : dataset->manifest().shards) report.size_bytes += shard.size_bytes;
  }
  return report;
}

}  // namespace hearth
