#include "base/strict_json.h"

#include <vector>

namespace hearth {
namespace {

using nlohmann::json;

// Builds the value event by event. `open_` holds the containers that are not closed yet; pointers into a json
// array or object stay valid because only the innermost container grows.
class StrictBuilder final : public json::json_sax_t {
 public:
  StrictBuilder(std::string_view what, const JsonLimits& limits) : what_(what), limits_(limits) {}

  bool null() override { return add(json(nullptr)) != nullptr; }
  bool boolean(bool value) override { return add(json(value)) != nullptr; }
  bool number_integer(number_integer_t value) override { return add(json(value)) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return add(json(value)) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override { return add(json(value)) != nullptr; }
  bool string(string_t& value) override { return add(json(std::move(value))) != nullptr; }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(json::object()); }
  bool start_array(size_t) override { return open(json::array()); }
  bool end_object() override { return open_.pop_back(), true; }
  bool end_array() override { return open_.pop_back(), true; }
  bool key(string_t& name) override {
    const bool fresh = !open_.back()->contains(name);
    if (!fresh) fail_at(fmt::format("duplicate key \"{}\"", name));
    key_ = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    fail_at(fmt::format("byte {}: {}", position, error.what()));
  }
  json take() { return std::move(root_); }

 private:
  [[noreturn]] void fail_at(std::string_view text) const {
    throw Error(limits_.kind, fmt::format("{}: {}", what_, text));
  }

  json* add(json&& value) {
    if (++values_ > limits_.max_values) fail_at(fmt::format("more than {} JSON values", limits_.max_values));
    if (open_.empty()) return &(root_ = std::move(value));
    json& parent = *open_.back();
    if (parent.is_object()) return &(parent[key_] = std::move(value));
    parent.push_back(std::move(value));
    return &parent.back();
  }
  bool open(json&& container) {
    if (static_cast<int64_t>(open_.size()) >= limits_.max_depth)
      fail_at(fmt::format("JSON nested deeper than {} levels", limits_.max_depth));
    open_.push_back(add(std::move(container)));
    return true;
  }

  std::string_view what_;
  const JsonLimits& limits_;
  json root_;
  std::vector<json*> open_;
  std::string key_;
  int64_t values_ = 0;
};

}  // namespace

json parse_json_strict(std::string_view text, std::string_view what, const JsonLimits& limits) {
  // nlohmann skips a byte order mark; a strict reader does not.
  if (text.substr(0, 3) == "\xEF\xBB\xBF")
    throw Error(limits.kind, fmt::format("{}: starts with a byte order mark", what));
  StrictBuilder builder(what, limits);
  const bool complete = json::sax_parse(text.begin(), text.end(), &builder);
  if (!complete) throw Error(limits.kind, fmt::format("{}: not JSON", what));
  return builder.take();
}

}  // namespace hearth
