// A YAML document as plain values with positions, for experiment files. Stricter than YAML: one document, no
// aliases or anchors, no explicit tags, text keys only, no duplicate keys, bounded size and depth. Pure;
// thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hearth {

// Where a value was written. `source` is a file, or the whole override "--set optimizer.lr=1"; line and
// column count from 1 and are 0 in an override.
struct ConfigPosition {
  std::string source;
  int line = 0, column = 0;
  std::string text() const;  // "configs/a.yaml:3:5"
};

struct ConfigProblem {
  ConfigPosition position;
  std::string key;  // "optimizer.lr"; empty where the text is no YAML
  std::string message;
};

struct YamlNode {
  enum class Kind { Null, Scalar, Sequence, Map };
  struct Entry;
  Kind kind = Kind::Null;
  std::string scalar;
  bool quoted = false;  // "true" in quotes is a text, not a truth value
  ConfigPosition position;
  std::vector<YamlNode> items;  // of a sequence
  std::vector<Entry> entries;   // of a map, in order, keys unique

  Entry* find(std::string_view key);
};

struct YamlNode::Entry {
  std::string key;
  ConfigPosition key_position;
  YamlNode value;
};

// Parses `text`. An empty document is a Null node. What is wrong is appended to `problems`; the node then
// holds what could be read, so that other mistakes are found in the same run.
YamlNode parse_yaml(const std::string& text, const std::string& source, std::vector<ConfigProblem>& problems);

}  // namespace hearth
