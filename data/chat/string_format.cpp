// Python's two ways to format: `'%s: %d' % (a, b)` and `'{}: {:>4}'.format(a, b)`.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "data/chat/format.h"
#include "data/chat/operations.h"
#include "data/chat/text.h"

namespace hearth::chat {

namespace {

constexpr size_t kMaxWidth = 10000;

// What a conversion asks for, in either syntax.
struct Layout {
  std::string fill = " ";
  char align = '\0';  // < > ^ =, or by type
  char sign = '-';
  bool alternate = false, zero = false, thousands = false;
  size_t width = 0;
  int precision = -1;
  char type = '\0';
};

size_t read_number(std::string_view text, size_t& pos) {
  size_t value = 0;
  for (; pos < text.size() && text[pos] >= '0' && text[pos] <= '9'; ++pos) {
    value = value * 10 + static_cast<size_t>(text[pos] - '0');
    if (value > kMaxWidth) fault("a width of more than {} in a format", kMaxWidth);
  }
  return value;
}

std::string padded(std::string body, const Layout& layout, char default_align, size_t sign_size) {
  const size_t size = count_characters(Value(body).text());
  if (size >= layout.width) return body;
  const char align = layout.align != '\0' ? layout.align : default_align;
  const size_t missing = layout.width - size;
  size_t left = align == '>' ? missing : align == '^' ? missing / 2 : 0;
  std::string out;
  if (align == '=') {
    out = body.substr(0, sign_size);
    body = body.substr(sign_size);
    left = missing;
  }
  for (size_t i = 0; i < left; ++i) out += layout.fill;
  out += body;
  for (size_t i = left; i < missing; ++i) out += layout.fill;
  return out;
}

std::string in_base(Int value, unsigned base, bool upper_case) {
  std::string out;
  do {
    const auto digit = static_cast<unsigned>(value % base);
    out += static_cast<char>(digit < 10 ? '0' + digit : (upper_case ? 'A' : 'a') + digit - 10);
    value /= base;
  } while (value != 0);
  return {out.rbegin(), out.rend()};
}

std::string with_thousands(const std::string& digits) {
  const size_t whole = std::min(digits.find_first_not_of("0123456789"), digits.size());
  std::string out = digits.substr(0, whole);
  for (size_t at = whole; at > 3; at -= 3) out.insert(at - 3, ",");
  return out + digits.substr(whole);
}

std::string with_sign(std::string digits, bool negative, const Layout& layout, size_t& sign_size) {
  const std::string sign = negative ? "-" : layout.sign == '-' ? "" : std::string(1, layout.sign);
  sign_size = sign.size();
  return sign + digits;
}

std::string format_integer(Int value, const Layout& layout) {
  const bool negative = value < 0;
  if (value == Int{1} << 127) fault("integers of more than 127 bits are not supported");
  const Int magnitude = negative ? -value : value;
  const bool hex = layout.type == 'x' || layout.type == 'X';
  std::string digits = in_base(magnitude,
                               hex                  ? 16
                               : layout.type == 'o' ? 8
                               : layout.type == 'b' ? 2
                                                    : 10,
                               layout.type == 'X');
  if (layout.precision > 0 && digits.size() < static_cast<size_t>(layout.precision))
    digits.insert(0, static_cast<size_t>(layout.precision) - digits.size(), '0');
  if (layout.thousands) digits = with_thousands(digits);
  if (layout.alternate && (hex || layout.type == 'o' || layout.type == 'b'))
    digits = std::string("0") + layout.type + digits;
  size_t sign_size = 0;
  std::string body = with_sign(digits, negative, layout, sign_size);
  return padded(std::move(body), layout, '>', sign_size);
}

std::string format_float(double value, const Layout& layout) {
  const bool negative = std::signbit(value) && !std::isnan(value);
  const double magnitude = std::fabs(value);
  std::string digits;
  char type = layout.type;
  if (type == '\0' && layout.precision < 0) {
    digits = to_text(magnitude);
  } else {
    if (type == '\0') fault("a precision without a type in the format of a float is not supported");
    const bool percent = type == '%';
    const char conversion[] = {'%', '.', '*', percent ? 'f' : type, '\0'};
    digits.resize(400 + kMaxWidth);
    const int precision = layout.precision < 0 ? 6 : layout.precision;
    const int size = std::snprintf(digits.data(), digits.size(), conversion, precision,
                                   percent ? magnitude * 100 : magnitude);
    digits.resize(static_cast<size_t>(size));
    if (percent) digits += '%';
  }
  if (layout.thousands) digits = with_thousands(digits);
  size_t sign_size = 0;
  std::string body = with_sign(digits, negative, layout, sign_size);
  return padded(std::move(body), layout, '>', sign_size);
}

bool is_float_type(char type) {
  return std::string_view("eEfFgG%").find(type) != std::string_view::npos && type != '\0';
}
bool is_integer_type(char type) {
  return std::string_view("dxXob").find(type) != std::string_view::npos && type != '\0';
}

std::string cut(std::string text, const Layout& layout) {
  if (layout.precision < 0) return text;
  return slice_text(Value(std::move(text)).text(), Slice{std::nullopt, Int{layout.precision}, std::nullopt});
}

// ---- % ----

class PercentFormat {
 public:
  PercentFormat(std::string_view format, const Value& operand, Budget& budget)
      : format_(format), operand_(operand), budget_(budget) {}

  std::string run() {
    std::string out;
    while (pos_ < format_.size()) {
      if (format_[pos_] != '%') {
        out += format_[pos_++];
        continue;
      }
      ++pos_;
      out += conversion();
      if (out.size() > Budget::kMaxTextBytes) budget_.spend_text(out.size());
    }
    if (operand_.is(SequenceKind::Tuple) ? used_ < operand_.sequence()->items.size() : !used_all())
      fault("not all arguments converted during string formatting");
    budget_.spend_text(out.size());
    return out;
  }

 private:
  bool used_all() const {
    return used_ > 0 || operand_.is_dict() || operand_.is_undefined() || operand_.is(SequenceKind::List) ||
           operand_.is(SequenceKind::Range);
  }

  char current() const {
    if (pos_ >= format_.size()) fault("incomplete format");
    return format_[pos_];
  }

  Value take() {
    const bool is_tuple = operand_.is(SequenceKind::Tuple);
    if (used_ >= (is_tuple ? operand_.sequence()->items.size() : 1))
      fault("not enough arguments for format string");
    return is_tuple ? operand_.sequence()->items[used_++] : (++used_, operand_);
  }

  Value take_named() {
    const size_t end = format_.find(')', pos_);
    if (end == std::string_view::npos) fault("incomplete format key");
    if (!operand_.is_dict()) fault("format requires a mapping");
    const std::string key(format_.substr(pos_ + 1, end - pos_ - 1));
    const Value* found = operand_.dict().find(key);
    if (found == nullptr) fault("'{}'", key);
    pos_ = end + 1;
    return *found;
  }

  std::string conversion() {
    std::optional<Value> named;
    if (current() == '(') named = take_named();
    Layout layout;
    for (;; ++pos_) {
      const char flag = current();
      if (flag == '-')
        layout.align = '<';
      else if (flag == '0')
        layout.zero = true;
      else if (flag == '#')
        layout.alternate = true;
      else if (flag == '+' || (flag == ' ' && layout.sign != '+'))
        layout.sign = flag;
      else if (flag != ' ')
        break;
    }
    layout.width = read_number(format_, pos_);
    if (current() == '.') {
      ++pos_;
      layout.precision = static_cast<int>(read_number(format_, pos_));
    }
    const char type = current();
    ++pos_;
    if (type == '%') return "%";
    return convert(named ? *named : take(), layout, type);
  }

  std::string convert(const Value& value, Layout layout, char type) {
    if (type == 's' || type == 'r') {
      const std::string text = type == 's' ? str(value, budget_) : repr(value, budget_);
      return padded(cut(text, layout), layout, '>', 0);
    }
    layout.type = type == 'i' || type == 'u' ? 'd' : type;
    if (layout.zero && layout.align == '\0') {
      layout.fill = "0";
      layout.align = '=';
    }
    if (!is_integer_type(layout.type) && !(is_float_type(type) && type != '%'))
      fault("the conversion '%{}' is not supported", type);
    require_defined(value);
    if (!value.is_number()) {
      fault("{}", is_float_type(type) ? "must be real number, not " + value.type_name()
                                      : fmt::format("%{} format: a real number is required, not {}", type,
                                                    value.type_name()));
    }
    if (is_float_type(type)) return format_float(value.number(), layout);
    if (value.is_float() && layout.type != 'd') fault("%{} format: an integer is required, not float", type);
    return format_integer(value.is_float() ? float_to_integer(value.number()) : value.integer(), layout);
  }

  const std::string_view format_;
  const Value& operand_;
  Budget& budget_;
  size_t pos_ = 0, used_ = 0;
};

// ---- str.format ----

Layout parse_layout(std::string_view spec) {
  Layout layout;
  const auto all = characters(spec);
  const auto is_align = [&](size_t i) {
    return i < all.size() && all[i].size() == 1 &&
           std::string_view("<>^=").find(all[i]) != std::string_view::npos;
  };
  size_t pos = 0;
  if (is_align(1)) {
    layout.fill = std::string(all[0]);
    layout.align = all[1][0];
    pos = all[0].size() + 1;
  } else if (is_align(0)) {
    layout.align = all[0][0];
    pos = 1;
  }
  const auto skip = [&](char c) { return pos < spec.size() && spec[pos] == c && (++pos, true); };
  for (const char sign : {'+', '-', ' '})
    if (skip(sign)) layout.sign = sign;
  layout.alternate = skip('#');
  if (skip('0') && layout.align == '\0') {
    layout.fill = "0";
    layout.align = '=';
  }
  layout.width = read_number(spec, pos);
  layout.thousands = skip(',');
  if (skip('.')) layout.precision = static_cast<int>(read_number(spec, pos));
  if (pos < spec.size()) layout.type = spec[pos++];
  if (pos < spec.size()) fault("Invalid format specifier '{}'", spec);
  return layout;
}

std::string format_value(const Value& value, const std::string& spec, Budget& budget) {
  if (spec.empty()) return str(value, budget);
  const Layout layout = parse_layout(spec);
  const bool bad_type = layout.type != '\0' && layout.type != 's' && !is_integer_type(layout.type) &&
                        !is_float_type(layout.type);
  if (value.is_text() && (layout.type == '\0' || layout.type == 's') && layout.align != '=')
    return padded(cut(value.text().bytes, layout), layout, '<', 0);
  if (value.is_number() && !bad_type && layout.type != 's') {
    if (value.is_float() || is_float_type(layout.type)) {
      if (!is_integer_type(layout.type)) return format_float(value.number(), layout);
    } else if (value.is_int() || layout.type != '\0') {
      if (layout.precision < 0) return format_integer(value.integer(), layout);
    }
  }
  fault("the format '{}' does not fit '{}'", spec, value.type_name());
}

class BraceFormat {
 public:
  BraceFormat(const Arguments& arguments, Budget& budget) : arguments_(arguments), budget_(budget) {}

  std::string run(std::string_view format, int depth) {
    if (depth > 1) fault("Max string recursion exceeded");
    std::string out;
    for (size_t pos = 0; pos < format.size();) {
      const char c = format[pos];
      if ((c == '{' || c == '}') && pos + 1 < format.size() && format[pos + 1] == c) {
        out += c;
        pos += 2;
      } else if (c == '}') {
        fault("Single '}}' encountered in format string");
      } else if (c == '{') {
        const size_t end = end_of_field(format, pos);
        out += field(format.substr(pos + 1, end - pos - 1), depth);
        pos = end + 1;
      } else {
        out += c;
        ++pos;
      }
      if (out.size() > Budget::kMaxTextBytes) budget_.spend_text(out.size());
    }
    budget_.spend_text(out.size());
    return out;
  }

 private:
  static size_t end_of_field(std::string_view format, size_t begin) {
    int open = 0;
    for (size_t pos = begin; pos < format.size(); ++pos) {
      if (format[pos] == '{') ++open;
      if (format[pos] == '}' && --open == 0) return pos;
    }
    fault("{}", begin + 1 == format.size() ? "Single '{' encountered in format string"
                                           : "expected '}' before end of string");
  }

  std::string field(std::string_view body, int depth) {
    const size_t name_end = std::min(body.find_first_of("!:"), body.size());
    std::string_view rest = body.substr(name_end);
    Value value = lookup(body.substr(0, name_end));
    if (!rest.empty() && rest[0] == '!') {
      const char conversion = rest.size() > 1 ? rest[1] : '\0';
      if ((conversion != 's' && conversion != 'r') || (rest.size() > 2 && rest[2] != ':'))
        fault("the conversion '{}' of a format is not supported", rest);
      value = Value(conversion == 's' ? str(value, budget_) : repr(value, budget_));
      rest = rest.substr(2);
    }
    const std::string spec = rest.empty() ? "" : run(rest.substr(1), depth + 1);
    return format_value(value, spec, budget_);
  }

  Value lookup(std::string_view name) {
    const size_t end = std::min(name.find_first_of(".["), name.size());
    Value value = first(name.substr(0, end));
    for (size_t pos = end; pos < name.size();) {
      if (name[pos] == '.') {
        const size_t stop = std::min(name.find_first_of(".[", pos + 1), name.size());
        value = get_attribute(value, std::string(name.substr(pos + 1, stop - pos - 1)));
        pos = stop;
      } else {
        const size_t stop = name.find(']', pos);
        if (name[pos] != '[' || stop == std::string_view::npos) fault("Missing ']' in format string");
        value = get_item(value, key(name.substr(pos + 1, stop - pos - 1)));
        pos = stop + 1;
      }
    }
    return value;
  }

  static Value key(std::string_view text) {
    if (text.empty() || text.find_first_not_of("0123456789") != std::string_view::npos)
      return Value(std::string(text));
    size_t pos = 0;
    return Value(read_number(text, pos));
  }

  Value first(std::string_view name) {
    size_t index = next_;
    if (!name.empty() && name.find_first_not_of("0123456789") != std::string_view::npos) {
      for (const auto& [key, value] : arguments_.named)
        if (key == name) return value;
      fault("'{}'", name);
    }
    if (name.empty()) {
      if (numbered_) fault("cannot switch from manual field specification to automatic field numbering");
      ++next_;
    } else {
      if (next_ != 0) fault("cannot switch from automatic field numbering to manual field specification");
      numbered_ = true;
      size_t pos = 0;
      index = read_number(name, pos);
    }
    if (index >= arguments_.positional.size())
      fault("Replacement index {} out of range for positional args tuple", index);
    return arguments_.positional[index];
  }

  const Arguments& arguments_;
  Budget& budget_;
  size_t next_ = 0;
  bool numbered_ = false;
};

}  // namespace

std::string format_percent(std::string_view format, const Value& operand, Budget& budget) {
  return PercentFormat(format, operand, budget).run();
}

std::string format_braces(std::string_view format, const Arguments& arguments, Budget& budget) {
  return BraceFormat(arguments, budget).run(format, 0);
}

}  // namespace hearth::chat
