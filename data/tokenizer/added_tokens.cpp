#include "data/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "data/tokenizer/json_fields.h"
#include "data/tokenizer/regex.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

namespace jf = json_fields;
constexpr const char* kWhere = "added_tokens";

bool is_word_character(std::string_view character) {
  static const Regex word("[\\w\\x{200c}\\x{200d}]");
  RegexContext context;
  return Regex::Matches(word, character, context).next();
}

size_t start_of_last(std::string_view text) {
  size_t pos = text.size() - 1;
  while ((static_cast<unsigned char>(text[pos]) & 0xc0) == 0x80) --pos;
  return pos;
}

std::string_view first_character(std::string_view text) {
  return text.substr(0, unicode::sequence_length(static_cast<unsigned char>(text[0])));
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    const size_t last = start_of_last(text.substr(0, begin));
    if (is_word_character(text.substr(last, begin - last))) return false;
  }
  return end == text.size() || !is_word_character(first_character(text.substr(end)));
}

size_t back_over_spaces(std::string_view text, size_t begin) {
  while (begin > 0) {
    const size_t last = start_of_last(text.substr(0, begin));
    if (!unicode::is_white_space(unicode::decode_at(text, last))) break;
    begin = last;
  }
  return begin;
}

size_t forward_over_spaces(std::string_view text, size_t end) {
  while (end < text.size() && unicode::is_white_space(unicode::decode_at(text, end)))
    end += unicode::sequence_length(static_cast<unsigned char>(text[end]));
  return end;
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const nlohmann::json& list) {
  HEARTH_CHECK(list.is_array(), BadInput, "added_tokens must be a list, got {}", list.type_name());
  std::vector<AddedToken> tokens;
  for (const auto& item : list) {
    const int64_t id = jf::integer(item, "id", kWhere);
    HEARTH_CHECK(id >= 0 && id <= kMaxTokenId, BadInput, "added_tokens: id {} must be from 0 to {}", id,
                 kMaxTokenId);
    tokens.push_back({.id = static_cast<int32_t>(id),
                      .content = jf::string(item, "content", kWhere),
                      .single_word = jf::boolean_or(item, "single_word", false, kWhere),
                      .lstrip = jf::boolean_or(item, "lstrip", false, kWhere),
                      .rstrip = jf::boolean_or(item, "rstrip", false, kWhere),
                      .normalized = jf::boolean_or(item, "normalized", true, kWhere),
                      .special = jf::boolean_or(item, "special", false, kWhere)});
  }
  return tokens;
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<Pattern> patterns)
    : patterns_(std::move(patterns)), nodes_(1) {
  for (size_t i = 0; i < patterns_.size(); ++i) {
    const std::string& text = patterns_[i].text;
    if (text.empty()) continue;
    starts_[static_cast<unsigned char>(text[0])] = true;
    int32_t node = 0;
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      int32_t next = child(node, byte);
      if (next < 0) {
        next = checked_cast<int32_t>(nodes_.size());
        nodes_.emplace_back();
        auto& children = nodes_[static_cast<size_t>(node)].children;
        children.insert(std::lower_bound(children.begin(), children.end(), std::pair(byte, int32_t{0})),
                        {byte, next});
      }
      node = next;
    }
    int32_t& pattern = nodes_[static_cast<size_t>(node)].pattern;
    if (pattern < 0) pattern = static_cast<int32_t>(i);  // of equal texts the first counts
  }
}

int32_t AddedTokenMatcher::child(int32_t node, unsigned char byte) const {
  const auto& children = nodes_[static_cast<size_t>(node)].children;
  const auto it = std::lower_bound(children.begin(), children.end(), std::pair(byte, int32_t{0}));
  return it != children.end() && it->first == byte ? it->second : -1;
}

int32_t AddedTokenMatcher::longest_at(std::string_view text, size_t pos) const {
  int32_t best = -1;
  for (int32_t node = 0; pos < text.size(); ++pos) {
    node = child(node, static_cast<unsigned char>(text[pos]));
    if (node < 0) break;
    if (const int32_t pattern = nodes_[static_cast<size_t>(node)].pattern; pattern >= 0) best = pattern;
  }
  return best;
}

void AddedTokenMatcher::split(std::string_view text, FunctionRef<void(std::string_view, int32_t)> out) const {
  size_t done = 0;  // everything before is handed out
  for (size_t pos = 0; pos < text.size() && !patterns_.empty();) {
    const int32_t index = starts_[static_cast<unsigned char>(text[pos])] ? longest_at(text, pos) : -1;
    if (index < 0) {
      ++pos;
      continue;
    }
    const auto& [pattern, token] = patterns_[static_cast<size_t>(index)];
    size_t begin = pos, end = pos + pattern.size();
    pos = end;
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.lstrip) begin = std::max(back_over_spaces(text, begin), done);
    if (token.rstrip) end = forward_over_spaces(text, end);
    if (done < begin) out(text.substr(done, begin - done), -1);
    out({}, token.id);
    done = end;
  }
  if (done < text.size()) out(text.substr(done), -1);
}

}  // namespace hearth
