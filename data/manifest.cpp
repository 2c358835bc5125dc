// dataset.json: writing and strict reading. The format is written down in data/README.md.
#include <fmt/ranges.h>

#include <algorithm>

#include "base/strict_json.h"
#include "data/dataset.h"
#include "data/json_object.h"

namespace hearth {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int64_t kMaxVocabulary = int64_t{1} << 24;

ordered_json extent_json(const ByteExtent& extent) {
  return {{"offset", extent.offset}, {"size_bytes", extent.size_bytes}};
}

ordered_json shard_json(const ShardInfo& shard) {
  ordered_json out{{"file", shard.file},
                   {"size_bytes", shard.size_bytes},
                   {"num_tokens", shard.num_tokens},
                   {"num_documents", shard.num_documents},
                   {"token_dtype", shard.token_bytes == 2 ? "uint16" : "uint32"},
                   {"digest", shard.digest},
                   {"metadata_digest", shard.metadata_digest},
                   {"documents_digest", shard.documents_digest},
                   {"tokens", extent_json(shard.tokens)},
                   {"documents", extent_json(shard.documents)}};
  if (shard.loss_mask) out["loss_mask"] = extent_json(*shard.loss_mask);
  if (shard.segments) out["segments"] = extent_json(*shard.segments);
  if (shard.num_trained_tokens) out["num_trained_tokens"] = *shard.num_trained_tokens;
  if (shard.num_padding_tokens) out["num_padding_tokens"] = *shard.num_padding_tokens;
  return out;
}

ByteExtent read_extent(JsonObject& parent, const std::string& key) {
  JsonObject object(parent.any(key), parent.where() + ": " + key, ErrorKind::BadInput);
  const ByteExtent extent{object.integer("offset", 0, kMaxShardBytes),
                          object.integer("size_bytes", 0, kMaxShardBytes)};
  object.finish();
  return extent;
}

void check_plain_name(const std::string& name, const std::string& where) {
  const bool plain = !name.empty() && name.size() <= 255 && name[0] != '.' &&
                     std::all_of(name.begin(), name.end(), [](char c) {
                       return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                              c == '.' || c == '_' || c == '-';
                     });
  HEARTH_CHECK(plain, BadInput, "{}: '{}' is not a plain file name inside the dataset's folder", where,
               name.substr(0, 100));
}

std::string digest_text(JsonObject& object, const std::string& key) {
  std::string digest = object.text(key);
  const bool hex = digest.size() == 32 && digest.find_first_not_of("0123456789abcdef") == std::string::npos;
  HEARTH_CHECK(hex, BadInput, "{}: '{}' is not a digest of 32 hexadecimal digits", object.where(), key);
  return digest;
}

ShardInfo read_shard(JsonObject object) {
  ShardInfo shard;
  shard.file = object.text("file");
  check_plain_name(shard.file, object.where());
  shard.size_bytes = object.integer("size_bytes", 1, kMaxShardBytes);
  shard.num_tokens = object.integer("num_tokens", 1, kMaxShardBytes);
  shard.num_documents = object.integer("num_documents", 1, shard.num_tokens);
  const std::string dtype = object.text("token_dtype");
  HEARTH_CHECK(dtype == "uint16" || dtype == "uint32", BadInput,
               "{}: token_dtype is '{}', expected uint16 or uint32", object.where(), dtype);
  shard.token_bytes = dtype == "uint16" ? 2 : 4;
  shard.digest = digest_text(object, "digest");
  shard.metadata_digest = digest_text(object, "metadata_digest");
  shard.documents_digest = digest_text(object, "documents_digest");
  shard.tokens = read_extent(object, "tokens");
  shard.documents = read_extent(object, "documents");
  if (object.has("loss_mask")) shard.loss_mask = read_extent(object, "loss_mask");
  if (object.has("segments")) shard.segments = read_extent(object, "segments");
  for (auto [key, count] : {std::pair("num_trained_tokens", &shard.num_trained_tokens),
                            std::pair("num_padding_tokens", &shard.num_padding_tokens)})
    if (object.has(key)) *count = object.integer(key, 0, shard.num_tokens);
  object.finish();
  HEARTH_CHECK(shard.tokens.size_bytes == shard.num_tokens * shard.token_bytes &&
                   shard.documents.size_bytes == (shard.num_documents + 1) * 8 &&
                   (!shard.loss_mask || shard.loss_mask->size_bytes == shard.num_tokens) &&
                   (!shard.segments || shard.segments->size_bytes % 8 == 0),
               BadInput, "{}: sizes of arrays do not fit {} tokens and {} documents", object.where(),
               shard.num_tokens, shard.num_documents);
  return shard;
}

std::string one_of(JsonObject& object, const std::string& key,
                   std::initializer_list<std::string_view> known) {
  std::string value = object.text(key);
  HEARTH_CHECK(std::find(known.begin(), known.end(), value) != known.end(), BadInput,
               "{}: {} is '{}', expected {}", object.where(), key, value.substr(0, 100),
               fmt::join(known, ", "));
  return value;
}

std::optional<FineTuningSettings> read_fine_tuning(JsonObject& object) {
  if (!object.has("kind")) return std::nullopt;  // written before there was another kind
  FineTuningSettings out;
  out.kind = one_of(object, "kind", {"text", "sft", "preference"});
  if (out.kind == "text") return std::nullopt;
  out.record_format =
      one_of(object, "record_format", {"messages", "alpaca", "sharegpt", "prompt_completion", "preference"});
  if (object.has("chat_template_digest"))
    out.chat_template_digest = digest_text(object, "chat_template_digest");
  out.template_variables = object.text("template_variables");
  out.train_on = one_of(object, "train_on", {"assistant_turns", "last_turn", "all"});
  out.long_documents = one_of(object, "long_documents", {"cut", "drop"});
  out.pack_length = object.integer("pack_length", 0, kMaxPackLength);
  return out;
}

// Every bin is one window, and a last token of padding ends the shard.
void check_bins(const FineTuningSettings& settings, const ShardInfo& shard, const std::string& where) {
  HEARTH_CHECK(shard.loss_mask && shard.num_trained_tokens && shard.num_padding_tokens, BadInput,
               "{}: kind is '{}', but the shard has no loss_mask", where, settings.kind);
  HEARTH_CHECK(settings.pack_length == 0 || (shard.num_tokens - 1) % settings.pack_length == 0, BadInput,
               "{}: {} tokens are not a multiple of pack_length {} and one more", where, shard.num_tokens,
               settings.pack_length);
  HEARTH_CHECK(settings.kind != "preference" || shard.num_documents % 2 == 0, BadInput,
               "{}: {} documents do not form pairs", where, shard.num_documents);
}

SourceInfo read_source(JsonObject object) {
  SourceInfo source{object.text("path"), digest_text(object, "digest"), object.text("selector"),
                    object.count("num_documents"), object.count("num_skipped")};
  object.finish();
  return source;
}

}  // namespace

std::string manifest_to_json(const DatasetManifest& manifest) {
  ordered_json sources = ordered_json::array(), shards = ordered_json::array();
  int64_t num_tokens = 0, num_documents = 0;
  for (const auto& source : manifest.sources) {
    sources.push_back({{"path", source.path},
                       {"digest", source.digest},
                       {"selector", source.selector},
                       {"num_documents", source.num_documents},
                       {"num_skipped", source.num_skipped}});
  }
  for (const auto& shard : manifest.shards) {
    shards.push_back(shard_json(shard));
    num_tokens += shard.num_tokens, num_documents += shard.num_documents;
  }
  ordered_json out{{"format", "hearth.dataset"},
                   {"version", manifest.common.format_version},
                   {"tokenizer_digest", manifest.common.tokenizer_digest},
                   {"vocab_size", manifest.common.vocab_size},
                   {"eos_id", manifest.common.eos_id},
                   {"split", manifest.split},
                   {"validation_fraction", manifest.validation_fraction},
                   {"num_tokens", num_tokens},
                   {"num_documents", num_documents}};
  if (const auto& settings = manifest.fine_tuning) {
    out["kind"] = settings->kind;
    out["record_format"] = settings->record_format;
    if (!settings->chat_template_digest.empty()) out["chat_template_digest"] = settings->chat_template_digest;
    out["template_variables"] = settings->template_variables;
    out["train_on"] = settings->train_on;
    out["long_documents"] = settings->long_documents;
    out["pack_length"] = settings->pack_length;
  }
  out["sources"] = sources;
  out["shards"] = shards;
  // A path need not be UTF-8; it is for people only, so the odd byte is replaced.
  return out.dump(2, ' ', true, ordered_json::error_handler_t::replace) + "\n";
}

DatasetManifest manifest_from_json(std::string_view text, const std::string& path) {
  const json parsed = parse_json_strict(text, path);
  JsonObject object(parsed, path, ErrorKind::BadInput);
  DatasetManifest manifest;
  const std::string format = object.text("format");
  HEARTH_CHECK(format == "hearth.dataset", BadInput, "{}: format is '{}', expected 'hearth.dataset'", path,
               format);
  manifest.common.format_version = object.count("version");
  HEARTH_CHECK(manifest.common.format_version == kShardFormatVersion, BadInput,
               "{}: dataset format version {} is not the supported {}", path, manifest.common.format_version,
               kShardFormatVersion);
  manifest.common.tokenizer_digest = digest_text(object, "tokenizer_digest");
  manifest.common.vocab_size = object.integer("vocab_size", 1, kMaxVocabulary);
  manifest.common.eos_id = object.integer("eos_id", -1, manifest.common.vocab_size - 1);
  manifest.split = object.text("split");
  manifest.validation_fraction = object.number("validation_fraction");
  manifest.fine_tuning = read_fine_tuning(object);
  const int64_t num_tokens = object.count("num_tokens"), num_documents = object.count("num_documents");
  const json& sources = object.array("sources");
  for (size_t i = 0; i < sources.size(); ++i) {
    manifest.sources.push_back(read_source({sources[i], object.place("sources", i), ErrorKind::BadInput}));
  }
  const json& shards = object.array("shards");
  std::set<std::string> names;
  int64_t tokens = 0, documents = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const ShardInfo& shard =
        manifest.shards.emplace_back(read_shard({shards[i], object.place("shards", i), ErrorKind::BadInput}));
    HEARTH_CHECK(names.insert(shard.file).second, BadInput, "{}: shard '{}' is listed twice", path,
                 shard.file);
    if (manifest.fine_tuning) check_bins(*manifest.fine_tuning, shard, object.place("shards", i));
    tokens = checked_add(tokens, shard.num_tokens), documents = checked_add(documents, shard.num_documents);
  }
  object.finish();
  HEARTH_CHECK(tokens == num_tokens && documents == num_documents, BadInput,
               "{}: shards hold {} tokens and {} documents, the totals say {} and {}", path, tokens,
               documents, num_tokens, num_documents);
  return manifest;
}

}  // namespace hearth
