// Reads a JSON object whose keys are all known: a missing key, a wrong type, a number out of range or an
// unknown key is an Error of the given kind that names the place. Not for configuration
// (launch/config_parser.h).
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "base/error.h"

namespace hearth {

class JsonObject {
 public:
  // `where` names the object in messages, e.g. "DIR/dataset.json: shards[3]". Keeps a reference to `json`.
  JsonObject(const nlohmann::json& json, std::string where, ErrorKind kind)
      : json_(json), where_(std::move(where)), kind_(kind) {
    if (!json.is_object()) fail(kind_, "{}: expected a JSON object, got {}", where_, json.type_name());
  }

  bool has(const std::string& key) const { return json_.contains(key); }
  const nlohmann::json& any(const std::string& key) {
    const auto found = json_.find(key);
    if (found == json_.end()) fail(kind_, "{}: key '{}' is missing", where_, key);
    seen_.insert(key);
    return *found;
  }
  int64_t integer(const std::string& key, int64_t low, int64_t high) {
    const auto& value = any(key);
    const bool fits =
        value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX);
    if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > high) {
      fail(kind_, "{}: '{}' is {}, expected an integer from {} to {}", where_, key, shown(value), low, high);
    }
    return value.get<int64_t>();
  }
  int64_t count(const std::string& key) { return integer(key, 0, INT64_MAX); }
  uint64_t unsigned_integer(const std::string& key) {
    const auto& value = any(key);
    if (!value.is_number_unsigned())
      fail(kind_, "{}: '{}' is {}, expected an integer >= 0", where_, key, shown(value));
    return value.get<uint64_t>();
  }
  double number(const std::string& key) {
    const auto& value = any(key);
    if (!value.is_number()) fail(kind_, "{}: '{}' is {}, expected a number", where_, key, shown(value));
    return value.get<double>();
  }
  std::string text(const std::string& key) {
    const auto& value = any(key);
    if (!value.is_string()) fail(kind_, "{}: '{}' is {}, expected a string", where_, key, shown(value));
    return value.get<std::string>();
  }
  const nlohmann::json& array(const std::string& key) {
    const auto& value = any(key);
    if (!value.is_array()) fail(kind_, "{}: '{}' is {}, expected an array", where_, key, shown(value));
    return value;
  }
  std::string place(const std::string& key, size_t index) const {
    return where_ + ": " + key + "[" + std::to_string(index) + "]";
  }
  const std::string& where() const { return where_; }
  // Call last: every key must have been read.
  void finish() const {
    for (const auto& item : json_.items()) {
      if (!seen_.count(item.key())) fail(kind_, "{}: unknown key '{}'", where_, item.key().substr(0, 100));
    }
  }

 private:
  static std::string shown(const nlohmann::json& value) {
    return value.is_structured()
               ? std::string("an ") + value.type_name()
               : value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 100);
  }
  const nlohmann::json& json_;
  std::string where_;
  ErrorKind kind_;
  std::set<std::string> seen_;
};

}  // namespace hearth
