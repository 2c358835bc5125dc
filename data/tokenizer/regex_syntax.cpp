#include "data/tokenizer/regex_syntax.h"

#include <cctype>

#include "base/error.h"

namespace hearth {

namespace {

// \w of Oniguruma (UTS 18 without Join_Control); PCRE2's own lacks the marks.
constexpr std::string_view kWordMembers = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
constexpr std::string_view kHexMembers = "0-9a-fA-F";

class Rewriter {
 public:
  explicit Rewriter(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (pos_ < in_.size()) {
      if (in_[pos_] == '\\') {
        escape();
      } else if (depth_ > 0) {
        class_member();
      } else {
        outside_class();
      }
    }
    return std::move(out_);
  }

 private:
  char peek(size_t ahead) const { return pos_ + ahead < in_.size() ? in_[pos_ + ahead] : '\0'; }

  [[noreturn]] void refuse(std::string_view what) const {
    fail(ErrorKind::BadInput, "regular expression {:?}: {} at byte {} is not supported", in_, what, pos_);
  }

  void copy(size_t count) {
    out_.append(in_.substr(pos_, count));
    pos_ += count;
  }

  // A shorthand class: its members as they are within a class, in brackets outside.
  void shorthand(std::string_view members, bool negated) {
    if (depth_ > 0 && negated) refuse("a negated \\H or \\W inside a class");
    if (depth_ == 0) out_ += negated ? "[^" : "[";
    out_ += members;
    if (depth_ == 0) out_ += ']';
    pos_ += 2;
  }

  void escape() {
    switch (const char c = peek(1)) {
      case 'h':
      case 'H':
        shorthand(kHexMembers, c == 'H');
        break;
      case 'w':
      case 'W':
        shorthand(kWordMembers, c == 'W');
        break;
      case 'u':
        unicode_escape();
        break;
      case 'y':
      case 'Y':
      case 'O':
      case 'N':
      case 'M':
      case 'C':
        refuse(in_.substr(pos_, 2));
        break;
      default:
        copy(2);
        if (peek(0) == '{' && (c == 'p' || c == 'P' || c == 'x')) copy(braces_length());
    }
  }

  // {...} of a property or a code point, at pos_.
  size_t braces_length() const {
    const size_t end = in_.find('}', pos_);
    if (end == std::string_view::npos) refuse("{ without }");
    return end + 1 - pos_;
  }

  // \uHHHH
  void unicode_escape() {
    for (size_t i = 2; i < 6; ++i)
      if (!std::isxdigit(static_cast<unsigned char>(peek(i)))) refuse("\\u without four hexadecimal digits");
    out_ += "\\x{";
    out_ += in_.substr(pos_ + 2, 4);
    out_ += '}';
    pos_ += 6;
  }

  void class_member() {
    const char c = in_[pos_];
    if (c == '[' && peek(1) == ':') {
      const size_t end = in_.find(":]", pos_ + 2);
      if (end == std::string_view::npos) refuse("[: without :]");
      copy(end + 2 - pos_);
    } else if (c == '[') {  // a nested class is a union: its members simply join
      if (peek(1) == '^') refuse("a negated class inside a class");
      ++depth_, ++pos_;
    } else if (c == ']') {
      if (--depth_ == 0) out_ += ']';
      ++pos_;
    } else if (c == '&' && peek(1) == '&') {
      refuse("class intersection (&&)");
    } else {
      copy(1);
    }
  }

  void outside_class() {
    const char c = in_[pos_];
    if (c == '[') {
      depth_ = 1;
      copy(1);
      if (peek(0) == '^') copy(1);
      if (peek(0) == ']') copy(1);  // first member: stands for itself
    } else if (c == '(' && peek(1) == '?') {
      group_options();
    } else if (c == '{' && peek(1) == ',') {
      out_ += "{0,";
      pos_ += 2;
    } else if (c == '}' && peek(1) == '+') {
      refuse("an interval followed by +");  // repeats in Ruby, is possessive in PCRE2
    } else {
      copy(1);
    }
  }

  // (?imx-imx) and (?imx-imx:...): Ruby's m is PCRE2's s. Other groups are the same in both.
  void group_options() {
    size_t end = pos_ + 2;
    while (end < in_.size() && (in_[end] == 'i' || in_[end] == 'm' || in_[end] == 'x' || in_[end] == '-'))
      ++end;
    const bool options = end > pos_ + 2 && end < in_.size() && (in_[end] == ')' || in_[end] == ':');
    copy(2);
    if (!options) return;
    for (; pos_ < end; ++pos_) out_ += in_[pos_] == 'm' ? 's' : in_[pos_];
  }

  std::string_view in_;
  std::string out_;
  size_t pos_ = 0;
  int depth_ = 0;  // of nested classes
};

}  // namespace

std::string pcre2_from_oniguruma(std::string_view pattern) {
  return Rewriter(pattern).run();
}

}  // namespace hearth
