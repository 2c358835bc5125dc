#include "data/tokenizer/pre_tokenizer.h"

#include <optional>
#include <string>
#include <utility>

#include "data/tokenizer/byte_alphabet.h"
#include "data/tokenizer/json_fields.h"
#include "data/tokenizer/normalizer.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

namespace jf = json_fields;
constexpr const char* kWhere = "pre_tokenizer";

// GPT-2's expression, which ByteLevel applies when use_regex is set (Radford et al. 2019).
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// What `tokenizers` takes for punctuation: ASCII, and the general category P of an older Unicode release than
// the rest of it knows (the unicode_categories crate). Found by trying every code point; the first list came
// later, U+166D and U+111C9 have left the category since.
constexpr const char* kPunctuation =
    R"([!-/:-@\[-`{-~\x{166d}\x{111c9}]|(?![)"
    R"(\x{61d}\x{9fd}\x{a76}\x{c77}\x{c84}\x{1b4e}-\x{1b4f}\x{1b7d}-\x{1b7f}\x{2e43}-\x{2e4f})"
    R"(\x{2e52}-\x{2e5d}\x{10d6e}\x{10ead}\x{10f55}-\x{10f59}\x{10f86}-\x{10f89})"
    R"(\x{113d4}-\x{113d5}\x{113d7}-\x{113d8}\x{1144b}-\x{1144f}\x{1145a}-\x{1145b}\x{1145d})"
    R"(\x{11660}-\x{1166c}\x{116b9}\x{1183b}\x{11944}-\x{11946}\x{119e2}\x{11a3f}-\x{11a46})"
    R"(\x{11a9a}-\x{11a9c}\x{11a9e}-\x{11aa2}\x{11b00}-\x{11b09}\x{11be1}\x{11c41}-\x{11c45})"
    R"(\x{11c70}-\x{11c71}\x{11ef7}-\x{11ef8}\x{11f43}-\x{11f4f}\x{11fff}\x{12ff1}-\x{12ff2})"
    R"(\x{16d6d}-\x{16d6f}\x{16e97}-\x{16e9a}\x{16fe2}\x{1e5ff}\x{1e95e}-\x{1e95f})"
    R"(])\p{P})";
// \w of Rust's regex crate: it has Join_Control where Oniguruma's does not.
constexpr const char* kRustWords = R"([\w\x{200c}\x{200d}]+|[^\w\s\x{200c}\x{200d}]+)";

enum class Behavior { Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous };

Behavior behavior_from(const std::string& name) {
  if (name == "Removed") return Behavior::Removed;
  if (name == "Isolated") return Behavior::Isolated;
  if (name == "MergedWithPrevious") return Behavior::MergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::MergedWithNext;
  if (name == "Contiguous") return Behavior::Contiguous;
  fail(ErrorKind::BadInput, "pre_tokenizer: behavior {:?} is not known", name);
}

struct Range {
  size_t begin, end;
  bool match;
};

// Turns the alternation of matches and gaps into the pieces that a behavior asks for, holding back at most
// one range.
class RangeMerger {
 public:
  RangeMerger(Behavior behavior, const Piece& piece, PieceSink out)
      : behavior_(behavior), piece_(piece), out_(out) {}

  void add(const Range& r) {
    switch (behavior_) {
      case Behavior::Isolated:
        emit(r);
        return;
      case Behavior::Removed:
        if (!r.match) emit(r);
        return;
      case Behavior::Contiguous:
        extend_if(holding_ && r.match == last_match_, r);
        break;
      case Behavior::MergedWithPrevious:
        extend_if(holding_ && r.match && !last_match_, r);
        break;
      case Behavior::MergedWithNext:
        extend_if(holding_ && last_match_ && !r.match, r);
        break;
    }
    last_match_ = r.match;
  }

  void finish() {
    if (holding_) emit(held_);
    holding_ = false;
  }

 private:
  void extend_if(bool extend, const Range& r) {
    if (extend) {
      held_.end = r.end;
    } else {
      finish();
      held_ = r;
      holding_ = true;
    }
  }

  void emit(const Range& r) const {
    if (r.begin == r.end) return;
    out_(Piece{piece_.text.substr(r.begin, r.end - r.begin), piece_.at_start && r.begin == 0});
  }

  Behavior behavior_;
  const Piece& piece_;
  PieceSink out_;
  Range held_{0, 0, false};
  bool holding_ = false;
  bool last_match_ = false;
};

enum class Invert { No, Yes };
// Whether the pattern sees characters of newer Unicode releases as what they are now
// (unicode::substitute_new_characters).
enum class NewCharacters { Substitute, Keep };

class SplitStep final : public PreTokenizerStep {
 public:
  SplitStep(Regex pattern, Behavior behavior, Invert invert = Invert::No,
            NewCharacters new_characters = NewCharacters::Substitute)
      : pattern_(std::move(pattern)),
        behavior_(behavior),
        inverted_(invert == Invert::Yes),
        substitute_(new_characters == NewCharacters::Substitute) {}

  void split(const Piece& piece, PieceContext& context, PieceSink out) const override {
    std::string shadow;
    std::string_view subject = piece.text;
    if (substitute_ && context.has_new_characters && unicode::substitute_new_characters(piece.text, shadow))
      subject = shadow;
    RangeMerger merger(behavior_, piece, out);
    size_t done = 0;
    for (Regex::Matches m(pattern_, subject, context.regex); m.next(); done = m.end()) {
      if (done != m.begin()) merger.add({done, m.begin(), inverted_});
      merger.add({m.begin(), m.end(), !inverted_});
    }
    if (done != subject.size()) merger.add({done, subject.size(), inverted_});
    merger.finish();
  }

 private:
  Regex pattern_;
  Behavior behavior_;
  bool inverted_, substitute_;
};

class ByteLevelStep final : public PreTokenizerStep {
 public:
  ByteLevelStep(bool add_prefix_space, bool use_regex, PieceForm form)
      : add_prefix_space_(add_prefix_space), form_(form) {
    if (use_regex) split_.emplace(Regex(kGpt2Pattern), Behavior::Isolated);
  }

  void split(const Piece& piece, PieceContext& context, PieceSink out) const override {
    const auto finish = [&](const Piece& part) {
      if (form_ == PieceForm::RawBytes) return out(part);
      const std::string mapped = bytes_to_alphabet(part.text);
      out(Piece{mapped, part.at_start});
    };
    std::string prefixed;
    Piece whole = piece;
    if (add_prefix_space_ && piece.text.front() != ' ') {
      prefixed = " " + std::string(piece.text);
      whole.text = prefixed;
    }
    if (split_) {
      split_->split(whole, context, finish);
    } else {
      finish(whole);
    }
  }

 private:
  std::optional<SplitStep> split_;
  bool add_prefix_space_;
  PieceForm form_;
};

enum class PrependScheme { First, Always, Never };

class MetaspaceStep final : public PreTokenizerStep {
 public:
  MetaspaceStep(std::string replacement, PrependScheme scheme, bool split)
      : replacement_(std::move(replacement)), scheme_(scheme) {
    if (split) split_.emplace(Regex(Regex::escape(replacement_)), Behavior::MergedWithNext);
  }

  void split(const Piece& piece, PieceContext& context, PieceSink out) const override {
    std::string text;
    text.reserve(piece.text.size() + piece.text.size() / 2);
    for (const char c : piece.text) c == ' ' ? void(text += replacement_) : text.push_back(c);
    const bool prepend =
        scheme_ == PrependScheme::Always || (scheme_ == PrependScheme::First && piece.at_start);
    if (prepend && !text.starts_with(replacement_)) text.insert(0, replacement_);
    const Piece whole{text, piece.at_start};
    if (split_) {
      split_->split(whole, context, out);
    } else {
      out(whole);
    }
  }

 private:
  std::string replacement_;
  PrependScheme scheme_;
  std::optional<SplitStep> split_;
};

PrependScheme prepend_scheme(const nlohmann::json& spec) {
  const bool add_prefix_space = jf::boolean_or(spec, "add_prefix_space", true, kWhere);  // the older key
  const std::string name =
      jf::string_or(spec, "prepend_scheme", add_prefix_space ? "always" : "never", kWhere);
  if (name == "always") return PrependScheme::Always;
  if (name == "first") return PrependScheme::First;
  if (name == "never") return PrependScheme::Never;
  fail(ErrorKind::BadInput, "pre_tokenizer: prepend_scheme {:?} is not one of always, first, never", name);
}

using Steps = std::vector<std::unique_ptr<PreTokenizerStep>>;

void add_split(Steps& steps, const char* pattern, Behavior behavior, Invert invert = Invert::No) {
  steps.push_back(std::make_unique<SplitStep>(Regex(pattern), behavior, invert));
}

void add_punctuation(Steps& steps, Behavior behavior) {
  steps.push_back(
      std::make_unique<SplitStep>(Regex(kPunctuation), behavior, Invert::No, NewCharacters::Keep));
}

void append_steps(const nlohmann::json& spec, Steps& steps, PieceForm byte_level_form) {
  const std::string type = jf::string(spec, "type", kWhere);
  if (type == "Sequence") {
    const auto& parts = jf::array(spec, "pretokenizers", kWhere);
    for (size_t i = 0; i < parts.size(); ++i)  // only a last ByteLevel may leave its mapping to the model
      append_steps(parts[i], steps, i + 1 == parts.size() ? byte_level_form : PieceForm::Text);
  } else if (type == "Split") {
    steps.push_back(std::make_unique<SplitStep>(
        pattern_from_json(jf::member(spec, "pattern", kWhere), kWhere),
        behavior_from(jf::string(spec, "behavior", kWhere)),
        jf::boolean_or(spec, "invert", false, kWhere) ? Invert::Yes : Invert::No));
  } else if (type == "ByteLevel") {
    steps.push_back(std::make_unique<ByteLevelStep>(jf::boolean_or(spec, "add_prefix_space", true, kWhere),
                                                    jf::boolean_or(spec, "use_regex", true, kWhere),
                                                    byte_level_form));
  } else if (type == "Digits") {
    add_split(
        steps, "\\p{N}",
        jf::boolean_or(spec, "individual_digits", false, kWhere) ? Behavior::Isolated : Behavior::Contiguous);
  } else if (type == "Metaspace") {
    steps.push_back(std::make_unique<MetaspaceStep>(jf::string(spec, "replacement", kWhere),
                                                    prepend_scheme(spec),
                                                    jf::boolean_or(spec, "split", true, kWhere)));
  } else if (type == "Punctuation") {
    add_punctuation(steps, behavior_from(jf::string_or(spec, "behavior", "Isolated", kWhere)));
  } else if (type == "Whitespace") {
    add_split(steps, kRustWords, Behavior::Removed, Invert::Yes);
  } else if (type == "WhitespaceSplit") {
    add_split(steps, "\\s", Behavior::Removed);
  } else if (type == "CharDelimiterSplit") {
    add_split(steps, Regex::escape(jf::string(spec, "delimiter", kWhere)).c_str(), Behavior::Removed);
  } else if (type == "BertPreTokenizer") {
    add_split(steps, "\\s", Behavior::Removed);
    add_punctuation(steps, Behavior::Isolated);
  } else {
    fail(ErrorKind::BadInput,
         "pre_tokenizer: type {:?} is not supported; known: Sequence, Split, ByteLevel, Digits, Metaspace, "
         "Punctuation, "
         "Whitespace, WhitespaceSplit, CharDelimiterSplit, BertPreTokenizer",
         type);
  }
}

// The last step is a ByteLevel, inside however many sequences.
bool ends_with_byte_level(const nlohmann::json& spec) {
  const std::string type = jf::string(spec, "type", kWhere);
  if (type != "Sequence") return type == "ByteLevel";
  const auto& parts = jf::array(spec, "pretokenizers", kWhere);
  return !parts.empty() && ends_with_byte_level(parts.back());
}

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::json& spec, PieceForm preferred) {
  if (preferred == PieceForm::RawBytes && ends_with_byte_level(spec)) form_ = PieceForm::RawBytes;
  append_steps(spec, steps_, form_);
}

void PreTokenizer::split(const Piece& text, RegexContext& regex, PieceSink out) const {
  if (text.text.empty()) return;
  PieceContext context{regex};
  std::string unused;
  context.has_new_characters = unicode::substitute_new_characters(text.text, unused);
  run(0, text, context, out);
}

void PreTokenizer::run(size_t step, const Piece& piece, PieceContext& context, PieceSink out) const {
  if (step == steps_.size()) return out(piece);
  steps_[step]->split(piece, context, [&](const Piece& part) { run(step + 1, part, context, out); });
}

}  // namespace hearth
