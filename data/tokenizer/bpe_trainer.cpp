#include "data/tokenizer/bpe_trainer.h"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <queue>

#include "base/error.h"
#include "data/tokenizer/byte_alphabet.h"
#include "data/tokenizer/tokenizer_json_writer.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

using tokenizer_json::Json;

constexpr const char* kPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr const char* kChatMl =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

constexpr int64_t kNumBytes = 256;

// Bytes in the order of their characters' code points: the order of ids.
std::array<unsigned char, 256> bytes_in_order() {
  std::array<unsigned char, 256> order{};
  std::iota(order.begin(), order.end(), static_cast<unsigned char>(0));
  const auto& text = byte_alphabet().text;
  std::sort(order.begin(), order.end(), [&](unsigned char a, unsigned char b) {
    return unicode::decode_at(text[a], 0) < unicode::decode_at(text[b], 0);
  });
  return order;
}

struct Pair {
  int32_t left, right;
  bool operator==(const Pair&) const = default;
};
struct PairHash {
  size_t operator()(const Pair& p) const {
    const uint64_t key = uint64_t{static_cast<uint32_t>(p.left)} << 32 | static_cast<uint32_t>(p.right);
    return static_cast<size_t>((key ^ key >> 29) * 0x9e3779b97f4a7c15ull);
  }
};

// Counts of pairs are kept up to date: a merge touches only the words that contain the pair.
class Learner {
 public:
  Learner(const WordCounts& words, const BpeTrainingOptions& options) : options_(options) {
    first_merge_id_ = static_cast<int32_t>(options.special_tokens.size()) + static_cast<int32_t>(kNumBytes);
    const auto order = bytes_in_order();
    std::array<int32_t, 256> id_of{};
    tokens_.resize(static_cast<size_t>(first_merge_id_));
    for (size_t i = 0; i < order.size(); ++i) {
      const size_t id = options.special_tokens.size() + i;
      id_of[order[i]] = static_cast<int32_t>(id);
      tokens_[id] = std::string(1, static_cast<char>(order[i]));
      ids_.emplace(tokens_[id], static_cast<int32_t>(id));
    }
    words_.reserve(words.counts().size());
    for (const auto& [text, count] : words.counts()) {
      Word word{{}, count};
      for (const char c : text) word.symbols.push_back(id_of[static_cast<unsigned char>(c)]);
      words_.push_back(std::move(word));
    }
    for (size_t i = 0; i < words_.size(); ++i) count_pairs(i, +1, -1);
    for (const auto& [pair, entry] : pairs_) queue_.push({entry.count, pair});
  }

  LearnedMerges run(const std::function<void(int64_t, int64_t)>& progress) {
    const int64_t wanted = options_.vocab_size - first_merge_id_;
    LearnedMerges merges;
    while (static_cast<int64_t>(tokens_.size()) < options_.vocab_size && !queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const auto it = pairs_.find(top.pair);
      const int64_t count = it == pairs_.end() ? 0 : it->second.count;
      if (count < options_.min_frequency || count < 1) continue;
      if (count != top.count) {  // other merges took occurrences away since it was queued
        queue_.push({count, top.pair});
        continue;
      }
      merges.emplace_back(token(top.pair.left), token(top.pair.right));
      merge(top.pair, new_token(top.pair));
      if (progress && merges.size() % 256 == 0)
        progress(static_cast<int64_t>(tokens_.size()) - first_merge_id_, wanted);
    }
    return merges;
  }

 private:
  struct Word {
    std::vector<int32_t> symbols;
    int64_t count;
  };
  struct Entry {
    int64_t count = 0;
    std::vector<uint32_t> words;  // where it occurs, or occurred
  };
  struct Candidate {
    int64_t count;
    Pair pair;
    bool operator<(const Candidate& other) const {  // the greatest is merged next
      if (count != other.count) return count < other.count;
      return std::pair(pair.left, pair.right) > std::pair(other.pair.left, other.pair.right);
    }
  };

  const std::string& token(int32_t id) const { return tokens_[static_cast<size_t>(id)]; }

  // Two different pairs can join to the same text; they share its id.
  int32_t new_token(const Pair& pair) {
    std::string text = token(pair.left) + token(pair.right);
    const auto [it, inserted] = ids_.emplace(text, static_cast<int32_t>(tokens_.size()));
    if (inserted) tokens_.push_back(std::move(text));
    return it->second;
  }

  // Adds (sign +1) or takes away (-1) the pairs of a word; the places of pairs with `fresh` in them are
  // noted, or of all pairs where fresh is -1.
  void count_pairs(size_t index, int sign, int32_t fresh) {
    const Word& word = words_[index];
    for (size_t i = 0; i + 1 < word.symbols.size(); ++i) {
      const Pair pair{word.symbols[i], word.symbols[i + 1]};
      Entry& entry = pairs_[pair];
      entry.count += sign * word.count;
      if (sign < 0 || (fresh >= 0 && pair.left != fresh && pair.right != fresh)) continue;
      if (fresh >= 0) touched_.push_back(pair);
      if (entry.words.empty() || entry.words.back() != index)
        entry.words.push_back(static_cast<uint32_t>(index));
    }
  }

  void merge(const Pair& pair, int32_t id) {
    std::vector<uint32_t> places = std::move(pairs_[pair].words);
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    touched_.clear();
    for (const uint32_t index : places) {
      std::vector<int32_t>& symbols = words_[index].symbols;
      if (!contains(symbols, pair)) continue;
      count_pairs(index, -1, -1);
      size_t out = 0;
      for (size_t i = 0; i < symbols.size(); ++out) {
        const bool here = i + 1 < symbols.size() && Pair{symbols[i], symbols[i + 1]} == pair;
        symbols[out] = here ? id : symbols[i];
        i += here ? 2 : 1;
      }
      symbols.resize(out);
      count_pairs(index, +1, id);
    }
    pairs_.erase(pair);
    std::sort(touched_.begin(), touched_.end(), [](const Pair& a, const Pair& b) {
      return std::pair(a.left, a.right) < std::pair(b.left, b.right);
    });
    touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
    for (const Pair& fresh : touched_) queue_.push({pairs_[fresh].count, fresh});
  }

  static bool contains(const std::vector<int32_t>& symbols, const Pair& pair) {
    for (size_t i = 0; i + 1 < symbols.size(); ++i)
      if (Pair{symbols[i], symbols[i + 1]} == pair) return true;
    return false;
  }

  const BpeTrainingOptions& options_;
  int32_t first_merge_id_ = 0;
  std::vector<std::string> tokens_;  // by id, as bytes; empty for special tokens
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<Word> words_;
  std::unordered_map<Pair, Entry, PairHash> pairs_;
  std::priority_queue<Candidate> queue_;
  std::vector<Pair> touched_;
};

}  // namespace

WordCounts::WordCounts()
    : pre_tokenizer_(tokenizer_json::split_then_byte_level(kPattern), PieceForm::RawBytes) {}

void WordCounts::add_text(std::string_view text) {
  if (!unicode::is_valid_utf8(text)) return add_text(unicode::replace_invalid_utf8(text));
  pre_tokenizer_.split(Piece{text, true}, regex_, [&](const Piece& piece) {
    std::string_view rest = piece.text;
    while (rest.size() > kMaxWordBytes) {
      size_t cut = kMaxWordBytes;
      while ((static_cast<unsigned char>(rest[cut]) & 0xc0) == 0x80) --cut;
      add_word(rest.substr(0, cut));
      rest.remove_prefix(cut);
    }
    add_word(rest);
  });
}

void WordCounts::add_word(std::string_view word) {
  ++counts_[std::string(word)];
}

void WordCounts::merge(const WordCounts& other, int64_t max_words) {
  for (const auto& [word, count] : other.counts_) counts_[word] += count;
  for (int64_t rare = 1; static_cast<int64_t>(counts_.size()) > max_words; ++rare)
    std::erase_if(counts_, [&](const auto& entry) { return entry.second <= rare; });
}

LearnedMerges learn_merges(const WordCounts& words, const BpeTrainingOptions& options,
                           const std::function<void(int64_t, int64_t)>& progress) {
  const int64_t smallest = static_cast<int64_t>(options.special_tokens.size()) + kNumBytes;
  HEARTH_CHECK(options.vocab_size >= smallest && options.vocab_size <= kMaxTokenId, Usage,
               "vocabulary of {} tokens: it must be from {} (bytes and special tokens) to {}",
               options.vocab_size, smallest, kMaxTokenId);
  return Learner(words, options).run(progress);
}

TokenizerFiles trained_tokenizer_files(const LearnedMerges& merges, const BpeTrainingOptions& options) {
  HEARTH_REQUIRE(!options.special_tokens.empty(),
                 "a trained tokenizer needs a special token for the end of text");
  tokenizer_json::Parts parts;
  std::vector<std::string> tokens;
  std::unordered_map<std::string, size_t> known;
  const auto add = [&](std::string token) {
    if (known.emplace(token, tokens.size()).second) tokens.push_back(std::move(token));
  };
  for (size_t i = 0; i < options.special_tokens.size(); ++i) {
    add(options.special_tokens[i]);
    parts.added_tokens.push_back(tokenizer_json::added_token(
        {options.special_tokens[i], static_cast<int64_t>(i)}, tokenizer_json::AddedKind::Special));
  }
  for (const unsigned char byte : bytes_in_order()) add(byte_alphabet().text[byte]);
  Json merge_list = Json::array();
  for (const auto& [left, right] : merges) {
    add(bytes_to_alphabet(left + right));
    merge_list.push_back(Json::array({bytes_to_alphabet(left), bytes_to_alphabet(right)}));
  }
  parts.pre_tokenizer = tokenizer_json::split_then_byte_level(kPattern);
  parts.post_processor = tokenizer_json::byte_level(tokenizer_json::Gpt2Split::No);
  parts.decoder = tokenizer_json::byte_level(tokenizer_json::Gpt2Split::No);
  parts.model = {{"type", "BPE"},
                 {"dropout", nullptr},
                 {"unk_token", nullptr},
                 {"continuing_subword_prefix", nullptr},
                 {"end_of_word_suffix", nullptr},
                 {"fuse_unk", false},
                 {"byte_fallback", false},
                 {"ignore_merges", false},
                 {"vocab", tokenizer_json::vocab(tokens)},
                 {"merges", std::move(merge_list)}};
  const Json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
                    {"bos_token", nullptr},
                    {"eos_token", options.special_tokens.front()},
                    {"pad_token", options.special_tokens.front()},
                    {"unk_token", nullptr},
                    {"add_prefix_space", false},
                    {"clean_up_tokenization_spaces", false},
                    {"chat_template", kChatMl}};
  return {{"tokenizer.json", tokenizer_json::document(parts)}, {"tokenizer_config.json", config.dump(2)}};
}

}  // namespace hearth
