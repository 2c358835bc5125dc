// The pipeline of tokenizer.json: added tokens, normalizer, added tokens in normalized text, pre-tokenizer,
// BPE, post-processor; and back through the decoder. The order of steps is that of Hugging Face `tokenizers`.
#include <algorithm>
#include <unordered_map>

#include "data/tokenizer/added_tokens.h"
#include "data/tokenizer/bpe_model.h"
#include "data/tokenizer/decoder.h"
#include "data/tokenizer/engine.h"
#include "data/tokenizer/json_fields.h"
#include "data/tokenizer/normalizer.h"
#include "data/tokenizer/post_processor.h"
#include "data/tokenizer/pre_tokenizer.h"
#include "data/tokenizer/scratch_pool.h"

namespace hearth {

namespace {

namespace jf = json_fields;

class JsonEngine final : public TokenizerEngine {
 public:
  explicit JsonEngine(const nlohmann::json& spec) : model_(jf::member(spec, "model", "tokenizer.json")) {
    if (const auto* normalizer = jf::find(spec, "normalizer")) normalizer_ = make_normalizer(*normalizer);
    if (const auto* pre = jf::find(spec, "pre_tokenizer"))
      pre_tokenizer_ = PreTokenizer(*pre, model_.preferred_form());
    model_.set_form(pre_tokenizer_.form());
    std::vector<AddedToken> added;
    if (const auto* list = jf::find(spec, "added_tokens")) added = read_added_tokens(*list);
    place_tokens(added);
    build_matchers(std::move(added));
    if (const auto* post = jf::find(spec, "post_processor")) post_ = read_post_processor(*post);
    for (const auto& side : {post_.before, post_.after})
      for (const int32_t id : side)
        HEARTH_CHECK(static_cast<size_t>(id) < tokens_.size(), BadInput,
                     "post_processor: id {} is outside the vocabulary of {} tokens", id, tokens_.size());
    if (const auto* decoder = jf::find(spec, "decoder")) decoder_ = make_decoder(*decoder);
  }

  std::vector<int32_t> encode(std::string_view text, SpecialTokens special) const override {
    const auto scratch = scratch_.borrow();
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 4 + 8);
    if (special == SpecialTokens::Add) ids = post_.before;
    raw_matcher_.split(text, [&](std::string_view part, int32_t id) {
      if (id >= 0) return ids.push_back(id);
      encode_part(Piece{part, part.data() == text.data()}, *scratch, ids);
    });
    if (special == SpecialTokens::Add) ids.insert(ids.end(), post_.after.begin(), post_.after.end());
    return ids;
  }

  std::string decode(std::span<const int32_t> ids, DecodeSpecial special) const override {
    const auto scratch = scratch_.borrow();
    std::vector<std::string> parts;
    parts.reserve(ids.size());
    for (const int32_t id : ids) {
      if (id < 0 || static_cast<size_t>(id) >= tokens_.size()) continue;
      const TokenInfo& token = tokens_[static_cast<size_t>(id)];
      if (special == DecodeSpecial::Keep || !token.special) parts.push_back(shown_text(id));
    }
    if (decoder_) decoder_->apply(parts, scratch->regex);
    std::string out;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i > 0 && !decoder_) out += ' ';  // without a decoder `tokenizers` puts spaces between tokens
      out += parts[i];
    }
    return out;
  }

  std::optional<int32_t> token_to_id(std::string_view token) const override {
    const auto it = added_ids_.find(std::string(token));
    return it != added_ids_.end() ? std::optional(it->second) : model_.token_to_id(token);
  }

 private:
  struct Scratch {
    RegexContext regex;
    BpeScratch bpe;
  };

  // A token that is looked for in normalized text is also shown normalized (`tokenizers` 0.23 does so).
  const std::string& shown_text(int32_t id) const {
    const auto it = normalized_texts_.find(id);
    return it == normalized_texts_.end() ? tokens_[static_cast<size_t>(id)].text : it->second;
  }

  void encode_part(const Piece& part, Scratch& scratch, std::vector<int32_t>& ids) const {
    const auto into_pieces = [&](const Piece& piece) {
      pre_tokenizer_.split(piece, scratch.regex,
                           [&](const Piece& p) { model_.encode(p.text, scratch.bpe, ids); });
    };
    std::string normalized;
    Piece text = part;
    if (normalizer_) {
      normalized = std::string(part.text);
      normalizer_->apply(normalized, scratch.regex);
      text.text = normalized;
    }
    normalized_matcher_.split(text.text, [&](std::string_view piece, int32_t id) {
      if (id >= 0) return ids.push_back(id);
      into_pieces(Piece{piece, part.at_start && piece.data() == text.text.data()});
    });
  }

  // An added token has the id of the model's token of the same text, otherwise the next free one;
  // `tokenizers` gives ids by that rule and only warns when the file says otherwise, so a file that does is
  // refused here.
  void place_tokens(const std::vector<AddedToken>& added) {
    for (size_t i = 0; i < model_.tokens().size(); ++i) tokens_.push_back({model_.tokens()[i]});
    auto next = static_cast<int64_t>(model_.vocab_size());
    for (const AddedToken& token : added) {
      if (token.content.empty()) continue;
      HEARTH_CHECK(!added_ids_.contains(token.content), BadInput, "added_tokens: {:?} is listed twice",
                   token.content);
      const auto known = model_.token_to_id(token.content);
      const int64_t id = known ? *known : next;
      HEARTH_CHECK(id == token.id, BadInput,
                   "added_tokens: {:?} has id {}, but by the order of the list and the vocabulary of {} "
                   "tokens it is {} "
                   "(an id gap or a list out of order)",
                   token.content, token.id, model_.vocab_size(), id);
      if (static_cast<size_t>(id) >= tokens_.size()) tokens_.resize(static_cast<size_t>(id) + 1);
      tokens_[static_cast<size_t>(id)] = {token.content, token.special};
      added_ids_.emplace(token.content, token.id);
      next = std::max(next, id + 1);
    }
    HEARTH_CHECK(!tokens_.empty(), BadInput, "tokenizer.json: the vocabulary is empty");
    for (size_t i = 0; i < tokens_.size(); ++i)
      HEARTH_CHECK(!tokens_[i].text.empty() || model_.has_token(static_cast<int32_t>(i)), BadInput,
                   "tokenizer.json: no token has the id {}, but ids go up to {}", i, tokens_.size() - 1);
  }

  void build_matchers(std::vector<AddedToken> added) {
    RegexContext context;
    std::vector<AddedTokenMatcher::Pattern> raw, normalized;
    std::stable_partition(added.begin(), added.end(), [](const AddedToken& token) { return token.special; });
    for (AddedToken& token : added) {
      if (token.content.empty()) continue;
      std::string text = token.content;
      if (token.normalized && normalizer_) {
        normalizer_->apply(text, context);
        normalized_texts_.emplace(token.id, text);
      }
      (token.normalized ? normalized : raw).push_back({std::move(text), std::move(token)});
    }
    raw_matcher_ = AddedTokenMatcher(std::move(raw));
    normalized_matcher_ = AddedTokenMatcher(std::move(normalized));
  }

  BpeModel model_;
  std::unique_ptr<Normalizer> normalizer_;
  PreTokenizer pre_tokenizer_;
  AddedTokenMatcher raw_matcher_, normalized_matcher_;
  PostProcessor post_;
  std::unique_ptr<TokenDecoder> decoder_;
  std::unordered_map<std::string, int32_t> added_ids_;
  std::unordered_map<int32_t, std::string> normalized_texts_;  // of added tokens
  mutable ScratchPool<Scratch> scratch_;
};

}  // namespace

std::unique_ptr<TokenizerEngine> make_json_engine(const nlohmann::json& spec) {
  HEARTH_CHECK(spec.is_object(), BadInput, "tokenizer.json must hold an object, got {}", spec.type_name());
  return std::make_unique<JsonEngine>(spec);
}

}  // namespace hearth
