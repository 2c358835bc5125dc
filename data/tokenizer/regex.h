// Regular expressions of tokenizer files. These are written for Oniguruma in its Ruby syntax (what
// `tokenizers` uses); they are rewritten where PCRE2 reads them differently and run by PCRE2's JIT in UTF
// mode. A Regex is immutable and may be shared by threads, each with its own RegexContext.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace hearth {

// Scratch memory for matching: one per thread at a time.
class RegexContext {
 public:
  RegexContext();
  ~RegexContext();
  RegexContext(const RegexContext&) = delete;
  RegexContext& operator=(const RegexContext&) = delete;

 private:
  friend class Regex;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

class Regex {
 public:
  // Throws Error{BadInput} for a pattern that does not compile or uses what is not supported, naming it.
  explicit Regex(const std::string& oniguruma_pattern);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // A pattern that matches `literal` and nothing else.
  static std::string escape(std::string_view literal);

  // A walk over all matches of a subject, which must be valid UTF-8 and outlive it:
  //   for (Regex::Matches m(regex, text, context); m.next();) use(m.begin(), m.end());
  // An empty match right behind the last match is passed over, as the onig crate does.
  class Matches {
   public:
    Matches(const Regex& regex, std::string_view subject, RegexContext& context)
        : regex_(regex), subject_(subject), context_(context) {}
    bool next();
    size_t begin() const { return begin_; }
    size_t end() const { return end_; }

   private:
    const Regex& regex_;
    std::string_view subject_;
    RegexContext& context_;
    size_t from_ = 0, begin_ = 0, end_ = 0;
    bool matched_ = false;  // end_ is the end of an earlier match
  };

 private:
  bool search(std::string_view subject, size_t from, RegexContext& context, size_t& begin, size_t& end) const;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
