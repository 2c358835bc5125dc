#include <algorithm>
#include <cmath>

#include "data/chat/format.h"
#include "data/chat/text.h"
#include "data/tokenizer/unicode.h"

namespace hearth::chat {

namespace {

class JsonWriter {
 public:
  JsonWriter(const JsonOptions& options, Budget& budget) : options_(options), budget_(budget) {}

  void write(const Value& value, int level) {
    budget_.spend(1);
    if (out_.size() > Budget::kMaxTextBytes) budget_.spend_text(out_.size());
    if (value.is_text())
      write_text(value.text().bytes);
    else if (value.is_dict())
      write_dict(value.dict(), level);
    else if (value.is(SequenceKind::List) || value.is(SequenceKind::Tuple))
      write_list(value.sequence()->items, level);
    else if (value.is_none() || value.is_bool() || value.is_number())
      out_ += scalar(value);
    else
      fault("Object of type {} is not JSON serializable", value.type_name());
  }
  std::string take() {
    budget_.spend_text(out_.size());
    return std::move(out_);
  }

 private:
  static std::string scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (value.is_bool()) return value.boolean() ? "true" : "false";
    if (value.is_int()) return to_text(value.integer());
    if (std::isnan(value.number())) return "NaN";
    if (std::isinf(value.number())) return value.number() < 0 ? "-Infinity" : "Infinity";
    return to_text(value.number());
  }

  void escape_unit(unsigned unit) { out_ += fmt::format("\\u{:04x}", unit); }

  void write_text(const std::string& text) {
    static constexpr std::string_view kShort = "\b\f\n\r\t\"\\", kLetter = "bfnrt\"\\";
    out_ += '"';
    for (const std::string_view character : characters(text)) {
      const auto c = static_cast<unsigned>(unicode::decode_at(character, 0));
      const size_t short_form = c < 0x80 ? kShort.find(static_cast<char>(c)) : std::string_view::npos;
      if (short_form != std::string_view::npos) {
        out_ += '\\';
        out_ += kLetter[short_form];
      } else if (c < 0x20 || (options_.ensure_ascii && c > 0x7e && c < 0x10000)) {
        escape_unit(c);
      } else if (options_.ensure_ascii && c >= 0x10000) {  // as UTF-16 has it
        escape_unit(0xd800 + ((c - 0x10000) >> 10));
        escape_unit(0xdc00 + ((c - 0x10000) & 0x3ff));
      } else {
        out_ += character;
      }
    }
    out_ += '"';
  }

  void new_line(int level) {
    if (!options_.indent) return;
    out_ += '\n';
    for (int i = 0; i < level; ++i) out_ += *options_.indent;
  }

  void write_list(const std::vector<Value>& items, int level) {
    if (items.empty()) return void(out_ += "[]");
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i != 0) out_ += options_.item_separator;
      new_line(level + 1);
      write(items[i], level + 1);
    }
    new_line(level);
    out_ += ']';
  }

  void write_dict(const Dict& dict, int level) {
    if (dict.size() == 0) return void(out_ += "{}");
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries()) entries.push_back(&entry);
    if (options_.sort_keys)
      std::stable_sort(entries.begin(), entries.end(),
                       [](auto a, auto b) { return less(a->first, b->first); });
    out_ += '{';
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i != 0) out_ += options_.item_separator;
      new_line(level + 1);
      write_key(entries[i]->first);
      out_ += options_.key_separator;
      write(entries[i]->second, level + 1);
    }
    new_line(level);
    out_ += '}';
  }

  void write_key(const Value& key) {
    if (key.is_text()) return write_text(key.text().bytes);
    if (!key.is_none() && !key.is_bool() && !key.is_number())
      fault("keys must be str, int, float, bool or None, not {}", key.type_name());
    out_ += '"' + scalar(key) + '"';
  }

  const JsonOptions& options_;
  Budget& budget_;
  std::string out_;
};

}  // namespace

std::string to_json(const Value& value, const JsonOptions& options, Budget& budget) {
  JsonWriter writer(options, budget);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace hearth::chat
