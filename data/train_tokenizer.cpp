#include "data/train_tokenizer.h"

#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/corpus.h"
#include "data/workers.h"

namespace hearth {

namespace {

// Counts units in any order on all workers and adds them up in the order of their numbers: when rare words
// must be forgotten, what is forgotten depends on that order.
class Counter {
 public:
  Counter(FileSystem& fs, const TrainTokenizerOptions& options,
          const std::function<void(const TrainTokenizerProgress&)>& progress)
      : options_(options),
        progress_(progress),
        sources_(list_sources(fs, options)),
        reader_(fs, sources_, {}) {
    for (const CorpusSource& source : sources_) total_bytes_ += source.size_bytes;
  }

  void run() {
    const int workers = options_.num_workers > 0 ? options_.num_workers : available_cores();
    run_stream(workers, [this]() -> std::function<void()> {
      auto unit = reader_.next();
      if (!unit) return {};
      return [this, unit = std::make_shared<CorpusUnit>(std::move(*unit))] { count(*unit); };
    });
    HEARTH_CHECK(!words_.counts().empty(), BadInput,
                 "no text in {} input file(s): there is nothing to train on", sources_.size());
  }

  const WordCounts& words() const { return words_; }
  int64_t num_documents() const { return num_documents_; }
  int64_t num_sources() const { return static_cast<int64_t>(sources_.size()); }

 private:
  struct Counted {
    WordCounts words;
    int64_t num_documents = 0, raw_bytes_done = 0;
  };

  static std::vector<CorpusSource> list_sources(FileSystem& fs, const TrainTokenizerOptions& options) {
    std::vector<CorpusSource> sources = list_corpus(fs, options.inputs, CorpusContent::Documents).sources;
    for (CorpusSource& source : sources) {
      HEARTH_CHECK(source.kind != SourceKind::Tokens, BadInput,
                   "{}: holds token ids; a tokenizer is trained on text", source.path);
      if (source.kind == SourceKind::JsonLines) source.selector = options.text_field;
    }
    return sources;
  }

  void count(const CorpusUnit& unit) {
    auto counted = std::make_unique<Counted>();
    counted->raw_bytes_done = unit.raw_bytes_done;
    for (const CorpusPiece& piece : unit.pieces) {
      const CorpusSource& source = sources_[static_cast<size_t>(piece.source)];
      if (source.kind == SourceKind::JsonLines) {
        count_lines(piece, source, *counted);
      } else {
        counted->words.add_text(piece.text);
        ++counted->num_documents;
      }
    }
    add_up(unit.number, std::move(counted));
  }

  static void count_lines(const CorpusPiece& piece, const CorpusSource& source, Counted& counted) {
    std::string_view rest = piece.text;
    for (int64_t line_number = piece.first_line; !rest.empty(); ++line_number) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(line.size() + 1, rest.size()));
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      const auto document = nlohmann::json::parse(line, nullptr, false);
      HEARTH_CHECK(document.is_object(), BadInput, "{}:{}: expected one JSON object, got {:?}", source.path,
                   line_number, line.substr(0, 60));
      const auto text = document.find(source.selector);
      HEARTH_CHECK(text != document.end() && text->is_string(), BadInput,
                   "{}:{}: no string in the field {:?}", source.path, line_number, source.selector);
      counted.words.add_text(text->get_ref<const std::string&>());
      ++counted.num_documents;
    }
  }

  void add_up(int64_t number, std::unique_ptr<Counted> counted) {
    const std::lock_guard lock(mutex_);
    waiting_.emplace(number, std::move(counted));
    for (auto it = waiting_.begin(); it != waiting_.end() && it->first == next_;
         it = waiting_.erase(it), ++next_) {
      words_.merge(it->second->words, options_.max_words);
      num_documents_ += it->second->num_documents;
      if (progress_) progress_({TrainTokenizerPhase::Count, it->second->raw_bytes_done, total_bytes_});
    }
  }

  const TrainTokenizerOptions& options_;
  const std::function<void(const TrainTokenizerProgress&)>& progress_;
  std::vector<CorpusSource> sources_;
  CorpusReader reader_;
  int64_t total_bytes_ = 0;
  std::mutex mutex_;
  std::map<int64_t, std::unique_ptr<Counted>> waiting_;  // done, but a unit before them is not
  int64_t next_ = 0;
  WordCounts words_;
  int64_t num_documents_ = 0;
};

}  // namespace

TrainTokenizerReport train_tokenizer(FileSystem& fs, const TrainTokenizerOptions& options,
                                     const std::function<void(const TrainTokenizerProgress&)>& progress) {
  Counter counter(fs, options, progress);
  counter.run();
  const LearnedMerges merges =
      learn_merges(counter.words(), options.training, [&](int64_t done, int64_t total) {
        if (progress) progress({TrainTokenizerPhase::Merge, done, total});
      });
  TokenizerFiles files = trained_tokenizer_files(merges, options.training);
  const auto tokenizer = Tokenizer::from_files(files, options.output);  // what is written must load
  fs.create_directories(options.output);
  for (auto it = files.rbegin(); it != files.rend(); ++it)  // tokenizer.json last: with it the folder is one
    fs.write_atomically(options.output + "/" + it->first, it->second);
  return {counter.num_sources(), counter.num_documents(),
          static_cast<int64_t>(counter.words().counts().size()), tokenizer->vocab_size()};
}

}  // namespace hearth
