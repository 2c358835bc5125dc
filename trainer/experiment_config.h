// The whole experiment file as one value. Sections live with their components; rules across sections live in
// launch/run_config.cpp. No torch, no YAML: launch/config_parser.h fills it.
#pragma once

#include <optional>
#include <string>

#include "base/config_visit.h"
#include "data/data_config.h"
#include "parallel/parallel_config.h"
#include "trainer/checkpoint/checkpoint_config.h"
#include "trainer/model/model_config.h"
#include "trainer/objective/objective_config.h"
#include "trainer/optimizer/optimizer_config.h"
#include "trainer/precision_config.h"
#include "trainer/profile_config.h"
#include "trainer/recompute_config.h"
#include "trainer/training_config.h"

namespace hearth {

// `model`: a shape, either inline or from a preset file whose keys are defaults under the inline ones.
struct ModelSection : ModelConfig {
  std::optional<std::string> preset;
  std::optional<std::string> init_from;
  bool operator==(const ModelSection&) const = default;
  template <class V>
  void visit(V&& v) {
    v("preset", preset, OnResume::MayChange,
      "file of model keys (configs/models/*.yaml); keys beside it win");
    v("init_from", init_from, OnResume::MayChange,
      "start at step 0 from the weights of this checkpoint, run folder or HF directory; null = random");
    ModelConfig::visit(v);
  }
  // No size is given and init_from is: the shape comes from there, which launch fills in.
  bool shape_is_open() const {
    return init_from && hidden_size == 0 && intermediate_size == 0 && num_hidden_layers == 0 &&
           num_attention_heads == 0;
  }
  // vocab_size 0 passes: it means the size of the tokenizer of data.train, which launch fills in.
  void validate(ConfigErrors& e) const {
    ModelConfig shape = *this;
    e.require(vocab_size >= 0, "vocab_size", "must be >= 0 (0 = the tokenizer's size), got {}", vocab_size);
    if (vocab_size <= 0) shape.vocab_size = 1;  // named above already, or to be filled in
    if (!shape_is_open()) shape.validate(e);
    e.require(!init_from || !init_from->empty(), "init_from", "must name a model or be null");
  }
};

struct ExperimentConfig {
  ModelSection model;
  DataConfig data;
  TrainingConfig training;
  OptimizerConfig optimizer;
  ParallelConfig parallel;
  PrecisionConfig precision;
  RecomputeConfig recompute;
  CheckpointConfig checkpoint;
  ObjectiveConfig objective;
  ProfileConfig profile;
  bool operator==(const ExperimentConfig&) const = default;

  template <class V>
  void visit(V&& v) {
    v("model", model, OnResume::Frozen, "shape of the transformer");
    v("data", data, OnResume::MayChange, "token datasets");
    v("training", training, OnResume::MayChange, "length, batches, intervals");
    v("optimizer", optimizer, OnResume::MustConfirm, "AdamW and the learning-rate schedule");
    v("parallel", parallel, OnResume::MayChange, "layout over the ranks");
    v("precision", precision, OnResume::MustConfirm, "number formats");
    v("recompute", recompute, OnResume::MayChange, "activations rebuilt in backward");
    v("checkpoint", checkpoint, OnResume::MayChange, "run folder and checkpoints");
    v("objective", objective, OnResume::Frozen, "the loss");
    v("profile", profile, OnResume::MayChange, "a trace of a few steps");
  }
  // Every section's own rules.
  void validate(ConfigErrors& e) const {
    const auto section = [&](std::string_view section_name, const auto& config) {
      const ConfigErrors::Scope scope(e, section_name);
      config.validate(e);
    };
    section("model", model);
    section("data", data);
    section("training", training);
    section("optimizer", optimizer);
    section("parallel", parallel);
    section("precision", precision);
    section("recompute", recompute);
    section("checkpoint", checkpoint);
    section("objective", objective);
    section("profile", profile);
  }
};

}  // namespace hearth
