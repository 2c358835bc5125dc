#include "data/tokenizer/bpe_model.h"

#include <algorithm>

#include "data/tokenizer/byte_alphabet.h"
#include "data/tokenizer/json_fields.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

namespace jf = json_fields;
constexpr const char* kWhere = "model";
constexpr std::string_view kUnderline = "\xe2\x96\x81";  // U+2581, SentencePiece's visible space

struct TokenPair {
  std::string left, right;
};

// "left right", or ["left", "right"] (which also allows spaces inside).
TokenPair merge_tokens(const nlohmann::json& merge, size_t index) {
  if (merge.is_array()) {
    HEARTH_CHECK(merge.size() == 2 && merge[0].is_string() && merge[1].is_string(), BadInput,
                 "model: merges[{}] must be two strings", index);
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  HEARTH_CHECK(merge.is_string(), BadInput, "model: merges[{}] must be a string or a pair, got {}", index,
               merge.type_name());
  const auto& line = merge.get_ref<const std::string&>();
  const size_t space = line.find(' ');
  HEARTH_CHECK(space != std::string::npos && line.find(' ', space + 1) == std::string::npos, BadInput,
               "model: merges[{}] must be two tokens with one space between, got {:?}", index, line);
  return {line.substr(0, space), line.substr(space + 1)};
}

bool has_underline_inside(std::string_view token) {
  for (size_t at = token.find(kUnderline); at != std::string_view::npos; at = token.find(kUnderline, at + 1))
    if (at > 0 && !token.substr(0, at).ends_with(kUnderline)) return true;
  return false;
}

}  // namespace

BpeModel::BpeModel(const nlohmann::json& spec) {
  const std::string type = jf::string_or(spec, "type", "BPE", kWhere);
  HEARTH_CHECK(type == "BPE", BadInput, "model: type {:?} is not supported; Hearth reads BPE", type);
  const nlohmann::json* dropout = jf::find(spec, "dropout");
  HEARTH_CHECK(dropout == nullptr || (dropout->is_number() && dropout->get<double>() == 0), BadInput,
               "model: dropout {} would make ids random; set it to null", dropout->dump());
  prefix_ = jf::string_or(spec, "continuing_subword_prefix", "", kWhere);
  suffix_ = jf::string_or(spec, "end_of_word_suffix", "", kWhere);
  fuse_unk_ = jf::boolean_or(spec, "fuse_unk", false, kWhere);
  byte_fallback_ = jf::boolean_or(spec, "byte_fallback", false, kWhere);
  ignore_merges_ = jf::boolean_or(spec, "ignore_merges", false, kWhere);
  read_vocab(spec);
  unk_id_ = unk_id(spec);
  index_characters();
  read_merges(spec);
}

void BpeModel::read_vocab(const nlohmann::json& spec) {
  const nlohmann::json& vocab = jf::member(spec, "vocab", kWhere);
  HEARTH_CHECK(vocab.is_object(), BadInput, "model: vocab must map tokens to ids, got {}", vocab.type_name());
  int64_t largest = -1;
  for (const auto& [token, id] : vocab.items()) {
    HEARTH_CHECK(id.is_number_unsigned() && id.get<uint64_t>() <= uint64_t{kMaxTokenId}, BadInput,
                 "model: id {} of token {:?} must be an integer from 0 to {}", id.dump(), token, kMaxTokenId);
    largest = std::max(largest, id.get<int64_t>());
  }
  // Room is made by the largest id, so it must be in proportion; small holes are judged with the added
  // tokens.
  HEARTH_CHECK(largest < static_cast<int64_t>(vocab.size()) + (int64_t{1} << 16), BadInput,
               "model: vocab has {} tokens but ids up to {}", vocab.size(), largest);
  tokens_.resize(static_cast<size_t>(largest + 1));
  std::vector<bool> used(tokens_.size());
  for (const auto& [token, id] : vocab.items()) {
    const auto index = id.get<size_t>();
    HEARTH_CHECK(!used[index], BadInput, "model: tokens {:?} and {:?} share the id {}", tokens_[index], token,
                 index);
    used[index] = true;
    tokens_[index] = token;
  }
  ids_.reserve(vocab.size());
  for (size_t i = 0; i < tokens_.size(); ++i)
    if (used[i]) ids_.emplace(tokens_[i], static_cast<int32_t>(i));
}

int32_t BpeModel::unk_id(const nlohmann::json& spec) const {
  if (jf::find(spec, "unk_token") == nullptr) return -1;
  const std::string token = jf::string(spec, "unk_token", kWhere);
  const auto id = token_to_id(token);
  HEARTH_CHECK(id, BadInput, "model: unk_token {:?} is not in the vocabulary", token);
  return *id;
}

void BpeModel::read_merges(const nlohmann::json& spec) {
  const nlohmann::json& list = jf::array(spec, "merges", kWhere);
  std::vector<Merge> merges;
  merges.reserve(list.size());
  const auto id_of = [&](const std::string& token, size_t index) {
    const auto id = token_to_id(token);
    HEARTH_CHECK(id, BadInput, "model: merges[{}] needs token {:?}, which is not in the vocabulary", index,
                 token);
    return *id;
  };
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].is_string() && list[i].get_ref<const std::string&>().starts_with("#version")) continue;
    const TokenPair pair = merge_tokens(list[i], i);
    HEARTH_CHECK(!pair.left.empty() && !pair.right.empty() && pair.right.size() >= prefix_.size(), BadInput,
                 "model: merges[{}] has an empty part ({:?}, {:?})", i, pair.left, pair.right);
    const int32_t left = id_of(pair.left, i), right = id_of(pair.right, i);
    merges.push_back(
        {left, right, static_cast<int32_t>(i), id_of(pair.left + pair.right.substr(prefix_.size()), i)});
  }
  merges_ = MergeTable(merges);
  find_safe_cut(merges);
}

void BpeModel::index_characters() {
  basic_plane_ids_.assign(0x10000, -1);
  for (const auto& [token, id] : ids_) {
    if (token.empty() || token.size() != unicode::sequence_length(static_cast<unsigned char>(token[0])))
      continue;
    if (const char32_t c = unicode::decode_at(token, 0); c < 0x10000) basic_plane_ids_[c] = id;
  }
  bool all_bytes = true;
  for (size_t byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = token_to_id(byte_alphabet().text[byte]).value_or(-1);
    fallback_ids_[byte] = token_to_id(fmt::format("<0x{:02X}>", byte)).value_or(-1);
    all_bytes = all_bytes && byte_ids_[byte] >= 0;
  }
  if (all_bytes && prefix_.empty() && suffix_.empty()) preferred_form_ = PieceForm::RawBytes;
}

void BpeModel::find_safe_cut(const std::vector<Merge>& merges) {
  cut_at_underline_ = !ignore_merges_ && prefix_.empty() && suffix_.empty() && token_to_id(kUnderline) &&
                      std::none_of(merges.begin(), merges.end(), [&](const Merge& m) {
                        return has_underline_inside(tokens_[static_cast<size_t>(m.result)]);
                      });
}

void BpeModel::set_form(PieceForm form) {
  form_ = form;
  if (form == PieceForm::RawBytes && ignore_merges_)
    for (const auto& [token, id] : ids_)
      if (auto raw = alphabet_to_bytes(token)) raw_ids_.emplace(std::move(*raw), id);
}

std::optional<int32_t> BpeModel::token_to_id(std::string_view token) const {
  const auto it = ids_.find(token);
  return it == ids_.end() ? std::nullopt : std::optional(it->second);
}

bool BpeModel::has_token(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= tokens_.size()) return false;
  return !tokens_[static_cast<size_t>(id)].empty() || token_to_id("") == id;
}

void BpeModel::encode(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& out) const {
  if (form_ == PieceForm::RawBytes || !cut_at_underline_) return encode_word(piece, scratch, out);
  size_t begin = 0;
  for (size_t at = piece.find(kUnderline); at != std::string_view::npos; at = piece.find(kUnderline, at)) {
    if (at > begin) encode_word(piece.substr(begin, at - begin), scratch, out);
    begin = at;
    while (piece.substr(at).starts_with(kUnderline)) at += kUnderline.size();
  }
  if (begin < piece.size()) encode_word(piece.substr(begin), scratch, out);
}

void BpeModel::encode_word(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const {
  const bool cacheable = word.size() <= WordCache::kMaxKey;
  const size_t slot = cacheable ? WordCache::slot(word) : 0;
  if (cacheable) {
    if (const auto ids = scratch.cache.find(slot, word); !ids.empty()) {
      out.insert(out.end(), ids.begin(), ids.end());
      return;
    }
  }
  scratch.symbols.clear();
  if (const auto whole = whole_word(word)) {
    scratch.symbols.push_back(*whole);
  } else {
    append_symbols(word, scratch.symbols);
    scratch.merger.run(merges_, scratch.symbols);
  }
  if (cacheable) scratch.cache.insert(slot, word, scratch.symbols);
  out.insert(out.end(), scratch.symbols.begin(), scratch.symbols.end());
}

// ignore_merges: a word that is in the vocabulary is one token, whatever its merges would give.
std::optional<int32_t> BpeModel::whole_word(std::string_view word) const {
  if (!ignore_merges_) return std::nullopt;
  if (form_ == PieceForm::Text) return token_to_id(word);
  const auto it = raw_ids_.find(std::string(word));
  return it == raw_ids_.end() ? std::nullopt : std::optional(it->second);
}

// -1 if the character, with the word's prefix or suffix glued on where they apply, is not in the vocabulary.
int32_t BpeModel::character_id(std::string_view word, size_t pos, size_t length) const {
  const bool glue_prefix = pos > 0 && !prefix_.empty();
  const bool glue_suffix = pos + length == word.size() && !suffix_.empty();
  const std::string_view character = word.substr(pos, length);
  if (glue_prefix || glue_suffix)
    return token_to_id((glue_prefix ? prefix_ : "") + std::string(character) + (glue_suffix ? suffix_ : ""))
        .value_or(-1);
  const char32_t c = unicode::decode_at(word, pos);
  return c < 0x10000 ? basic_plane_ids_[c] : token_to_id(character).value_or(-1);
}

bool BpeModel::append_byte_fallback(std::string_view text, std::vector<int32_t>& symbols) const {
  for (const char c : text)
    if (fallback_ids_[static_cast<unsigned char>(c)] < 0) return false;
  for (const char c : text) symbols.push_back(fallback_ids_[static_cast<unsigned char>(c)]);
  return true;
}

// As `tokenizers` does it: an unknown character is held until the next known one (or the end), so that runs
// can fuse; characters that fall back to bytes do not release it.
void BpeModel::append_symbols(std::string_view word, std::vector<int32_t>& symbols) const {
  if (form_ == PieceForm::RawBytes) {
    for (const char c : word) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
    return;
  }
  bool unknown_held = false;
  for (size_t pos = 0; pos < word.size();) {
    const size_t length = unicode::sequence_length(static_cast<unsigned char>(word[pos]));
    const int32_t id = character_id(word, pos, length);
    if (id >= 0) {
      if (unknown_held) symbols.push_back(unk_id_);
      unknown_held = false;
      symbols.push_back(id);
    } else if (!(byte_fallback_ && append_byte_fallback(word.substr(pos, length), symbols)) && unk_id_ >= 0) {
      if (unknown_held && !fuse_unk_) symbols.push_back(unk_id_);
      unknown_held = true;
    }
    pos += length;
  }
  if (unknown_held) symbols.push_back(unk_id_);
}

}  // namespace hearth
