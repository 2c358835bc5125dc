#include "data/tokenizer/tokenizer.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/hash.h"
#include "data/tokenizer/engine.h"
#include "data/tokenizer/json_fields.h"
#include "data/tokenizer/sentencepiece_model.h"
#include "data/tokenizer/sentencepiece_to_json.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

namespace jf = json_fields;
constexpr int64_t kMaxFileBytes = int64_t{512} << 20;  // the largest real tokenizer.json is under 40 MB
constexpr std::array kCompanions{"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"};

const std::string* find_file(const TokenizerFiles& files, std::string_view name) {
  for (const auto& [file, bytes] : files)
    if (file == name) return &bytes;
  return nullptr;
}

nlohmann::json parse_companion(const TokenizerFiles& files, const char* name, const std::string& origin) {
  const std::string* text = find_file(files, name);
  if (text == nullptr) return nlohmann::json::object();
  nlohmann::json parsed = jf::parse(*text, origin + ": " + name);
  HEARTH_CHECK(parsed.is_object(), BadInput, "{}: {} must hold an object, got {}", origin, name,
               parsed.type_name());
  return parsed;
}

// The text of a special token in tokenizer_config.json or special_tokens_map.json: a string, or an object
// around one.
std::string token_text(const nlohmann::json& value, const char* key) {
  if (value.is_string()) return value.get<std::string>();
  return jf::string(value, "content", key);
}

struct NamedToken {
  bool stated = false;  // a file speaks of it, be it with null
  std::string text;
};

NamedToken stated_token(const nlohmann::json& config, const nlohmann::json& map, const char* key) {
  for (const nlohmann::json* source : {&config, &map}) {
    const auto it = source->find(key);
    if (it == source->end()) continue;
    return {true, it->is_null() ? "" : token_text(*it, key)};
  }
  return {};
}

std::optional<int32_t> special_id(const TokenizerEngine& engine, const NamedToken& stated,
                                  std::initializer_list<const char*> usual) {
  if (stated.stated) return stated.text.empty() ? std::nullopt : engine.token_to_id(stated.text);
  for (const char* name : usual)
    if (const auto id = engine.token_to_id(name)) return id;
  return std::nullopt;
}

std::string default_chat_template(const TokenizerFiles& files, const nlohmann::json& config) {
  if (const std::string* jinja = find_file(files, "chat_template.jinja")) return *jinja;
  const nlohmann::json* found = jf::find(config, "chat_template");
  if (found == nullptr) return "";
  if (found->is_string()) return found->get<std::string>();
  for (const auto& entry : jf::array(config, "chat_template", "tokenizer_config.json"))
    if (jf::string_or(entry, "name", "", "chat_template") == "default")
      return jf::string(entry, "template", "chat_template");
  return "";
}

// LLaMA's slow tokenizer class adds BOS unless told otherwise; a bare tokenizer.model adds nothing.
SentencePieceOptions sentencepiece_options(const SentencePieceModel& model, const nlohmann::json& config) {
  constexpr const char* kWhere = "tokenizer_config.json";
  const bool llama = jf::string_or(config, "tokenizer_class", "", kWhere).starts_with("Llama");
  SentencePieceOptions options;
  const auto add = [&](const char* flag, bool fallback, const char* key, const char* usual,
                       std::vector<int32_t>& side) {
    if (!jf::boolean_or(config, flag, fallback, kWhere)) return;
    const nlohmann::json* stated = jf::find(config, key);
    const std::string text = stated ? token_text(*stated, key) : usual;
    for (size_t i = 0; i < model.pieces.size(); ++i)
      if (model.pieces[i].text == text) return side.push_back(static_cast<int32_t>(i));
    fail(ErrorKind::BadInput, "{}: {} asks for {:?}, which is not in tokenizer.model", kWhere, flag, text);
  };
  add("add_bos_token", llama, "bos_token", "<s>", options.before);
  add("add_eos_token", false, "eos_token", "</s>", options.after);
  return options;
}

// By extension, and by content where the name says nothing.
const char* kind_of(const std::string& path, std::string_view bytes) {
  if (path.ends_with(".json")) return "tokenizer.json";
  if (path.ends_with(".model")) return "tokenizer.model";
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && bytes[first] == '{' ? "tokenizer.json" : "tokenizer.model";
}

// tiktoken's own format: "IQ== 0\n".
bool looks_like_tiktoken(std::string_view bytes) {
  const std::string_view line = bytes.substr(0, bytes.substr(0, 64).find('\n'));
  return line.size() < 64 && line.ends_with(" 0") && line.find("==") != std::string_view::npos;
}

}  // namespace

struct Tokenizer::Impl {
  TokenizerFiles files;
  std::string digest, chat_template;
  std::unique_ptr<TokenizerEngine> engine;
  std::optional<int32_t> eos, bos, pad;
  std::string converted_json;  // of a SentencePiece model
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

std::unique_ptr<Tokenizer> Tokenizer::load(FileSystem& fs, const std::string& path) {
  HEARTH_CHECK(
      fs.exists(path), BadInput,
      "tokenizer {}: no such file; give a tokenizer.json, a tokenizer.model or a directory that holds one",
      path);
  std::string directory = path, main_file;
  if (!fs.is_directory(path)) {
    const size_t slash = path.rfind('/');
    directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    main_file = path;
  } else {
    for (const char* name : {"tokenizer.model", "tokenizer.json"})
      if (fs.exists(path + "/" + name)) main_file = path + "/" + name;
    HEARTH_CHECK(!main_file.empty(), BadInput,
                 "tokenizer {}: the directory holds neither tokenizer.json nor tokenizer.model", path);
  }
  TokenizerFiles files;
  std::string bytes = fs.read_text(main_file, kMaxFileBytes);
  const char* kind = kind_of(main_file, bytes);
  files.emplace_back(kind, std::move(bytes));
  for (const char* name : kCompanions)
    if (const std::string file = directory + "/" + name; fs.exists(file))
      files.emplace_back(name, fs.read_text(file, kMaxFileBytes));
  return from_files(std::move(files), path);
}

std::unique_ptr<Tokenizer> Tokenizer::from_files(TokenizerFiles files, const std::string& origin) {
  auto impl = std::make_unique<Impl>();
  try {
    const nlohmann::json config = parse_companion(files, "tokenizer_config.json", origin);
    const nlohmann::json map = parse_companion(files, "special_tokens_map.json", origin);
    if (const std::string* json = find_file(files, "tokenizer.json")) {
      impl->digest = xxh3_128_hex(*json);
      impl->engine = make_json_engine(jf::parse(*json, origin));
    } else {
      const std::string* bytes = find_file(files, "tokenizer.model");
      HEARTH_CHECK(bytes != nullptr, BadInput, "{}: neither tokenizer.json nor tokenizer.model", origin);
      HEARTH_CHECK(!looks_like_tiktoken(*bytes), BadInput,
                   "{}: this tokenizer.model is a tiktoken file, not SentencePiece; use the tokenizer.json",
                   origin);
      const SentencePieceModel model = read_sentencepiece_model(*bytes);
      const SentencePieceOptions options = sentencepiece_options(model, config);
      impl->digest = xxh3_128_hex(*bytes);
      impl->engine = make_sentencepiece_engine(model, options);
      if (model.escape_whitespaces) impl->converted_json = tokenizer_json_from_sentencepiece(model, options);
    }
    const TokenizerEngine& engine = *impl->engine;
    impl->eos = special_id(
        engine, stated_token(config, map, "eos_token"),
        {"<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "</s>", "<eos>", "<|end|>"});
    impl->bos = special_id(engine, stated_token(config, map, "bos_token"),
                           {"<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>"});
    impl->pad = special_id(engine, stated_token(config, map, "pad_token"),
                           {"<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"});
    impl->chat_template = default_chat_template(files, config);
  } catch (Error& error) {
    throw error.with("tokenizer", origin);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::BadInput, "{}: {}", origin, error.what());
  }
  impl->files = std::move(files);
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

std::vector<int32_t> Tokenizer::encode(std::string_view utf8, SpecialTokens special) const {
  if (unicode::is_valid_utf8(utf8)) return impl_->engine->encode(utf8, special);
  return impl_->engine->encode(unicode::replace_invalid_utf8(utf8), special);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, DecodeSpecial special) const {
  return impl_->engine->decode(ids, special);
}

int64_t Tokenizer::vocab_size() const {
  return static_cast<int64_t>(impl_->engine->tokens().size());
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  return impl_->engine->token_to_id(token);
}

std::string Tokenizer::id_to_token(int32_t id) const {
  return id < 0 || id >= vocab_size() ? "" : impl_->engine->tokens()[static_cast<size_t>(id)].text;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->engine->tokens()[static_cast<size_t>(id)].special;
}

std::optional<int32_t> Tokenizer::eos_id() const {
  return impl_->eos;
}
std::optional<int32_t> Tokenizer::bos_id() const {
  return impl_->bos;
}
std::optional<int32_t> Tokenizer::pad_id() const {
  return impl_->pad;
}
const std::string& Tokenizer::chat_template() const {
  return impl_->chat_template;
}
const std::string& Tokenizer::digest() const {
  return impl_->digest;
}
const TokenizerFiles& Tokenizer::files() const {
  return impl_->files;
}

TokenizerFiles Tokenizer::export_files() const {
  TokenizerFiles out = impl_->files;
  if (impl_->converted_json.empty()) return out;
  out.emplace_back("tokenizer.json", impl_->converted_json);
  if (find_file(out, "tokenizer_config.json") == nullptr) {
    nlohmann::json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
                          {"clean_up_tokenization_spaces", false}};
    if (impl_->eos) config["eos_token"] = id_to_token(*impl_->eos);
    if (impl_->bos) config["bos_token"] = id_to_token(*impl_->bos);
    if (impl_->pad) config["pad_token"] = id_to_token(*impl_->pad);
    out.emplace_back("tokenizer_config.json", config.dump(2));
  }
  return out;
}

}  // namespace hearth
