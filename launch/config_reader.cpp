#include "launch/config_reader.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "launch/nearest_word.h"

namespace hearth {
namespace {

bool plain(const YamlNode& node) {
  return node.kind == YamlNode::Kind::Scalar && !node.quoted;
}

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

// Plain decimal digits with an optional sign; the text that std::from_chars takes.
std::optional<std::string> integer_digits(std::string_view text) {
  std::string_view digits = text;
  if (!digits.empty() && (digits[0] == '-' || digits[0] == '+')) digits.remove_prefix(1);
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (digits.empty() || !std::all_of(digits.begin(), digits.end(), is_digit)) return std::nullopt;
  return std::string(text[0] == '+' ? digits : text);
}

}  // namespace

std::string describe(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::Null:
      return "nothing";
    case YamlNode::Kind::Sequence:
      return fmt::format("a list of {}", node.items.size());
    case YamlNode::Kind::Map:
      return "a map";
    case YamlNode::Kind::Scalar:
      break;
  }
  constexpr size_t kShown = 60;
  const std::string text = node.scalar.size() > kShown ? node.scalar.substr(0, kShown) + "..." : node.scalar;
  return node.quoted ? fmt::format("the text \"{}\"", text) : fmt::format("'{}'", text);
}

std::optional<std::string> read_scalar(const YamlNode& node, bool& out) {
  if (plain(node) && is_one_of(node.scalar, {"true", "True", "TRUE"})) {
    out = true;
  } else if (plain(node) && is_one_of(node.scalar, {"false", "False", "FALSE"})) {
    out = false;
  } else {
    return "must be true or false, got " + describe(node);
  }
  return std::nullopt;
}

std::optional<std::string> read_scalar(const YamlNode& node, int64_t& out) {
  const auto digits = plain(node) ? integer_digits(node.scalar) : std::nullopt;
  if (!digits) return "must be a whole number, got " + describe(node);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits->data(), digits->data() + digits->size(), value);
  if (error != std::errc() || end != digits->data() + digits->size())
    return fmt::format("must be within 64 bits ({} to {}), got {}", std::numeric_limits<int64_t>::min(),
                       std::numeric_limits<int64_t>::max(), describe(node));
  out = value;
  return std::nullopt;
}

std::optional<std::string> read_scalar(const YamlNode& node, double& out) {
  const std::string wrong = "must be a number, got " + describe(node);
  if (!plain(node)) return wrong;
  std::string_view text = node.scalar;
  const bool negative = text[0] == '-';
  if (negative || text[0] == '+') text.remove_prefix(1);
  double value = 0;
  if (is_one_of(text, {".inf", ".Inf", ".INF"})) {
    value = std::numeric_limits<double>::infinity();
  } else if (is_one_of(text, {".nan", ".NaN", ".NAN"})) {
    value = std::numeric_limits<double>::quiet_NaN();  // a validate() refuses it with the range that it wants
  } else {
    // from_chars would take "inf" and "nan" without the dot, which YAML does not.
    if (text.empty() || !(text[0] == '.' || (text[0] >= '0' && text[0] <= '9'))) return wrong;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc::result_out_of_range)
      return "is beyond the range of a number, got " + describe(node);
    if (error != std::errc() || end != text.data() + text.size()) return wrong;
  }
  out = negative ? -value : value;
  return std::nullopt;
}

std::optional<std::string> read_scalar(const YamlNode& node, std::string& out) {
  if (node.kind != YamlNode::Kind::Scalar) return "must be a text, got " + describe(node);
  out = node.scalar;
  return std::nullopt;
}

void ConfigReader::report_unknown(const YamlNode& node, const std::vector<std::string>& names,
                                  const std::string& prefix) {
  for (const auto& entry : node.entries) {
    if (std::find(names.begin(), names.end(), entry.key) != names.end()) continue;
    const auto elsewhere = std::find_if(known_keys_.begin(), known_keys_.end(), [&](const std::string& key) {
      const size_t dot = key.rfind('.');
      return dot != std::string::npos && key.compare(dot + 1, std::string::npos, entry.key) == 0;
    });
    const std::string suggestion =
        elsewhere != known_keys_.end() ? *elsewhere : join(prefix, nearest_word(entry.key, names));
    problem(entry.key_position, join(prefix, entry.key),
            "unknown key; the nearest valid key is " + suggestion);
  }
}

}  // namespace hearth
