#include "launch/config_parser.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>

#include "base/error.h"
#include "launch/config_reader.h"
#include "launch/nearest_word.h"
#include "launch/run_config.h"

namespace hearth {
namespace {

using Problems = std::vector<ConfigProblem>;

template <class T>
std::vector<std::string> keys_of() {
  std::vector<std::string> keys;
  for (auto& flat : flatten_config(T{})) keys.push_back(std::move(flat.key));
  return keys;
}

// Maps merge key by key; everything else replaces.
void merge(YamlNode& into, YamlNode from) {
  if (into.kind != YamlNode::Kind::Map || from.kind != YamlNode::Kind::Map) {
    into = std::move(from);
    return;
  }
  for (auto& entry : from.entries) {
    if (YamlNode::Entry* old = into.find(entry.key)) {
      old->key_position = entry.key_position;
      merge(old->value, std::move(entry.value));
    } else {
      into.entries.push_back(std::move(entry));
    }
  }
}

// "section.key=value" as a tree of maps around the value.
YamlNode parse_override(const std::string& text, Problems& problems) {
  const size_t equals = text.find('=');
  HEARTH_CHECK(equals != std::string::npos && equals > 0, Usage, "--set {}: expected --set section.key=value",
               text);
  const ConfigPosition position{"--set " + text, 0, 0};
  Problems inner;
  YamlNode node = parse_yaml(text.substr(equals + 1), position.source, inner);
  const std::string key = text.substr(0, equals);
  for (auto& problem : inner) problems.push_back({position, key, problem.message});
  node.position = position;
  for (size_t end = key.size(); end != std::string::npos;) {
    const size_t dot = end == 0 ? std::string::npos : key.rfind('.', end - 1);
    const size_t begin = dot == std::string::npos ? 0 : dot + 1;
    YamlNode map;
    map.kind = YamlNode::Kind::Map;
    map.position = position;
    map.entries.push_back({key.substr(begin, end - begin), position, std::move(node)});
    node = std::move(map);
    end = dot;
  }
  return node;
}

// Positions inside an override's value have line and column of that value; people want the override.
void forget_lines(std::map<std::string, ConfigPosition>& positions, Problems& problems) {
  const auto is_override = [](const ConfigPosition& p) { return p.source.rfind("--set ", 0) == 0; };
  for (auto& [key, position] : positions)
    if (is_override(position)) position.line = position.column = 0;
  for (auto& problem : problems)
    if (is_override(problem.position)) problem.position.line = problem.position.column = 0;
}

// Where `key` was written, or the section around it, or the top of the file.
ConfigPosition locate(const LoadedConfig& loaded, std::string key) {
  while (true) {
    const auto found = loaded.positions.find(key);
    if (found != loaded.positions.end()) return found->second;
    const size_t cut = key.find_last_of(".[");
    if (cut == std::string::npos) return {loaded.path, 1, 1};
    key.resize(cut);
  }
}

// Keys that a user can see only as parts of a path, and a section that is an override, both point somewhere
// already.
bool covered(const Problems& problems, const std::string& key) {
  return std::any_of(problems.begin(), problems.end(), [&](const ConfigProblem& p) {
    return p.key == key || (!p.key.empty() && key.rfind(p.key + ".", 0) == 0) ||
           (!p.key.empty() && key.rfind(p.key + "[", 0) == 0);
  });
}

struct ReadContext {
  FileSystem& fs;
  LoadedConfig& loaded;
  Problems& problems;
};

YamlNode read_preset(ReadContext& c, YamlNode& model) {
  YamlNode::Entry* entry = model.kind == YamlNode::Kind::Map ? model.find("preset") : nullptr;
  if (entry == nullptr || entry->value.kind == YamlNode::Kind::Null) return {};
  std::string path;
  if (const auto wrong = read_scalar(entry->value, path)) return {};  // read_struct reports it
  std::string text;
  try {
    text = c.fs.read_text(path);
  } catch (const Error& error) {
    c.problems.push_back(
        {entry->value.position, "model.preset",
         fmt::format("cannot be read: {} (paths are relative to the working directory)", error.message())});
    return {};
  }
  return parse_yaml(text, path, c.problems);
}

std::string family_of(YamlNode& model, YamlNode& preset, const std::string& otherwise) {
  for (YamlNode* node : {&model, &preset}) {
    if (node->kind != YamlNode::Kind::Map) continue;
    const YamlNode::Entry* entry = node->find("family");
    if (entry != nullptr && entry->value.kind == YamlNode::Kind::Scalar) return entry->value.scalar;
  }
  return otherwise;
}

// Family defaults and the preset's keys; the experiment file's own keys come on top of them later.
void read_model_defaults(ReadContext& c, YamlNode& root) {
  YamlNode::Entry* entry = root.kind == YamlNode::Kind::Map ? root.find("model") : nullptr;
  if (entry == nullptr) return;
  YamlNode preset = read_preset(c, entry->value);
  ModelConfig& shape = c.loaded.config.model;
  const auto before = flatten_config(shape);
  shape.family = family_of(entry->value, preset, shape.family);
  apply_family_defaults(shape);
  for (const auto& change : resume_diff(before, flatten_config(shape)))
    c.loaded.derived["model." + change.key] = "family " + shape.family;
  ConfigReader reader(c.problems, c.loaded.positions, keys_of<ModelConfig>());
  std::map<std::string, ConfigPosition> ignored;
  reader.read_struct(preset, shape, "model");
}

// A learning rate below the default min_lr would make the decay go up.
void derive_min_lr(LoadedConfig& loaded) {
  OptimizerConfig& o = loaded.config.optimizer;
  if (loaded.written("optimizer.min_lr") || o.min_lr <= o.lr || !(o.lr > 0)) return;
  o.min_lr = o.lr / 10;
  loaded.derived["optimizer.min_lr"] = "lr / 10";
}

LoadedConfig parse_tree(FileSystem& fs, YamlNode root, const std::string& path, Problems problems) {
  LoadedConfig loaded;
  loaded.path = path;
  ReadContext context{fs, loaded, problems};
  read_model_defaults(context, root);
  ConfigReader reader(problems, loaded.positions, keys_of<ExperimentConfig>());
  reader.read_struct(root, loaded.config, "");
  loaded.config.model.preset.reset();
  derive_min_lr(loaded);
  forget_lines(loaded.positions, problems);
  ConfigErrors errors;
  loaded.config.validate(errors);
  validate_run(loaded, errors);
  for (auto& problem : located(loaded, errors))
    if (!covered(problems, problem.key)) problems.push_back(std::move(problem));
  throw_problems(std::move(problems), path);
  return loaded;
}

// May a written key differ from the model that weights come from? The longest sequence and the spread of
// initial weights may, and smollm is llama under another name.
bool changes_the_model(const std::string& key, const std::string& mine, const std::string& theirs) {
  if (key == "max_position_embeddings" || key == "initializer_range") return false;
  const auto is_llama = [](const std::string& family) { return family == "llama" || family == "smollm"; };
  return key != "family" || !is_llama(mine) || !is_llama(theirs);
}

struct ParallelSection {
  ParallelConfig parallel;
  template <class V>
  void visit(V&& v) {
    v("parallel", parallel, OnResume::MayChange, "layout over the ranks");
  }
};

nlohmann::ordered_json value_as_json(const std::string& canonical) {
  return nlohmann::ordered_json::parse(canonical);
}

}  // namespace

std::string LoadedConfig::origin(const std::string& key) const {
  if (const auto found = positions.find(key); found != positions.end()) return found->second.text();
  if (const auto found = derived.find(key); found != derived.end()) return found->second;
  return "default";
}

LoadedConfig load_experiment(FileSystem& fs, const std::string& path,
                             std::span<const std::string> overrides) {
  HEARTH_CHECK(fs.exists(path), Config, "there is no experiment file '{}'", path);
  HEARTH_CHECK(!fs.is_directory(path), Config, "'{}' is a folder, not an experiment file", path);
  return parse_experiment(fs, fs.read_text(path), path, overrides);
}

LoadedConfig parse_experiment(FileSystem& fs, const std::string& text, const std::string& path,
                              std::span<const std::string> overrides) {
  Problems problems;
  YamlNode root = parse_yaml(text, path, problems);
  for (const auto& override_text : overrides) merge(root, parse_override(override_text, problems));
  return parse_tree(fs, std::move(root), path, std::move(problems));
}

ParallelConfig parse_parallel_overrides(std::span<const std::string> overrides) {
  Problems problems;
  YamlNode root;
  for (const auto& override_text : overrides) merge(root, parse_override(override_text, problems));
  ParallelSection section;
  section.parallel.zero_stage = 0;  // no optimizer, nothing to shard
  LoadedConfig loaded;
  loaded.path = "--set";
  ConfigReader(problems, loaded.positions, {}).read_struct(root, section, "");
  forget_lines(loaded.positions, problems);
  ConfigErrors errors;
  {
    const ConfigErrors::Scope scope(errors, "parallel");
    section.parallel.validate(errors);
  }
  for (auto& problem : located(loaded, errors))
    if (!covered(problems, problem.key)) problems.push_back(std::move(problem));
  throw_problems(std::move(problems), "--set");
  return section.parallel;
}

std::vector<ConfigProblem> located(const LoadedConfig& loaded, const ConfigErrors& errors) {
  Problems problems;
  for (const auto& entry : errors.entries())
    problems.push_back({locate(loaded, entry.key), entry.key, entry.message});
  return problems;
}

void throw_problems(std::vector<ConfigProblem> problems, const std::string& what) {
  if (problems.empty()) return;
  std::stable_sort(problems.begin(), problems.end(), [](const ConfigProblem& a, const ConfigProblem& b) {
    const bool a_override = a.position.line == 0, b_override = b.position.line == 0;
    return std::tie(a_override, a.position.source, a.position.line, a.position.column) <
           std::tie(b_override, b.position.source, b.position.line, b.position.column);
  });
  std::string text = fmt::format("{}: {} {}, nothing was started", what, problems.size(),
                                 problems.size() == 1 ? "mistake" : "mistakes");
  for (const auto& problem : problems)
    text += fmt::format("\n  {}: {}{}{}", problem.position.text(), problem.key,
                        problem.key.empty() ? "" : ": ", problem.message);
  throw Error(ErrorKind::Config, text);
}

void adopt_model_shape(LoadedConfig& loaded, const ModelConfig& shape, const std::string& from) {
  ModelConfig& model = loaded.config.model;
  const ModelConfig mine = model;
  ConfigErrors errors;
  // Both lists come from the same visit(), so they have the same keys in the same order.
  const auto written = flatten_config(mine), theirs = flatten_config(shape);
  for (size_t i = 0; i < written.size(); ++i) {
    const std::string key = "model." + written[i].key;
    if (!loaded.written(key)) {
      loaded.derived[key] = from;
    } else if (written[i].value != theirs[i].value &&
               changes_the_model(written[i].key, mine.family, shape.family)) {
      errors.add(key, fmt::format("is {}, but {} has {}; leave the key out", written[i].value, from,
                                  theirs[i].value));
    }
  }
  throw_problems(located(loaded, errors), loaded.path);
  model = shape;  // preset and init_from are the section's, not the shape's
  if (loaded.written("model.max_position_embeddings"))
    model.max_position_embeddings = mine.max_position_embeddings;
  if (loaded.written("model.initializer_range")) model.initializer_range = mine.initializer_range;
  if (loaded.written("model.family")) model.family = mine.family;
  validate_run(loaded, errors);
  throw_problems(located(loaded, errors), loaded.path);
}

void adopt_vocab_size(LoadedConfig& loaded, int64_t tokenizer_size, const std::string& from) {
  int64_t& vocab_size = loaded.config.model.vocab_size;
  if (vocab_size == 0) {
    vocab_size = tokenizer_size;
    loaded.derived["model.vocab_size"] = from;
    loaded.positions.erase("model.vocab_size");  // "0" may have been written
  }
  ConfigErrors errors;
  errors.require(vocab_size >= tokenizer_size, "model.vocab_size",
                 "must be at least the {} tokens of {}, got {}", tokenizer_size, from, vocab_size);
  throw_problems(located(loaded, errors), loaded.path);
}

std::string resolved_yaml(const LoadedConfig& loaded) {
  std::string out = fmt::format("# Resolved from {}; hash {}\n", loaded.path, experiment_hash(loaded.config));
  std::vector<std::string> open;  // sections that the line before was in
  for (const auto& flat : flatten_config(loaded.config)) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= flat.key.size();) {
      const size_t dot = std::min(flat.key.find('.', begin), flat.key.size());
      parts.push_back(flat.key.substr(begin, dot - begin));
      begin = dot + 1;
    }
    const std::vector<std::string> sections(parts.begin(), parts.end() - 1);
    size_t shared = 0;
    while (shared < std::min(open.size(), sections.size()) && open[shared] == sections[shared]) ++shared;
    for (size_t depth = shared; depth < sections.size(); ++depth)
      out += std::string(2 * depth, ' ') + sections[depth] + ":\n";
    open = sections;
    std::string origin = loaded.origin(flat.key);
    std::replace_if(
        origin.begin(), origin.end(), [](unsigned char c) { return c < 0x20; }, ' ');
    out += fmt::format("{}{}: {}  # {}\n", std::string(2 * sections.size(), ' '), parts.back(), flat.value,
                       origin);
  }
  return out;
}

std::string resolved_json(const LoadedConfig& loaded) {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  for (const auto& flat : flatten_config(loaded.config))
    out[flat.key] = {{"value", value_as_json(flat.value)}, {"origin", loaded.origin(flat.key)}};
  return out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string experiment_hash(const ExperimentConfig& config) {
  return config_hash(flatten_config(config));
}

}  // namespace hearth
