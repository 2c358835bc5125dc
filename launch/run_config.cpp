#include "launch/run_config.h"

#include "base/error.h"

namespace hearth {
namespace {

// Families whose config.json has one attention_bias for q, k, v and o; for the others it is fixed by the
// architecture.
bool has_bias_switch(const std::string& family) {
  return family == "llama" || family == "smollm" || family == "qwen3";
}

// A model that transformers cannot express could be trained but never handed over.
void family_computes_these_switches(const LoadedConfig& loaded, ConfigErrors& e) {
  const ModelSection& m = loaded.config.model;
  const bool wants_norm = m.family == "qwen3";
  e.require(m.qk_norm == wants_norm, "model.qk_norm", "must be {} for family {}", wants_norm, m.family);
  if (has_bias_switch(m.family)) {
    e.require(m.attention_output_bias == m.attention_bias, "model.attention_output_bias",
              "must equal attention_bias = {} for family {}, which has one switch for both", m.attention_bias,
              m.family);
    return;
  }
  const bool wants_bias = m.family == "qwen2";
  e.require(m.attention_bias == wants_bias, "model.attention_bias", "must be {} for family {}", wants_bias,
            m.family);
  e.require(!m.attention_output_bias, "model.attention_output_bias", "must be false for family {}", m.family);
}

void sequence_fits_positions(const LoadedConfig& loaded, ConfigErrors& e) {
  const ExperimentConfig& c = loaded.config;
  if (c.model.shape_is_open()) return;  // known, and asked again, once init_from was read
  e.require(c.data.seq_length <= c.model.max_position_embeddings, "data.seq_length",
            "must be <= model.max_position_embeddings = {}, got {}", c.model.max_position_embeddings,
            c.data.seq_length);
}

void evaluation_has_data(const LoadedConfig& loaded, ConfigErrors& e) {
  const ExperimentConfig& c = loaded.config;
  // The default interval asks for nothing; a written one that would come due does.
  const bool asked = loaded.written("training.eval_interval") && c.training.eval_interval > 0 &&
                     c.training.eval_interval <= c.training.train_iters;
  e.require(
      !asked || !c.data.validation.empty(), "training.eval_interval",
      "asks for an evaluation every {} steps, but data.validation is empty; add datasets there or set 0",
      c.training.eval_interval);
}

void batch_is_whole_micro_batches(const LoadedConfig& loaded, ConfigErrors& e) {
  const TrainingConfig& t = loaded.config.training;
  e.require(t.micro_batch_size <= 0 || t.global_batch_size % t.micro_batch_size == 0,
            "training.global_batch_size", "must be a multiple of micro_batch_size = {}, got {}",
            t.micro_batch_size, t.global_batch_size);
}

void decay_goes_down(const LoadedConfig& loaded, ConfigErrors& e) {
  const OptimizerConfig& o = loaded.config.optimizer;
  e.require(o.min_lr <= o.lr || !(o.lr > 0), "optimizer.min_lr", "must be <= lr = {}, got {}", o.lr,
            o.min_lr);
}

void wsd_decays_within_horizon(const LoadedConfig& loaded, ConfigErrors& e) {
  const OptimizerConfig& o = loaded.config.optimizer;
  if (o.lr_decay_style != "wsd") {
    e.require(o.lr_wsd_decay_iters == 0, "optimizer.lr_wsd_decay_iters",
              "has a meaning for lr_decay_style wsd only");
    return;
  }
  const int64_t horizon = o.decay_horizon(loaded.config.training.train_iters);
  e.require(o.lr_wsd_decay_iters > 0, "optimizer.lr_wsd_decay_iters", "must be > 0 for lr_decay_style wsd");
  e.require(o.lr_wsd_decay_iters <= horizon || horizon <= 0, "optimizer.lr_wsd_decay_iters",
            "must be <= the schedule's {} steps, got {}", horizon, o.lr_wsd_decay_iters);
}

void one_way_to_begin(const LoadedConfig& loaded, ConfigErrors& e) {
  const ExperimentConfig& c = loaded.config;
  e.require(!c.model.init_from || !c.checkpoint.load, "checkpoint.load",
            "continues a run, but model.init_from starts one from weights: give one of them");
}

void save_and_load_differ(const LoadedConfig& loaded, ConfigErrors& e) {
  const CheckpointConfig& c = loaded.config.checkpoint;
  e.require(!c.load || *c.load != c.save, "checkpoint.load",
            "is the run folder itself, '{}'; leave it out: a run resumes its own folder by default", c.save);
}

}  // namespace

void validate_run(const LoadedConfig& loaded, ConfigErrors& errors) {
  family_computes_these_switches(loaded, errors);
  sequence_fits_positions(loaded, errors);
  evaluation_has_data(loaded, errors);
  batch_is_whole_micro_batches(loaded, errors);
  decay_goes_down(loaded, errors);
  wsd_decays_within_horizon(loaded, errors);
  one_way_to_begin(loaded, errors);
  save_and_load_differ(loaded, errors);
}

Mesh require_layout(const LoadedConfig& loaded, int world_size) {
  const Mesh mesh = Mesh::from_config(loaded.config.parallel, world_size);
  const TrainingConfig& t = loaded.config.training;
  const int64_t replicas = int64_t{mesh.size(MeshAxis::Dp)} * mesh.size(MeshAxis::Ep);
  ConfigErrors errors;
  errors.require(
      t.global_batch_size % checked_mul(t.micro_batch_size, replicas) == 0, "training.global_batch_size",
      "must be a multiple of micro_batch_size {} x data-parallel size {} = {}, got {} ({})",
      t.micro_batch_size, replicas, t.micro_batch_size * replicas, t.global_batch_size, mesh.describe());
  throw_problems(located(loaded, errors), loaded.path);
  return mesh;
}

}  // namespace hearth
