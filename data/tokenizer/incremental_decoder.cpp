#include "data/tokenizer/incremental_decoder.h"

namespace hearth {

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";
// How many shown ids stay in the window as context: decoders look back at most at the one before (a space at
// the start).
constexpr size_t kContext = 4;
// A character has at most four bytes; when more ids than that are held back the bytes are simply not text.
constexpr size_t kMaxHeld = 8;

}  // namespace

void IncrementalDecoder::prime(std::span<const int32_t> ids) {
  window_.insert(window_.end(), ids.begin(), ids.end());
  if (window_.size() > kContext)
    window_.erase(window_.begin(), window_.end() - static_cast<std::ptrdiff_t>(kContext));
  shown_ = window_.size();
}

std::string IncrementalDecoder::push(int32_t id) {
  window_.push_back(id);
  return take(window_.size() - shown_ > kMaxHeld);
}

std::string IncrementalDecoder::finish() {
  return take(true);
}

std::string IncrementalDecoder::take(bool complete) {
  const std::string before = tokenizer_.decode(std::span(window_).first(shown_), special_);
  const std::string all = tokenizer_.decode(window_, special_);
  if (!complete && all.ends_with(kReplacement)) return "";
  if (all.size() < before.size()) return "";  // the start of a prompt that ends inside a character
  std::string text = all.substr(before.size());
  shown_ = window_.size();
  if (window_.size() > kContext) {
    window_.erase(window_.begin(), window_.end() - static_cast<std::ptrdiff_t>(kContext));
    shown_ = window_.size();
  }
  return text;
}

}  // namespace hearth
