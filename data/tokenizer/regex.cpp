#include "data/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "data/tokenizer/regex_syntax.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

constexpr size_t kJitStackStart = 32 << 10, kJitStackMax = 16 << 20;  // bytes; grows on demand
// A backtracking budget: well above what a sane pattern needs for a subject, and a bound on a malicious one.
constexpr uint64_t kMatchLimitBase = 10'000'000, kMatchLimitPerByte = 64;

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using Code = std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>>;

std::string error_text(int code) {
  unsigned char buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct RegexContext::Impl {
  MatchContext context{pcre2_match_context_create(nullptr)};
  MatchData data{pcre2_match_data_create(1, nullptr)};
  JitStack stack{pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr)};
};

RegexContext::RegexContext() : impl_(std::make_unique<Impl>()) {
  HEARTH_CHECK(impl_->context && impl_->data && impl_->stack, Internal, "PCRE2: out of memory");
  pcre2_jit_stack_assign(impl_->context.get(), nullptr, impl_->stack.get());
}
RegexContext::~RegexContext() = default;

struct Regex::Impl {
  std::string pattern;
  Code code;
  bool jit = false;
};

Regex::Regex(const std::string& oniguruma_pattern) : impl_(std::make_unique<Impl>()) {
  impl_->pattern = oniguruma_pattern;
  const std::string pattern = pcre2_from_oniguruma(oniguruma_pattern);
  int code = 0;
  PCRE2_SIZE offset = 0;
  // MULTILINE: in Ruby ^ and $ always match at line breaks.
  impl_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code,
                                  &offset, nullptr));
  HEARTH_CHECK(impl_->code, BadInput, "regular expression {:?} (for PCRE2: {:?}): {} at byte {}",
               oniguruma_pattern, pattern, error_text(code), offset);
  impl_->jit = pcre2_jit_compile(impl_->code.get(), PCRE2_JIT_COMPLETE) == 0;
}
Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

std::string Regex::escape(std::string_view literal) {
  std::string out;
  for (const char c : literal) {
    if (std::string_view("\\.+*?()|[]{}^$#&-~/ ").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

bool Regex::search(std::string_view subject, size_t from, RegexContext& context, size_t& begin,
                   size_t& end) const {
  RegexContext::Impl& scratch = *context.impl_;
  const auto* text = reinterpret_cast<PCRE2_SPTR>(subject.data());
  const uint64_t limit = kMatchLimitBase + kMatchLimitPerByte * subject.size();
  pcre2_set_match_limit(scratch.context.get(), static_cast<uint32_t>(std::min<uint64_t>(limit, UINT32_MAX)));
  // The subject was checked once by the caller; a check per call would make a long text quadratic.
  int rc = PCRE2_ERROR_JIT_STACKLIMIT;
  if (impl_->jit)
    rc = pcre2_jit_match(impl_->code.get(), text, subject.size(), from, PCRE2_NO_UTF_CHECK,
                         scratch.data.get(), scratch.context.get());
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
    rc = pcre2_match(impl_->code.get(), text, subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                     scratch.data.get(), scratch.context.get());
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  HEARTH_CHECK(rc >= 0, BadInput, "regular expression {:?} gave up on a text of {} bytes at byte {}: {}",
               impl_->pattern, subject.size(), from, error_text(rc));
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(scratch.data.get());
  begin = ends[0];
  end = ends[1];
  return begin <= end;  // \K in a lookahead can put the start behind the end; treated as no match
}

bool Regex::Matches::next() {
  while (from_ <= subject_.size()) {
    size_t begin = 0, end = 0;
    if (!regex_.search(subject_, from_, context_, begin, end)) return false;
    if (begin == end && matched_ && end == end_) {
      from_ +=
          from_ < subject_.size() ? unicode::sequence_length(static_cast<unsigned char>(subject_[from_])) : 1;
      continue;
    }
    begin_ = begin;
    end_ = from_ = end;
    return matched_ = true;
  }
  return false;
}

}  // namespace hearth
