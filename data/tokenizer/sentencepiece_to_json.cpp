#include "data/tokenizer/sentencepiece_to_json.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

#include "base/error.h"
#include "data/tokenizer/sentencepiece_ranks.h"
#include "data/tokenizer/tokenizer_json_writer.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

using tokenizer_json::Json;
constexpr const char* kUnderline = "\xe2\x96\x81";

std::vector<size_t> by_rank(const std::vector<int32_t>& ranks) {
  std::vector<size_t> order(ranks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return ranks[a] < ranks[b]; });
  return order;
}

// Merges must be ordered by score, not by id: LLaMA-2's run of two spaces has id 259 and a score of -1e9.
Json merges_of(const SentencePieceModel& model) {
  std::unordered_map<std::string_view, size_t> ids;
  const auto mergeable = [&](size_t i) {
    return model.pieces[i].type == PieceType::Normal || model.pieces[i].type == PieceType::UserDefined;
  };
  for (size_t i = 0; i < model.pieces.size(); ++i)
    if (mergeable(i)) ids.emplace(model.pieces[i].text, i);
  Json merges = Json::array();
  for (const size_t i : by_rank(sentencepiece_ranks(model))) {
    if (!mergeable(i)) continue;
    const std::string_view text = model.pieces[i].text;
    for (size_t cut = 0;;) {
      cut += unicode::sequence_length(static_cast<unsigned char>(text[cut]));
      if (cut >= text.size()) break;
      if (ids.contains(text.substr(0, cut)) && ids.contains(text.substr(cut)))
        merges.push_back(Json::array({text.substr(0, cut), text.substr(cut)}));
    }
  }
  return merges;
}

Json replace_step(const char* kind, const std::string& pattern, const std::string& content) {
  return {{"type", "Replace"}, {"pattern", {{kind, pattern}}}, {"content", content}};
}

Json normalizer_of(const SentencePieceModel& model) {
  Json steps = Json::array();
  if (model.remove_extra_whitespaces) {
    steps.push_back(replace_step("Regex", "\\A +| +\\z", ""));
    steps.push_back(replace_step("Regex", " {2,}", " "));
  }
  if (model.add_dummy_prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kUnderline}});
  steps.push_back(replace_step("String", " ", kUnderline));
  return {{"type", "Sequence"}, {"normalizers", steps}};
}

Json decoder_of(const SentencePieceModel& model) {
  Json steps =
      Json::array({replace_step("String", kUnderline, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}});
  if (model.add_dummy_prefix || model.remove_extra_whitespaces)
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", steps}};
}

Json added_tokens_of(const SentencePieceModel& model) {
  Json added = Json::array();
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const PieceType type = model.pieces[i].type;
    if (type != PieceType::Unknown && type != PieceType::Control && type != PieceType::UserDefined) continue;
    added.push_back(tokenizer_json::added_token({model.pieces[i].text, static_cast<int64_t>(i)},
                                                type == PieceType::UserDefined
                                                    ? tokenizer_json::AddedKind::Plain
                                                    : tokenizer_json::AddedKind::Special));
  }
  return added;
}

}  // namespace

std::vector<int32_t> sentencepiece_ranks(const SentencePieceModel& model) {
  std::vector<float> scores;
  for (const SentencePiece& piece : model.pieces) scores.push_back(piece.score);
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  std::vector<int32_t> ranks;
  for (const SentencePiece& piece : model.pieces) {
    const auto it = std::lower_bound(scores.begin(), scores.end(), piece.score, std::greater<>());
    ranks.push_back(static_cast<int32_t>(it - scores.begin()));
  }
  return ranks;
}

std::string tokenizer_json_from_sentencepiece(const SentencePieceModel& model,
                                              const SentencePieceOptions& options) {
  HEARTH_CHECK(model.escape_whitespaces, BadInput,
               "tokenizer.model: without escape_whitespaces it cannot be written as tokenizer.json");
  std::vector<std::string> tokens;
  std::string unknown;
  for (const SentencePiece& piece : model.pieces) {
    tokens.push_back(piece.text);
    if (piece.type == PieceType::Unknown) unknown = piece.text;
  }
  const auto named = [&](const std::vector<int32_t>& ids) {
    std::vector<tokenizer_json::NamedId> out;
    for (const int32_t id : ids) out.push_back({tokens[static_cast<size_t>(id)], id});
    return out;
  };
  tokenizer_json::Parts parts;
  parts.added_tokens = added_tokens_of(model);
  parts.normalizer = normalizer_of(model);
  parts.post_processor = tokenizer_json::template_processing(named(options.before), named(options.after));
  parts.decoder = decoder_of(model);
  parts.model = {{"type", "BPE"},
                 {"dropout", nullptr},
                 {"unk_token", unknown},
                 {"continuing_subword_prefix", nullptr},
                 {"end_of_word_suffix", nullptr},
                 {"fuse_unk", true},
                 {"byte_fallback", model.byte_fallback},
                 {"ignore_merges", false},
                 {"vocab", tokenizer_json::vocab(tokens)},
                 {"merges", merges_of(model)}};
  return tokenizer_json::document(parts);
}

}  // namespace hearth
