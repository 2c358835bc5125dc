#include "data/chat/text.h"

#include <algorithm>
#include <cstring>

#include "data/chat/case_tables.h"
#include "data/tokenizer/unicode.h"

namespace hearth::chat {

namespace {

using unicode::append_utf8;
using unicode::decode_at;
using unicode::sequence_length;

// The start of the character that ends before `end`.
size_t previous(std::string_view text, size_t end) {
  do --end;
  while ((static_cast<unsigned char>(text[end]) & 0xc0) == 0x80);
  return end;
}

size_t next(std::string_view text, size_t pos) {
  return pos + sequence_length(static_cast<unsigned char>(text[pos]));
}

bool is_line_end(char32_t c) {
  return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

size_t skip_space(std::string_view text, size_t pos) {
  while (pos < text.size() && is_space(decode_at(text, pos))) pos = next(text, pos);
  return pos;
}

size_t skip_word(std::string_view text, size_t pos) {
  while (pos < text.size() && !is_space(decode_at(text, pos))) pos = next(text, pos);
  return pos;
}

std::vector<std::string> split_at_space(std::string_view text, int64_t limit) {
  std::vector<std::string> parts;
  size_t pos = skip_space(text, 0);
  while (pos < text.size()) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.emplace_back(text.substr(pos));
      break;
    }
    const size_t end = skip_word(text, pos);
    parts.emplace_back(text.substr(pos, end - pos));
    pos = skip_space(text, end);
  }
  return parts;
}

std::vector<std::string> split_right_at_space(std::string_view text, int64_t limit) {
  std::vector<std::string> parts;
  text = strip(text, std::nullopt, Side::Right);
  while (!text.empty()) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.emplace_back(text);
      break;
    }
    size_t begin = text.size();
    while (begin > 0 && !is_space(decode_at(text, previous(text, begin)))) begin = previous(text, begin);
    parts.emplace_back(text.substr(begin));
    text = strip(text.substr(0, begin), std::nullopt, Side::Right);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

enum class To { Upper, Lower, Title };

void append_case(std::string& out, char32_t c, To to) {
  if (c < 0x80) {
    const bool is_lower = c >= 'a' && c <= 'z', is_upper = c >= 'A' && c <= 'Z';
    if (to == To::Lower && is_upper) c += 32;
    if (to != To::Lower && is_lower) c -= 32;
    out += static_cast<char>(c);
    return;
  }
  const auto map = find_case_map(c);
  if (!map) return append_utf8(out, c);
  const std::u32string_view mapped = to == To::Upper ? map->upper : to == To::Lower ? map->lower : map->title;
  for (const char32_t m : mapped) append_utf8(out, m);
}

bool is_cased(char32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  return find_case_map(c).has_value();
}

// Unicode's rule for the sigma that ends a word (section 3.13), which Python applies.
bool is_final_sigma(std::string_view text, size_t pos) {
  size_t before = pos;
  while (before > 0 && is_case_ignorable(decode_at(text, previous(text, before))))
    before = previous(text, before);
  if (before == 0 || !is_cased(decode_at(text, previous(text, before)))) return false;
  size_t after = next(text, pos);
  while (after < text.size() && is_case_ignorable(decode_at(text, after))) after = next(text, after);
  return after == text.size() || !is_cased(decode_at(text, after));
}

void append_lower(std::string& out, std::string_view text, size_t pos) {
  const char32_t c = decode_at(text, pos);
  if (c == 0x3a3)
    append_utf8(out, is_final_sigma(text, pos) ? 0x3c2 : 0x3c3);
  else
    append_case(out, c, To::Lower);
}

bool has_case(char32_t c, Case which) {
  if (c < 0x80) return which == Case::Upper ? c >= 'A' && c <= 'Z' : c >= 'a' && c <= 'z';
  const auto map = find_case_map(c);
  if (!map) return false;
  return map->kind == (which == Case::Upper ? LetterCase::Upper : LetterCase::Lower);
}

}  // namespace

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size(); pos = next(text, pos))
    out.push_back(text.substr(pos, next(text, pos) - pos));
  return out;
}

size_t count_characters(const Text& text) {
  if (text.ascii) return text.bytes.size();
  return static_cast<size_t>(std::count_if(text.bytes.begin(), text.bytes.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

size_t find_text(std::string_view text, std::string_view sought, size_t pos) {
  if (pos > text.size()) return std::string_view::npos;
  const void* found = memmem(text.data() + pos, text.size() - pos, sought.data(), sought.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20);
  return unicode::is_white_space(c);
}

SliceRange resolve(const Slice& slice, size_t size) {
  constexpr Int kFar = Int{1} << 64;  // beyond every text and list
  const Int n = static_cast<Int>(size), step = std::clamp(slice.step.value_or(1), -kFar, kFar);
  if (step == 0) fault("slice step cannot be zero");
  const Int low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
  const auto clamp = [&](Int index) { return std::clamp(index < 0 ? index + n : index, low, high); };
  const Int start = slice.start ? clamp(*slice.start) : (step < 0 ? high : low);
  const Int stop = slice.stop ? clamp(*slice.stop) : (step < 0 ? low : high);
  const Int distance = step < 0 ? start - stop : stop - start, stride = step < 0 ? -step : step;
  SliceRange range;
  if (distance <= 0) return range;
  range.count = static_cast<int64_t>((distance - 1) / stride + 1);
  range.first = static_cast<int64_t>(start);
  // A step beyond the end takes one item, whatever its size.
  range.step = range.count > 1 ? static_cast<int64_t>(step) : 1;
  return range;
}

std::optional<size_t> resolve_index(Int index, size_t size) {
  const Int n = static_cast<Int>(size);
  if (index < 0) index += n;
  if (index < 0 || index >= n) return std::nullopt;
  return static_cast<size_t>(index);
}

std::string slice_text(const Text& text, const Slice& slice) {
  const SliceRange range = resolve(slice, count_characters(text));
  std::string out;
  if (text.ascii) {
    if (range.step == 1)
      return text.bytes.substr(static_cast<size_t>(range.first), static_cast<size_t>(range.count));
    for (int64_t i = 0; i < range.count; ++i)
      out += text.bytes[static_cast<size_t>(range.first + i * range.step)];
    return out;
  }
  const auto all = characters(text.bytes);
  for (int64_t i = 0; i < range.count; ++i) out += all[static_cast<size_t>(range.first + i * range.step)];
  return out;
}

std::optional<std::string> character_at(const Text& text, Int index) {
  const auto at = resolve_index(index, count_characters(text));
  if (!at) return std::nullopt;
  if (text.ascii) return std::string(1, text.bytes[*at]);
  size_t pos = 0;
  for (size_t i = 0; i < *at; ++i) pos = next(text.bytes, pos);
  return text.bytes.substr(pos, next(text.bytes, pos) - pos);
}

std::string_view strip(std::string_view text, std::optional<std::string_view> chars, Side side) {
  const auto all = chars ? characters(*chars) : std::vector<std::string_view>{};
  const auto taken = [&](size_t pos) {
    if (!chars) return is_space(decode_at(text, pos));
    return std::find(all.begin(), all.end(), text.substr(pos, next(text, pos) - pos)) != all.end();
  };
  size_t begin = 0, end = text.size();
  if (side != Side::Right)
    while (begin < end && taken(begin)) begin = next(text, begin);
  if (side != Side::Left)
    while (end > begin && taken(previous(text, end))) end = previous(text, end);
  return text.substr(begin, end - begin);
}

std::vector<std::string> split(std::string_view text, std::optional<std::string_view> separator,
                               int64_t limit) {
  if (!separator) return split_at_space(text, limit);
  if (separator->empty()) fault("empty separator");
  std::vector<std::string> parts;
  size_t pos = 0;
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t found = find_text(text, *separator, pos);
    if (found == std::string_view::npos) break;
    parts.emplace_back(text.substr(pos, found - pos));
    pos = found + separator->size();
  }
  parts.emplace_back(text.substr(pos));
  return parts;
}

std::vector<std::string> split_right(std::string_view text, std::optional<std::string_view> separator,
                                     int64_t limit) {
  if (!separator) return split_right_at_space(text, limit);
  if (separator->empty()) fault("empty separator");
  std::vector<std::string> parts;
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t found = text.rfind(*separator);
    if (found == std::string_view::npos) break;
    parts.emplace_back(text.substr(found + separator->size()));
    text = text.substr(0, found);
  }
  parts.emplace_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> split_lines(std::string_view text, LineEnds ends) {
  std::vector<std::string> lines;
  for (size_t pos = 0; pos < text.size();) {
    size_t end = pos;
    while (end < text.size() && !is_line_end(decode_at(text, end))) end = next(text, end);
    size_t after = end;
    if (after < text.size()) after = text.substr(end, 2) == "\r\n" ? end + 2 : next(text, end);
    lines.emplace_back(text.substr(pos, (ends == LineEnds::Keep ? after : end) - pos));
    pos = after;
  }
  return lines;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t limit,
                    Budget& budget) {
  std::string out;
  size_t pos = 0;
  const auto emit = [&](std::string_view piece) {
    if (out.size() + piece.size() > Budget::kMaxTextBytes) budget.spend_text(out.size() + piece.size());
    out += piece;
  };
  for (int64_t done = 0; limit < 0 || done < limit; ++done) {
    // An empty `from` is found before every character and at the end.
    const size_t found = from.empty() ? (done == 0           ? 0
                                         : pos < text.size() ? next(text, pos)
                                                             : std::string_view::npos)
                                      : find_text(text, from, pos);
    if (found == std::string_view::npos) break;
    emit(text.substr(pos, found - pos));
    emit(to);
    pos = found + from.size();
  }
  emit(text.substr(pos));
  budget.spend_text(text.size() + out.size());
  return out;
}

std::string repeat(std::string_view text, Int count, Budget& budget) {
  std::string out;
  if (count <= 0 || text.empty()) return out;
  if (count > static_cast<Int>(Budget::kMaxTextBytes)) count = static_cast<Int>(Budget::kMaxTextBytes) + 1;
  budget.spend_text(text.size() * static_cast<size_t>(count));
  for (Int i = 0; i < count; ++i) out += text;
  return out;
}

std::string join(const std::vector<std::string>& parts, std::string_view separator, Budget& budget) {
  size_t size = 0;
  for (const auto& part : parts) size += part.size() + separator.size();
  budget.spend_text(size);
  std::string out;
  out.reserve(size);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i != 0) out += separator;
    out += parts[i];
  }
  return out;
}

std::string upper(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size(); pos = next(text, pos))
    append_case(out, decode_at(text, pos), To::Upper);
  return out;
}

std::string lower(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size(); pos = next(text, pos)) append_lower(out, text, pos);
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size(); pos = next(text, pos)) {
    if (pos == 0)
      append_case(out, decode_at(text, pos), To::Title);
    else
      append_lower(out, text, pos);
  }
  return out;
}

std::string title(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (size_t pos = 0; pos < text.size(); pos = next(text, pos)) {
    const char32_t c = decode_at(text, pos);
    if (in_word)
      append_lower(out, text, pos);
    else
      append_case(out, c, To::Title);
    in_word = is_cased(c);
  }
  return out;
}

std::string swap_case(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size(); pos = next(text, pos)) {
    const char32_t c = decode_at(text, pos);
    if (has_case(c, Case::Upper))
      append_lower(out, text, pos);
    else
      append_case(out, c, has_case(c, Case::Lower) ? To::Upper : To::Lower);
  }
  return out;
}

bool is_case(std::string_view text, Case which) {
  bool found = false;
  for (size_t pos = 0; pos < text.size(); pos = next(text, pos)) {
    const char32_t c = decode_at(text, pos);
    if (has_case(c, which))
      found = true;
    else if (is_cased(c))
      return false;
  }
  return found;
}

std::string escape_html(std::string_view text, Budget& budget) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  budget.spend_text(out.size());
  return out;
}

}  // namespace hearth::chat
