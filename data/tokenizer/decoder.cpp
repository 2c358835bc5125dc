#include "data/tokenizer/decoder.h"

#include <utility>

#include "data/tokenizer/byte_alphabet.h"
#include "data/tokenizer/json_fields.h"
#include "data/tokenizer/normalizer.h"
#include "data/tokenizer/sentencepiece_model.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

namespace jf = json_fields;
constexpr const char* kWhere = "decoder";
using Tokens = std::vector<std::string>;

class ByteLevelDecoder final : public TokenDecoder {
 public:
  void apply(Tokens& tokens, RegexContext&) const override {
    std::string bytes;
    for (const std::string& token : tokens) bytes += alphabet_to_bytes(token).value_or(token);
    tokens = {unicode::is_valid_utf8(bytes) ? std::move(bytes) : unicode::replace_invalid_utf8(bytes)};
  }
};

class FuseDecoder final : public TokenDecoder {
 public:
  void apply(Tokens& tokens, RegexContext&) const override {
    std::string all;
    for (const std::string& token : tokens) all += token;
    tokens = {std::move(all)};
  }
};

// A run of byte tokens becomes text if it is valid UTF-8 as a whole, otherwise one U+FFFD per byte.
class ByteFallbackDecoder final : public TokenDecoder {
 public:
  void apply(Tokens& tokens, RegexContext&) const override {
    Tokens out;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (unicode::is_valid_utf8(bytes)) {
        out.push_back(bytes);
      } else {
        out.insert(out.end(), bytes.size(), "\xef\xbf\xbd");
      }
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const int byte = byte_of_piece(token); byte >= 0) {
        bytes.push_back(static_cast<char>(byte));
      } else {
        flush();
        out.push_back(std::move(token));
      }
    }
    flush();
    tokens = std::move(out);
  }
};

class MetaspaceDecoder final : public TokenDecoder {
 public:
  MetaspaceDecoder(std::string replacement, bool drop_first)
      : replacement_(std::move(replacement)), drop_first_(drop_first) {}
  void apply(Tokens& tokens, RegexContext&) const override {
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = replace_all(tokens[i], replacement_, i == 0 && drop_first_ ? "" : " ");
  }

 private:
  std::string replacement_;
  bool drop_first_;
};

class ReplaceDecoder final : public TokenDecoder {
 public:
  explicit ReplaceDecoder(std::unique_ptr<Normalizer> replace) : replace_(std::move(replace)) {}
  void apply(Tokens& tokens, RegexContext& context) const override {
    for (std::string& token : tokens) replace_->apply(token, context);
  }

 private:
  std::unique_ptr<Normalizer> replace_;  // the normalizer of that name does the same to one text
};

class StripDecoder final : public TokenDecoder {
 public:
  StripDecoder(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void apply(Tokens& tokens, RegexContext&) const override {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (int64_t i = 0; i < start_ && rest.starts_with(content_); ++i) rest.remove_prefix(content_.size());
      for (int64_t i = 0; i < stop_ && rest.ends_with(content_); ++i) rest.remove_suffix(content_.size());
      token = std::string(rest);
    }
  }

 private:
  std::string content_;
  int64_t start_, stop_;
};

class SuffixDecoder final : public TokenDecoder {  // BPEDecoder
 public:
  explicit SuffixDecoder(std::string suffix) : suffix_(std::move(suffix)) {}
  void apply(Tokens& tokens, RegexContext&) const override {
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = replace_all(tokens[i], suffix_, i + 1 == tokens.size() ? "" : " ");
  }

 private:
  std::string suffix_;
};

class DecoderSequence final : public TokenDecoder {
 public:
  explicit DecoderSequence(std::vector<std::unique_ptr<TokenDecoder>> steps) : steps_(std::move(steps)) {}
  void apply(Tokens& tokens, RegexContext& context) const override {
    for (const auto& step : steps_) step->apply(tokens, context);
  }

 private:
  std::vector<std::unique_ptr<TokenDecoder>> steps_;
};

std::unique_ptr<TokenDecoder> make_sequence(const nlohmann::json& spec) {
  std::vector<std::unique_ptr<TokenDecoder>> steps;
  for (const auto& step : jf::array(spec, "decoders", kWhere)) steps.push_back(make_decoder(step));
  return std::make_unique<DecoderSequence>(std::move(steps));
}

std::unique_ptr<TokenDecoder> make_metaspace(const nlohmann::json& spec) {
  const bool add_prefix_space = jf::boolean_or(spec, "add_prefix_space", true, kWhere);
  const std::string scheme =
      jf::string_or(spec, "prepend_scheme", add_prefix_space ? "always" : "never", kWhere);
  const std::string replacement = jf::string(spec, "replacement", kWhere);
  HEARTH_CHECK(!replacement.empty(), BadInput, "decoder: Metaspace's replacement is empty");
  return std::make_unique<MetaspaceDecoder>(replacement, scheme != "never");
}

std::unique_ptr<TokenDecoder> make_strip(const nlohmann::json& spec) {
  const std::string content = jf::string(spec, "content", kWhere);
  HEARTH_CHECK(!content.empty(), BadInput, "decoder: Strip's content is empty");
  return std::make_unique<StripDecoder>(content, jf::integer(spec, "start", kWhere),
                                        jf::integer(spec, "stop", kWhere));
}

}  // namespace

std::unique_ptr<TokenDecoder> make_decoder(const nlohmann::json& spec) {
  const std::string type = jf::string(spec, "type", kWhere);
  if (type == "Sequence") return make_sequence(spec);
  if (type == "ByteLevel") return std::make_unique<ByteLevelDecoder>();
  if (type == "Metaspace") return make_metaspace(spec);
  if (type == "ByteFallback") return std::make_unique<ByteFallbackDecoder>();
  if (type == "Fuse") return std::make_unique<FuseDecoder>();
  if (type == "Replace") return std::make_unique<ReplaceDecoder>(make_normalizer(spec));
  if (type == "Strip") return make_strip(spec);
  if (type == "BPEDecoder")
    return std::make_unique<SuffixDecoder>(jf::string_or(spec, "suffix", "</w>", kWhere));
  fail(ErrorKind::BadInput,
       "decoder: type {:?} is not supported; known: ByteLevel, Metaspace, ByteFallback, Fuse, Replace, "
       "Strip, BPEDecoder, "
       "Sequence",
       type);
}

}  // namespace hearth
