// Experiment files: YAML text and --set overrides -> ExperimentConfig, strictly, with the origin of every
// key. All mistakes are reported at once, each with file:line:column (or the override) and the nearest valid
// key. Order of authority, lowest first: defaults of the structs, defaults of the model family,
// model.preset's file, the experiment file, --set. YAML is read in launch/ only. Pure but for reading files;
// thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/config_flatten.h"
#include "base/file_system.h"
#include "launch/yaml_tree.h"
#include "trainer/experiment_config.h"

namespace hearth {

struct LoadedConfig {
  ExperimentConfig config;  // model.preset is null: its keys are in `model`, their origins name its file
  std::string path;         // of the experiment file
  std::map<std::string, ConfigPosition> positions;  // of keys, sections and list elements that somebody wrote
  std::map<std::string, std::string> derived;       // keys that Hearth worked out, and from what

  // "configs/a.yaml:3:5", "--set optimizer.lr=1", "tokenizer of shards/train", "default".
  std::string origin(const std::string& key) const;
  bool written(const std::string& key) const { return positions.contains(key); }
};

// Reads, merges, checks every section and the rules across sections that need no world size
// (launch/run_config.h). Throws Error{Config} that lists all problems; Error{Usage} for an override without
// `=`.
LoadedConfig load_experiment(FileSystem& fs, const std::string& path, std::span<const std::string> overrides);

// The same for text in memory; `path` is for messages.
LoadedConfig parse_experiment(FileSystem& fs, const std::string& text, const std::string& path,
                              std::span<const std::string> overrides);

// `--set parallel.key=value` for verbs without an experiment file (eval, import, export, generate): defaults,
// with zero_stage 0, under the overrides. Other sections are refused.
ParallelConfig parse_parallel_overrides(std::span<const std::string> overrides);

// Throws Error{Config} with one line per problem, in the order of the file; does nothing where there is none.
void throw_problems(std::vector<ConfigProblem> problems, const std::string& what);
// What a validate() found, with the positions of `loaded`.
std::vector<ConfigProblem> located(const LoadedConfig& loaded, const ConfigErrors& errors);

// model.init_from: every model key that nobody wrote takes the value of `shape`. A written key that would
// make it another model is Error{Config}; max_position_embeddings and initializer_range may differ.
void adopt_model_shape(LoadedConfig& loaded, const ModelConfig& shape, const std::string& from);
// model.vocab_size 0 becomes `tokenizer_size`; a written one that is smaller is Error{Config}.
void adopt_vocab_size(LoadedConfig& loaded, int64_t tokenizer_size, const std::string& from);

// The resolved file, every key with its origin as a comment. Parsing it gives an equal configuration.
std::string resolved_yaml(const LoadedConfig& loaded);
// {"optimizer.lr": {"value": 0.0003, "origin": "default"}, ...} in the order of the sections, for state.json.
std::string resolved_json(const LoadedConfig& loaded);
// XXH3-128 over all keys and values: equal on all ranks of a job.
std::string experiment_hash(const ExperimentConfig& config);

}  // namespace hearth
