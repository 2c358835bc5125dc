// YamlNode -> visitable struct. A visitor over the fields of a struct that takes each key's value from a map
// node, collects every mistake, and notes where each key was written. Header because it is a template; used
// by config_parser.cpp and the tests.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/config_flatten.h"
#include "launch/yaml_tree.h"

namespace hearth {

// Scalars. Each returns what is wrong, or nothing and sets `out`.
std::optional<std::string> read_scalar(const YamlNode& node, bool& out);
std::optional<std::string> read_scalar(const YamlNode& node, int64_t& out);
std::optional<std::string> read_scalar(const YamlNode& node, double& out);
std::optional<std::string> read_scalar(const YamlNode& node, std::string& out);

// "the number 3", "a map", ...: what the user wrote, for messages.
std::string describe(const YamlNode& node);

class ConfigReader {
 public:
  // `known_keys`: all valid dotted keys, to suggest the right section for a key in the wrong one.
  ConfigReader(std::vector<ConfigProblem>& problems, std::map<std::string, ConfigPosition>& positions,
               std::vector<std::string> known_keys)
      : problems_(problems), positions_(positions), known_keys_(std::move(known_keys)) {}

  // Sets the fields of `config` that `node` names. Null reads as an empty map: a section with all keys
  // commented out.
  template <class T>
  void read_struct(YamlNode& node, T& config, const std::string& prefix) {
    if (node.kind == YamlNode::Kind::Null) return;
    if (node.kind != YamlNode::Kind::Map) {
      problem(node.position, prefix, "must be a map of keys, got " + describe(node));
      return;
    }
    std::vector<std::string> names;
    config.visit([&](std::string_view name, auto& field, OnResume, std::string_view) {
      names.emplace_back(name);
      YamlNode::Entry* entry = node.find(name);
      if (entry == nullptr) return;
      const std::string key = join(prefix, name);
      positions_[key] = entry->key_position;
      read(entry->value, field, key);
    });
    report_unknown(node, names, prefix);
  }

 private:
  static std::string join(const std::string& prefix, std::string_view name) {
    return prefix.empty() ? std::string(name) : prefix + "." + std::string(name);
  }

  template <class T>
  void read(YamlNode& node, T& field, const std::string& key) {
    if constexpr (detail::is_scalar_field<T>) {
      if (const auto wrong = read_scalar(node, field)) problem(node.position, key, *wrong);
    } else if constexpr (detail::is_optional_field<T>) {
      field.reset();
      if (node.kind != YamlNode::Kind::Null) read(node, field.emplace(), key);
    } else if constexpr (detail::is_vector_field<T>) {
      read_list(node, field, key);
    } else {
      read_struct(node, field, key);
    }
  }

  template <class T>
  void read_list(YamlNode& node, std::vector<T>& list, const std::string& key) {
    if (node.kind != YamlNode::Kind::Sequence) {
      problem(node.position, key, "must be a list, got " + describe(node));
      return;
    }
    list.clear();
    for (auto& item : node.items) {
      const std::string item_key = fmt::format("{}[{}]", key, list.size());
      positions_[item_key] = item.position;
      read(item, list.emplace_back(), item_key);
    }
  }

  void report_unknown(const YamlNode& node, const std::vector<std::string>& names, const std::string& prefix);
  void problem(const ConfigPosition& position, const std::string& key, std::string message) {
    problems_.push_back({position, key, std::move(message)});
  }

  std::vector<ConfigProblem>& problems_;
  std::map<std::string, ConfigPosition>& positions_;
  std::vector<std::string> known_keys_;
};

}  // namespace hearth
