#include "data/tokenizer/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_set>

#include "base/error.h"
#include "data/tokenizer/sentencepiece_to_json.h"
#include "data/tokenizer/tokenizer_json_writer.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

using tokenizer_json::Json;
using tokenizer_json::NamedId;

enum TokenType { kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5 };  // the numbers of GGUF

// What a `pre` name stands for. The expressions are those of the models' own tokenizer.json files.
struct PreTokenizerKind {
  std::string_view name;
  enum Split { Gpt2, DigitsThenGpt2, Expression } split;
  const char* expression = nullptr;
  bool ignore_merges = false;
  bool nfc = false;
  bool add_bos = false;  // where the file has no tokenizer.ggml.add_bos_token
};

constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

using Kind = PreTokenizerKind;
constexpr std::array kKinds{
    Kind{"", Kind::Gpt2},
    Kind{"default", Kind::Gpt2},
    Kind{"gpt-2", Kind::Gpt2},
    Kind{"phi-2", Kind::Gpt2},
    Kind{"mpt", Kind::Gpt2},
    Kind{"olmo", Kind::Gpt2},
    Kind{"smollm", Kind::DigitsThenGpt2},
    Kind{"starcoder", Kind::DigitsThenGpt2},
    Kind{"refact", Kind::DigitsThenGpt2},
    Kind{"llama3", Kind::Expression, kLlama3, true, false, true},
    Kind{"llama-v3", Kind::Expression, kLlama3, true, false, true},
    Kind{"llama-bpe", Kind::Expression, kLlama3, true, false, true},
    Kind{"qwen2", Kind::Expression, kQwen2, false, true, false},
    Kind{"deepseek-r1-qwen", Kind::Expression, kQwen2, false, true, false},
    Kind{"tekken", Kind::Expression, kTekken, true, false, true},
};

const PreTokenizerKind& kind_of(const std::string& pre) {
  const auto it =
      std::find_if(kKinds.begin(), kKinds.end(), [&](const Kind& kind) { return kind.name == pre; });
  if (it != kKinds.end()) return *it;
  std::string known;
  for (const Kind& kind : kKinds)
    if (!kind.name.empty()) known += (known.empty() ? "" : ", ") + std::string(kind.name);
  fail(ErrorKind::BadInput, "GGUF: tokenizer.ggml.pre {:?} is not supported; known: {}", pre, known);
}

Json pre_tokenizer_of(const PreTokenizerKind& kind) {
  if (kind.split == Kind::Expression) return tokenizer_json::split_then_byte_level(kind.expression);
  const Json byte_level = tokenizer_json::byte_level(tokenizer_json::Gpt2Split::Yes);
  if (kind.split == Kind::Gpt2) return byte_level;
  const Json digits{{"type", "Digits"}, {"individual_digits", true}};
  return {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, byte_level})}};
}

int32_t type_of(const GgufTokenizerFields& fields, size_t id) {
  return fields.token_types.empty() ? 1 : fields.token_types[id];
}

const std::string& token_at(const GgufTokenizerFields& fields, int64_t id, const char* key) {
  HEARTH_CHECK(id >= 0 && static_cast<size_t>(id) < fields.tokens.size(), BadInput,
               "GGUF: tokenizer.ggml.{} is {}, but there are {} tokens", key, id, fields.tokens.size());
  return fields.tokens[static_cast<size_t>(id)];
}

void check(const GgufTokenizerFields& fields) {
  HEARTH_CHECK(!fields.tokens.empty() && static_cast<int64_t>(fields.tokens.size()) <= kMaxTokenId + 1,
               BadInput, "GGUF: tokenizer.ggml.tokens has {} entries, expected 1 to {}", fields.tokens.size(),
               kMaxTokenId + 1);
  HEARTH_CHECK(fields.token_types.empty() || fields.token_types.size() == fields.tokens.size(), BadInput,
               "GGUF: {} token types for {} tokens", fields.token_types.size(), fields.tokens.size());
  HEARTH_CHECK(fields.scores.empty() || fields.scores.size() == fields.tokens.size(), BadInput,
               "GGUF: {} scores for {} tokens", fields.scores.size(), fields.tokens.size());
  for (const std::string& merge : fields.merges)
    HEARTH_CHECK(unicode::is_valid_utf8(merge), BadInput, "GGUF: merge {:?} is not UTF-8", merge);
  HEARTH_CHECK(unicode::is_valid_utf8(fields.chat_template), BadInput,
               "GGUF: the chat template is not UTF-8");
  std::unordered_set<std::string_view> seen;
  for (size_t id = 0; id < fields.tokens.size(); ++id)
    HEARTH_CHECK(unicode::is_valid_utf8(fields.tokens[id]), BadInput, "GGUF: token {} is not UTF-8", id);
  for (size_t id = 0; id < fields.tokens.size(); ++id)
    HEARTH_CHECK(seen.insert(fields.tokens[id]).second, BadInput,
                 "GGUF: token {:?} is there twice (again at {})", fields.tokens[id], id);
}

// BOS and EOS that the post-processor adds.
std::vector<NamedId> added(const GgufTokenizerFields& fields, const std::optional<bool>& wanted,
                           bool fallback, const std::optional<int64_t>& id, const char* key) {
  if (!wanted.value_or(fallback) || !id) return {};
  return {{token_at(fields, *id, key), *id}};
}

std::string byte_level_json(const GgufTokenizerFields& fields) {
  const PreTokenizerKind& kind = kind_of(fields.pre);
  // Rows beyond the tokenizer ("[PAD151665]") are not its tokens.
  size_t size = fields.tokens.size();
  while (size > 1 && type_of(fields, size - 1) == kUnused) --size;
  tokenizer_json::Parts parts;
  for (size_t id = 0; id < size; ++id) {
    const int32_t type = type_of(fields, id);
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    parts.added_tokens.push_back(tokenizer_json::added_token(
        {fields.tokens[id], static_cast<int64_t>(id)},
        type == kUserDefined ? tokenizer_json::AddedKind::Plain : tokenizer_json::AddedKind::Special));
  }
  if (kind.nfc) parts.normalizer = {{"type", "NFC"}};
  parts.pre_tokenizer = pre_tokenizer_of(kind);
  parts.decoder = tokenizer_json::byte_level(tokenizer_json::Gpt2Split::Yes);
  parts.post_processor = tokenizer_json::template_processing(
      added(fields, fields.add_bos, kind.add_bos, fields.bos_id, "bos_token_id"),
      added(fields, fields.add_eos, false, fields.eos_id, "eos_token_id"));
  if (parts.post_processor.is_null())
    parts.post_processor = tokenizer_json::byte_level(tokenizer_json::Gpt2Split::Yes);
  parts.model = {{"type", "BPE"},
                 {"dropout", nullptr},
                 {"unk_token", nullptr},
                 {"continuing_subword_prefix", nullptr},
                 {"end_of_word_suffix", nullptr},
                 {"fuse_unk", false},
                 {"byte_fallback", false},
                 {"ignore_merges", kind.ignore_merges},
                 {"vocab", tokenizer_json::vocab(std::span(fields.tokens).first(size))},
                 {"merges", fields.merges}};
  return tokenizer_json::document(parts);
}

std::string sentencepiece_json(const GgufTokenizerFields& fields) {
  HEARTH_CHECK(!fields.scores.empty(), BadInput,
               "GGUF: tokenizer.ggml.model is llama, but there are no scores");
  SentencePieceModel model;
  model.add_dummy_prefix = fields.add_space_prefix.value_or(true);
  model.remove_extra_whitespaces = false;
  bool has_unknown = false;
  for (size_t id = 0; id < fields.tokens.size(); ++id) {
    const int32_t type = type_of(fields, id);
    HEARTH_CHECK(type >= 1 && type <= 6, BadInput, "GGUF: token {} has type {}, expected 1 to 6", id, type);
    model.pieces.push_back({fields.tokens[id], fields.scores[id], static_cast<PieceType>(type)});
    model.byte_fallback = model.byte_fallback || type == static_cast<int32_t>(PieceType::Byte);
    has_unknown = has_unknown || type == kUnknown;
  }
  if (!has_unknown) {
    const int64_t unknown = fields.unk_id.value_or(0);
    token_at(fields, unknown, "unknown_token_id");
    model.pieces[static_cast<size_t>(unknown)].type = PieceType::Unknown;
  }
  SentencePieceOptions options;
  for (const NamedId& token : added(fields, fields.add_bos, true, fields.bos_id, "bos_token_id"))
    options.before.push_back(static_cast<int32_t>(token.id));
  for (const NamedId& token : added(fields, fields.add_eos, false, fields.eos_id, "eos_token_id"))
    options.after.push_back(static_cast<int32_t>(token.id));
  return tokenizer_json_from_sentencepiece(model, options);
}

std::string config_json(const GgufTokenizerFields& fields) {
  Json config{{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  const auto name = [&](const char* key, const std::optional<int64_t>& id, const char* gguf_key) {
    if (id) config[key] = token_at(fields, *id, gguf_key);
  };
  name("bos_token", fields.bos_id, "bos_token_id");
  name("eos_token", fields.eos_id, "eos_token_id");
  name("unk_token", fields.unk_id, "unknown_token_id");
  name("pad_token", fields.pad_id, "padding_token_id");
  if (!fields.chat_template.empty()) config["chat_template"] = fields.chat_template;
  return config.dump(2);
}

}  // namespace

TokenizerFiles tokenizer_files_from_gguf(const GgufTokenizerFields& fields) {
  check(fields);
  HEARTH_CHECK(
      fields.model == "gpt2" || fields.model == "llama", BadInput,
      "GGUF: tokenizer.ggml.model {:?} is not supported; Hearth reads gpt2 (byte-level BPE) and llama "
      "(SentencePiece BPE)",
      fields.model);
  return {{"tokenizer.json", fields.model == "gpt2" ? byte_level_json(fields) : sentencepiece_json(fields)},
          {"tokenizer_config.json", config_json(fields)}};
}

}  // namespace hearth
