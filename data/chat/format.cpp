#include "data/chat/format.h"

#include <array>
#include <charconv>
#include <cmath>

#include "data/chat/text.h"
#include "data/tokenizer/unicode.h"

namespace hearth::chat {

namespace {

void append_repr(std::string& out, const Value& value, Budget& budget, int depth);

void append_escaped(std::string& out, std::string_view character, char quote) {
  const char32_t c = unicode::decode_at(character, 0);
  if (c == '\\' || c == static_cast<char32_t>(quote)) {
    out += '\\';
    out += static_cast<char>(c);
  } else if (c == '\n') {
    out += "\\n";
  } else if (c == '\r') {
    out += "\\r";
  } else if (c == '\t') {
    out += "\\t";
  } else if (is_printable(c)) {
    out += character;
  } else {
    const auto code = static_cast<unsigned>(c);
    out += c < 0x100     ? fmt::format("\\x{:02x}", code)
           : c < 0x10000 ? fmt::format("\\u{:04x}", code)
                         : fmt::format("\\U{:08x}", code);
  }
}

void append_text_repr(std::string& out, const std::string& text) {
  // Python prefers single quotes, unless the text has those and no double ones.
  const bool single = text.find('\'') == std::string::npos || text.find('"') != std::string::npos;
  const char quote = single ? '\'' : '"';
  out += quote;
  for (const std::string_view character : characters(text)) append_escaped(out, character, quote);
  out += quote;
}

void append_items(std::string& out, const std::vector<Value>& items, Budget& budget, int depth) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i != 0) out += ", ";
    append_repr(out, items[i], budget, depth + 1);
  }
}

void append_sequence(std::string& out, const Sequence& sequence, const std::string& type, Budget& budget,
                     int depth) {
  switch (sequence.kind) {
    case SequenceKind::List:
      out += '[';
      append_items(out, sequence.items, budget, depth);
      out += ']';
      return;
    case SequenceKind::Tuple:
      out += '(';
      append_items(out, sequence.items, budget, depth);
      out += sequence.items.size() == 1 ? ",)" : ")";
      return;
    case SequenceKind::Generator:
      out += "<" + type + " object>";
      return;
    case SequenceKind::Range:
      if (sequence.type.empty()) fault("writing out a slice of a range is not supported");
      out += sequence.type;
      return;
    default:
      out += type + "([";
      append_items(out, sequence.items, budget, depth);
      out += "])";
  }
}

void append_repr(std::string& out, const Value& value, Budget& budget, int depth) {
  checked_depth(depth);
  const size_t before = out.size();
  if (value.is_text()) {
    if (value.text().markup) out += "Markup(";
    append_text_repr(out, value.text().bytes);
    if (value.text().markup) out += ')';
  } else if (value.is_undefined()) {
    out += "Undefined";
  } else if (value.is_dict()) {
    out += '{';
    bool first = true;
    for (const auto& [key, item] : value.dict().entries()) {
      if (!first) out += ", ";
      first = false;
      append_repr(out, key, budget, depth + 1);
      out += ": ";
      append_repr(out, item, budget, depth + 1);
    }
    out += '}';
  } else if (value.is_sequence()) {
    append_sequence(out, *value.sequence(), value.type_name(), budget, depth);
  } else if (value.is_object()) {
    out += "<" + value.type_name() + ">";
  } else if (value.is_none()) {
    out += "None";
  } else if (value.is_bool()) {
    out += value.boolean() ? "True" : "False";
  } else {
    out += value.is_int() ? to_text(value.integer()) : to_text(value.number());
  }
  // Containers pay for their items again; depth is bounded, so the text is paid for kMaxValueDepth times at
  // most.
  budget.spend_text(out.size() - before);
  if (out.size() > Budget::kMaxTextBytes) budget.spend_text(out.size());
}

}  // namespace

std::string to_text(Int value) {
  const bool negative = value < 0;
  std::string digits;
  do {
    const int digit = static_cast<int>(value % 10);
    digits += static_cast<char>('0' + (digit < 0 ? -digit : digit));
    value /= 10;
  } while (value != 0);
  if (negative) digits += '-';
  return {digits.rbegin(), digits.rend()};
}

std::string to_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 40> buffer;
  // Shortest digits that read back equal, d.ddde+XX.
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific).ptr;
  const std::string_view text(buffer.data(), static_cast<size_t>(end - buffer.data()));
  const size_t e = text.find('e');
  int exponent = 0;
  std::from_chars(text.data() + e + (text[e + 1] == '+' ? 2 : 1), text.data() + text.size(), exponent);
  const bool negative = text[0] == '-';
  std::string digits;
  for (const char c : text.substr(0, e))
    if (c >= '0' && c <= '9') digits += c;
  std::string out = negative ? "-" : "";
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (digits.size() > 1) out += "." + digits.substr(1);
    return out + fmt::format("e{}{:02d}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return out + digits + std::string(whole - digits.size(), '0') + ".0";
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string str(const Value& value, Budget& budget) {
  if (value.is_undefined()) return "";
  if (value.is_text()) {
    budget.spend_text(value.text().bytes.size());
    return value.text().bytes;
  }
  return repr(value, budget);
}

std::string repr(const Value& value, Budget& budget) {
  std::string out;
  append_repr(out, value, budget, 0);
  return out;
}

}  // namespace hearth::chat
