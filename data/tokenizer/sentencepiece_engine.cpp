// Encoding and decoding as google/sentencepiece does for BPE models: white space becomes U+2581, user-defined
// pieces are cut out first, then the pair whose joined piece has the best score is merged, leftmost first,
// until none is left.
#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "data/tokenizer/added_tokens.h"
#include "data/tokenizer/bpe_merge.h"
#include "data/tokenizer/engine.h"
#include "data/tokenizer/normalizer.h"
#include "data/tokenizer/scratch_pool.h"
#include "data/tokenizer/sentencepiece_ranks.h"
#include "data/tokenizer/unicode.h"
#include "data/tokenizer/word_cache.h"

namespace hearth {

namespace {

constexpr std::string_view kUnderline = "\xe2\x96\x81";

// Symbols while merging: >= 0 a piece (or, from the number of pieces up, a character that is only part of
// pieces); below that frozen ones, which never merge.
constexpr int32_t kUnknown = -1;
int32_t frozen(int32_t id) {
  return -2 - id;
}

bool mergeable(const SentencePiece& piece) {
  return piece.type == PieceType::Normal || piece.type == PieceType::UserDefined;
}

class SentencePieceEngine final : public TokenizerEngine {
 public:
  SentencePieceEngine(const SentencePieceModel& model, const SentencePieceOptions& options)
      : model_(model), options_(options), space_(model.escape_whitespaces ? kUnderline : " ") {
    std::vector<AddedTokenMatcher::Pattern> user_defined;
    for (size_t i = 0; i < model_.pieces.size(); ++i) {
      const SentencePiece& piece = model_.pieces[i];
      const auto id = static_cast<int32_t>(i);
      tokens_.push_back({piece.text, piece.type == PieceType::Control});
      ids_.emplace(piece.text, id);
      if (piece.type == PieceType::Unknown) unknown_id_ = id;
      if (piece.type == PieceType::Byte) byte_ids_[static_cast<size_t>(byte_of_piece(piece.text))] = id;
      if (piece.type == PieceType::UserDefined)
        user_defined.push_back({piece.text, AddedToken{.id = id,
                                                       .content = piece.text,
                                                       .single_word = false,
                                                       .lstrip = false,
                                                       .rstrip = false,
                                                       .normalized = false,
                                                       .special = false}});
    }
    user_defined_ = AddedTokenMatcher(std::move(user_defined));
    build_merges();
  }

  std::vector<int32_t> encode(std::string_view text, SpecialTokens special) const override {
    const auto scratch = scratch_.borrow();
    std::vector<int32_t> ids;
    if (special == SpecialTokens::Add) ids = options_.before;
    const std::string normalized = normalize(text);
    bool unknown_before = false;
    user_defined_.split(normalized, [&](std::string_view part, int32_t id) {
      if (id >= 0) {
        ids.push_back(id);
        unknown_before = false;
      } else {
        encode_part(part, *scratch, ids, unknown_before);
      }
    });
    if (special == SpecialTokens::Add) ids.insert(ids.end(), options_.after.begin(), options_.after.end());
    return ids;
  }

  std::string decode(std::span<const int32_t> ids, DecodeSpecial special) const override {
    std::string text, bytes;
    bool at_start = true, start_space_seen = false;
    for (const int32_t id : ids) {
      if (id < 0 || static_cast<size_t>(id) >= model_.pieces.size()) continue;
      const SentencePiece& piece = model_.pieces[static_cast<size_t>(id)];
      if (piece.type == PieceType::Byte) {
        bytes.push_back(static_cast<char>(byte_of_piece(piece.text)));
        continue;
      }
      flush_bytes(bytes, text);
      if (start_space_seen || !text.empty()) at_start = false;
      start_space_seen = append_piece(piece, at_start, special, text);
    }
    flush_bytes(bytes, text);
    return text;
  }

  std::optional<int32_t> token_to_id(std::string_view token) const override {
    const auto it = ids_.find(std::string(token));
    return it == ids_.end() ? std::nullopt : std::optional(it->second);
  }

 private:
  struct Scratch {
    Merger merger;
    WordCache cache;
    std::vector<int32_t> symbols, ids;
    std::vector<std::string_view> unknown;  // texts of the kUnknown symbols, in order
  };

  // Every way to cut a piece into two symbols is a merge; its rank is that of the piece's score.
  void build_merges() {
    const std::vector<int32_t> ranks = sentencepiece_ranks(model_);
    std::vector<Merge> merges;
    bool underline_inside = false;
    for (size_t i = 0; i < model_.pieces.size(); ++i) {
      const std::string_view text = model_.pieces[i].text;
      if (!mergeable(model_.pieces[i])) continue;
      for (size_t cut = first_length(text); cut < text.size(); cut += first_length(text.substr(cut))) {
        if (text.substr(cut).starts_with(kUnderline) && !text.substr(0, cut).ends_with(kUnderline))
          underline_inside = true;
        const int32_t left = symbol_of(text.substr(0, cut)), right = symbol_of(text.substr(cut));
        if (left >= 0 && right >= 0) merges.push_back({left, right, ranks[i], static_cast<int32_t>(i)});
      }
    }
    merges_ = MergeTable(merges);
    cut_at_underline_ = !underline_inside;
  }

  static size_t first_length(std::string_view text) {
    return unicode::sequence_length(static_cast<unsigned char>(text[0]));
  }

  // The symbol for a text that may stand in a merge: a mergeable piece, or any single character.
  int32_t symbol_of(std::string_view text) {
    const auto id = token_to_id(text);
    if (id && mergeable(model_.pieces[static_cast<size_t>(*id)])) return *id;
    if (text.size() != first_length(text)) return -1;
    const auto next = checked_cast<int32_t>(model_.pieces.size() + loose_characters_.size());
    const auto [it, inserted] = loose_ids_.emplace(std::string(text), next);
    if (inserted) loose_characters_.emplace_back(text);
    return it->second;
  }

  // normalizer.cc of sentencepiece with the identity map. With remove_extra_whitespaces a space is dropped
  // behind another one; the spaces of a user-defined piece are dropped only at its start.
  std::string normalize(std::string_view text) const {
    const bool squeeze = model_.remove_extra_whitespaces;
    std::string out;
    if (text.empty()) return out;
    out.reserve(text.size() + text.size() / 2);
    if (model_.add_dummy_prefix) out += space_;
    bool after_space = squeeze;
    const auto append = [&](std::string_view part) {
      for (const char c : part) c == ' ' ? void(out += space_) : out.push_back(c);
      after_space = squeeze && part.back() == ' ';
    };
    user_defined_.split(text, [&](std::string_view part, int32_t id) {
      if (id >= 0) {
        std::string_view piece = model_.pieces[static_cast<size_t>(id)].text;
        if (after_space) piece.remove_prefix(std::min(piece.find_first_not_of(' '), piece.size()));
        if (!piece.empty()) append(piece);
        return;
      }
      for (size_t i = 0; i < part.size(); ++i)
        if (part[i] != ' ' || !after_space) append(part.substr(i, 1));
    });
    while (squeeze && out.ends_with(space_)) out.resize(out.size() - space_.size());
    return out;
  }

  // Words are cut before each run of U+2581 where no piece reaches over such a place.
  void encode_part(std::string_view part, Scratch& scratch, std::vector<int32_t>& ids,
                   bool& unknown_before) const {
    size_t begin = 0;
    for (size_t at = 0; cut_at_underline_ && (at = part.find(kUnderline, at)) != std::string_view::npos;) {
      if (at > begin) encode_word(part.substr(begin, at - begin), scratch, ids, unknown_before);
      begin = at;
      while (part.substr(at).starts_with(kUnderline)) at += kUnderline.size();
    }
    if (begin < part.size()) encode_word(part.substr(begin), scratch, ids, unknown_before);
  }

  void encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids,
                   bool& unknown_before) const {
    const size_t slot = WordCache::slot(word);
    if (const auto known = scratch.cache.find(slot, word); !known.empty()) {
      ids.insert(ids.end(), known.begin(), known.end());
      unknown_before = false;
      return;
    }
    scratch.symbols.clear();
    scratch.unknown.clear();
    for (size_t pos = 0; pos < word.size();) {
      const size_t length = first_length(word.substr(pos));
      const int32_t symbol = character_symbol(word.substr(pos, length));
      if (symbol == kUnknown) scratch.unknown.push_back(word.substr(pos, length));
      scratch.symbols.push_back(symbol);
      pos += length;
    }
    scratch.merger.run(merges_, scratch.symbols);
    const size_t before = ids.size();
    const bool all_known = append_ids(scratch, ids, unknown_before);
    if (all_known) scratch.cache.insert(slot, word, std::span(ids).subspan(before));
  }

  int32_t character_symbol(std::string_view character) const {
    const std::string key(character);
    if (const auto loose = loose_ids_.find(key); loose != loose_ids_.end()) return loose->second;
    const auto it = ids_.find(key);
    if (it == ids_.end() || it->second == unknown_id_) return kUnknown;
    return mergeable(model_.pieces[static_cast<size_t>(it->second)]) ? it->second : frozen(it->second);
  }

  // Unknown symbols become their bytes with byte fallback, otherwise one unknown id for each run. False if
  // there were any.
  bool append_ids(const Scratch& scratch, std::vector<int32_t>& ids, bool& unknown_before) const {
    size_t next_unknown = 0;
    bool all_known = true;
    const auto num_pieces = static_cast<int32_t>(model_.pieces.size());
    for (const int32_t symbol : scratch.symbols) {
      if (symbol != kUnknown && symbol < num_pieces) {
        ids.push_back(symbol < 0 ? frozen(symbol) : symbol);
        unknown_before = false;
        continue;
      }
      all_known = false;
      const std::string_view text = symbol == kUnknown
                                        ? scratch.unknown[next_unknown++]
                                        : loose_characters_[static_cast<size_t>(symbol - num_pieces)];
      if (model_.byte_fallback) {
        for (const char c : text) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      } else if (!unknown_before) {
        ids.push_back(unknown_id_);
      }
      unknown_before = true;
    }
    return all_known;
  }

  // sentencepiece_processor.cc, Decode. Returns whether a leading space was taken off.
  bool append_piece(const SentencePiece& piece, bool at_start, DecodeSpecial special,
                    std::string& text) const {
    if (piece.type == PieceType::Control) {
      if (special == DecodeSpecial::Keep) text += piece.text;
      return false;
    }
    if (piece.type == PieceType::Unknown) {
      text += model_.unknown_surface;
      return false;
    }
    std::string_view rest = piece.text;
    bool taken = false;
    if (at_start && (model_.add_dummy_prefix || model_.remove_extra_whitespaces) &&
        rest.starts_with(kUnderline)) {
      rest.remove_prefix(kUnderline.size());
      taken = !model_.remove_extra_whitespaces;
    }
    text += replace_all(rest, kUnderline, " ");
    return taken;
  }

  // Whole characters as they are; each byte that is part of none becomes U+FFFD.
  static void flush_bytes(std::string& bytes, std::string& text) {
    for (size_t pos = 0; pos < bytes.size();) {
      const size_t length = first_length(std::string_view(bytes).substr(pos));
      const std::string_view character = std::string_view(bytes).substr(pos, length);
      const bool valid = character.size() == length && unicode::is_valid_utf8(character);
      text += valid ? character : "\xef\xbf\xbd";
      pos += valid ? length : 1;
    }
    bytes.clear();
  }

  SentencePieceModel model_;
  SentencePieceOptions options_;
  std::string_view space_;
  std::unordered_map<std::string, int32_t> ids_;
  int32_t unknown_id_ = -1;
  std::array<int32_t, 256> byte_ids_{};
  AddedTokenMatcher user_defined_;
  MergeTable merges_;
  bool cut_at_underline_ = false;
  std::unordered_map<std::string, int32_t> loose_ids_;  // characters that are no pieces but part of one
  std::vector<std::string> loose_characters_;
  mutable ScratchPool<Scratch> scratch_;
};

}  // namespace

std::unique_ptr<TokenizerEngine> make_sentencepiece_engine(const SentencePieceModel& model,
                                                           const SentencePieceOptions& options) {
  return std::make_unique<SentencePieceEngine>(model, options);
}

}  // namespace hearth
