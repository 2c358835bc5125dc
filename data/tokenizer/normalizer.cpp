#include "data/tokenizer/normalizer.h"

#include <utility>
#include <vector>

#include "data/tokenizer/byte_alphabet.h"
#include "data/tokenizer/json_fields.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

namespace jf = json_fields;

class UnicodeForm final : public Normalizer {
 public:
  explicit UnicodeForm(unicode::Form form) : form_(form) {}
  void apply(std::string& text, RegexContext&) const override { text = unicode::normalize(text, form_); }

 private:
  unicode::Form form_;
};

class Lowercase final : public Normalizer {
 public:
  void apply(std::string& text, RegexContext&) const override { text = unicode::lowercase(text); }
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  void apply(std::string& text, RegexContext&) const override { text = bytes_to_alphabet(text); }
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(std::string& text, RegexContext&) const override {
    if (!text.empty()) text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply(std::string& text, RegexContext&) const override {
    size_t begin = 0, end = text.size();
    while (left_ && begin < end && unicode::is_white_space(unicode::decode_at(text, begin)))
      begin += unicode::sequence_length(static_cast<unsigned char>(text[begin]));
    while (right_ && end > begin) {
      size_t last = end - 1;
      while ((static_cast<unsigned char>(text[last]) & 0xc0) == 0x80) --last;
      if (!unicode::is_white_space(unicode::decode_at(text, last))) break;
      end = last;
    }
    text = text.substr(begin, end - begin);
  }

 private:
  bool left_, right_;
};

class Replace final : public Normalizer {
 public:
  Replace(Regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void apply(std::string& text, RegexContext& context) const override {
    std::string shadow;
    const std::string& subject = unicode::substitute_new_characters(text, shadow) ? shadow : text;
    std::string out;
    size_t done = 0;
    for (Regex::Matches m(pattern_, subject, context); m.next(); done = m.end()) {
      out.append(text, done, m.begin() - done);
      out += content_;
    }
    if (done == 0 && out.empty()) return;
    out.append(text, done);
    text = std::move(out);
  }

 private:
  Regex pattern_;
  std::string content_;
};

// One plain string for another: the common case of Replace (LLaMA's spaces), without the regular expression.
class ReplaceString final : public Normalizer {
 public:
  ReplaceString(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}
  void apply(std::string& text, RegexContext&) const override {
    if (!from_.empty() && text.find(from_) != std::string::npos) text = replace_all(text, from_, to_);
  }

 private:
  std::string from_, to_;
};

class NormalizerSequence final : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  void apply(std::string& text, RegexContext& context) const override {
    for (const auto& step : steps_) step->apply(text, context);
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

constexpr const char* kWhere = "normalizer";

std::unique_ptr<Normalizer> make_replace(const nlohmann::json& spec) {
  const auto& pattern = jf::member(spec, "pattern", kWhere);
  std::string content = jf::string(spec, "content", kWhere);
  if (jf::find(pattern, "String") != nullptr)
    return std::make_unique<ReplaceString>(jf::string(pattern, "String", kWhere), std::move(content));
  return std::make_unique<Replace>(pattern_from_json(pattern, kWhere), std::move(content));
}

std::unique_ptr<Normalizer> make_sequence(const nlohmann::json& spec) {
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (const auto& step : jf::array(spec, "normalizers", kWhere)) steps.push_back(make_normalizer(step));
  return std::make_unique<NormalizerSequence>(std::move(steps));
}

}  // namespace

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  if (from.empty()) return std::string(text);
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  size_t done = 0;
  for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, done)) {
    out.append(text, done, at - done);
    out += to;
    done = at + from.size();
  }
  return out.append(text, done);
}

Regex pattern_from_json(const nlohmann::json& spec, const char* where) {
  if (jf::find(spec, "String") != nullptr) return Regex(Regex::escape(jf::string(spec, "String", where)));
  return Regex(jf::string(spec, "Regex", where));
}

std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& spec) {
  const std::string type = jf::string(spec, "type", kWhere);
  if (type == "Sequence") return make_sequence(spec);
  if (type == "NFC") return std::make_unique<UnicodeForm>(unicode::Form::NFC);
  if (type == "NFD") return std::make_unique<UnicodeForm>(unicode::Form::NFD);
  if (type == "NFKC") return std::make_unique<UnicodeForm>(unicode::Form::NFKC);
  if (type == "NFKD") return std::make_unique<UnicodeForm>(unicode::Form::NFKD);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "ByteLevel") return std::make_unique<ByteLevelNormalizer>();
  if (type == "StripAccents") return std::make_unique<Replace>(Regex("\\p{M}"), "");
  if (type == "Prepend") return std::make_unique<Prepend>(jf::string(spec, "prepend", kWhere));
  if (type == "Replace") return make_replace(spec);
  if (type == "Strip")
    return std::make_unique<Strip>(jf::boolean_or(spec, "strip_left", true, kWhere),
                                   jf::boolean_or(spec, "strip_right", true, kWhere));
  fail(ErrorKind::BadInput,
       "normalizer: type {:?} is not supported; known: Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Strip, "
       "StripAccents, "
       "Prepend, Replace, ByteLevel",
       type);
}

}  // namespace hearth
