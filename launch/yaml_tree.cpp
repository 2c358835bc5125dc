#include "launch/yaml_tree.h"

#include <fmt/core.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>

namespace hearth {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 20;  // an experiment file has a few KiB
constexpr size_t kMaxDepth = 32;               // the schema needs 4; more is an attack or an accident

void add_problem(std::vector<ConfigProblem>& problems, ConfigPosition position, std::string message) {
  ConfigProblem problem;  // by name: g++ 12 warns of uninitialised members of the braced form
  problem.position = std::move(position);
  problem.message = std::move(message);
  problems.push_back(std::move(problem));
}

// Builds the tree from yaml-cpp's events: unlike YAML::Node they show duplicate keys, quotes and every
// position.
class TreeBuilder final : public YAML::EventHandler {
 public:
  TreeBuilder(const std::string& source, std::vector<ConfigProblem>& problems)
      : source_(source), problems_(problems) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_anchor(mark, anchor);
    place(make(YamlNode::Kind::Null, mark));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    problem(mark, "aliases (*name) are not read; write the value out");
    place(make(YamlNode::Kind::Null, mark));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    YamlNode node = make(YamlNode::Kind::Scalar, mark);
    node.quoted = tag == "!";  // yaml-cpp: "?" for plain scalars, "!" for quoted ones
    node.scalar = value;
    const bool is_null =
        value.empty() || value == "~" || value == "null" || value == "Null" || value == "NULL";
    if (!node.quoted && is_null) node.kind = YamlNode::Kind::Null;
    if (value.find('\0') != std::string::npos) problem(mark, "holds a NUL character");
    place(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    start(YamlNode::Kind::Sequence, mark, tag, anchor);
  }
  void OnSequenceEnd() override { finish(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    start(YamlNode::Kind::Map, mark, tag, anchor);
  }
  void OnMapEnd() override { finish(); }

  YamlNode take_root() { return std::move(root_); }

 private:
  struct Open {
    YamlNode node;
    bool has_key = false;  // a map that waits for the value of `key`
    std::string key;
    ConfigPosition key_position;
  };

  ConfigPosition position(const YAML::Mark& mark) const { return {source_, mark.line + 1, mark.column + 1}; }
  YamlNode make(YamlNode::Kind kind, const YAML::Mark& mark) const {
    YamlNode node;
    node.kind = kind;
    node.position = position(mark);
    return node;
  }
  void problem(const YAML::Mark& mark, std::string message) {
    add_problem(problems_, position(mark), std::move(message));
  }
  void refuse_anchor(const YAML::Mark& mark, YAML::anchor_t anchor) {
    if (anchor != YAML::NullAnchor) problem(mark, "anchors (&name) are not read; write the value out");
  }
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") problem(mark, fmt::format("the tag {} is not read", tag));
  }
  void start(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    refuse_anchor(mark, anchor);
    refuse_tag(mark, tag);
    if (open_.size() >= kMaxDepth)
      throw YAML::ParserException(mark, fmt::format("nested deeper than {} levels", kMaxDepth));
    Open open;
    open.node = make(kind, mark);
    open_.push_back(std::move(open));
  }
  void finish() {
    YamlNode node = std::move(open_.back().node);
    open_.pop_back();
    place(std::move(node));
  }
  void place(YamlNode node) {
    if (open_.empty()) {
      root_ = std::move(node);
    } else if (Open& parent = open_.back(); parent.node.kind == YamlNode::Kind::Sequence) {
      parent.node.items.push_back(std::move(node));
    } else if (!parent.has_key) {
      place_key(parent, node);
    } else {
      parent.has_key = false;
      place_value(parent, std::move(node));
    }
  }
  void place_key(Open& parent, const YamlNode& node) {
    if (node.kind != YamlNode::Kind::Scalar && node.kind != YamlNode::Kind::Null)
      add_problem(problems_, node.position, "a key must be a plain word");
    parent.has_key = true;
    parent.key = node.kind == YamlNode::Kind::Scalar ? node.scalar : "null";
    parent.key_position = node.position;
  }
  void place_value(Open& parent, YamlNode value) {
    if (const auto* earlier = parent.node.find(parent.key)) {
      problems_.push_back(
          {parent.key_position, parent.key,
           fmt::format("duplicate key; the first is in line {}", earlier->key_position.line)});
      return;
    }
    parent.node.entries.push_back({parent.key, parent.key_position, std::move(value)});
  }

  const std::string& source_;
  std::vector<ConfigProblem>& problems_;
  std::vector<Open> open_;
  YamlNode root_;
};

}  // namespace

std::string ConfigPosition::text() const {
  return line > 0 ? fmt::format("{}:{}:{}", source, line, column) : source;
}

YamlNode::Entry* YamlNode::find(std::string_view key) {
  const auto found =
      std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.key == key; });
  return found == entries.end() ? nullptr : &*found;
}

YamlNode parse_yaml(const std::string& text, const std::string& source,
                    std::vector<ConfigProblem>& problems) {
  if (text.size() > kMaxBytes) {
    add_problem(problems, {source, 1, 1},
                fmt::format("is {} bytes long; at most {} are read", text.size(), kMaxBytes));
    return {};
  }
  TreeBuilder builder(source, problems);
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    YamlNode root = builder.take_root();
    std::vector<ConfigProblem> ignored;
    TreeBuilder rest(source, ignored);
    if (parser.HandleNextDocument(rest))
      add_problem(problems, rest.take_root().position,
                  "a second document (---); one experiment is one document");
    return root;
  } catch (const YAML::Exception& error) {
    add_problem(problems, {source, error.mark.line + 1, error.mark.column + 1}, "no YAML: " + error.msg);
    return builder.take_root();
  }
}

}  // namespace hearth
