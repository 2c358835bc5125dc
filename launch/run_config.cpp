#include "launch/run_config.h"

#include "base/error.h"
#include "parallel/context/context_split.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/stage_split.h"
#include "trainer/model/nf4_slices.h"

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
      !asked || !c.data.validation.empty() || !c.objective.incremental.old_validation.empty(),
      "training.eval_interval",
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

void objective_has_its_models(const LoadedConfig& loaded, ConfigErrors& e) {
  const ExperimentConfig& c = loaded.config;
  e.require(c.objective.lora_rank == 0 || c.model.init_from, "objective.lora_rank",
            "adapters need the weights that they are on: set model.init_from");
  e.require(c.objective.kind != "dpo" || c.model.init_from, "objective.kind",
            "dpo needs the reference that the policy starts from: set model.init_from");
  e.require(c.objective.incremental.max_forgetting == 0 || c.training.eval_interval > 0,
            "training.eval_interval",
            "must be > 0 with objective.incremental.max_forgetting: the bound is judged at an evaluation");
  e.require(c.objective.kind != "dpo" || c.data.reset_attention_mask, "data.reset_attention_mask",
            "must be true for dpo: the answers of a pair must not see each other");
}

void save_and_load_differ(const LoadedConfig& loaded, ConfigErrors& e) {
  const CheckpointConfig& c = loaded.config.checkpoint;
  e.require(!c.load || *c.load != c.save, "checkpoint.load",
            "is the run folder itself, '{}'; leave it out: a run resumes its own folder by default", c.save);
}

// Rules of a layout: what the mesh asks of the model, the batch and the sequence.
struct Layout {
  const ExperimentConfig& config;
  Mesh mesh;
  int64_t size(MeshAxis axis) const { return mesh.size(axis); }
  // Micro-batches per step and data-parallel rank; 0 where the batch does not divide, which has its own rule.
  int64_t micro_batches() const {
    const int64_t together =
        checked_mul(config.training.micro_batch_size, size(MeshAxis::Dp) * size(MeshAxis::Ep));
    return config.training.global_batch_size % together == 0 ? config.training.global_batch_size / together
                                                             : 0;
  }
  int chunks() const {
    const int implied = implied_chunks(schedule_kind_from_config(config.parallel.pipeline_schedule));
    return implied > 0 ? implied : checked_cast<int>(config.parallel.virtual_pipeline_model_parallel_size);
  }
};

// A component's own check, which says what is allowed, as an entry of the list.
template <class Check>
void report(ConfigErrors& e, std::string_view key, const Check& check) {
  try {
    check();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::Config) throw;
    e.add(key, error.message());
  }
}

// The ranks that train. Here every factor is printed, as where no rank is set apart.
Mesh mesh_without_teacher(const ExperimentConfig& c, int world_size) {
  const int64_t serving = c.objective.teacher_ranks;
  if (serving == 0) return Mesh::from_config(c.parallel, world_size);
  HEARTH_CHECK(
      serving < world_size, Config,
      "objective.teacher_ranks is {}, and the job has {} ranks: none is left to train; start more ranks",
      serving, world_size);
  try {
    return Mesh::from_config(c.parallel, world_size - checked_cast<int>(serving));
  } catch (const Error& error) {
    fail(error.kind(), "of {} ranks objective.teacher_ranks = {} serve the teacher; for the others: {}",
         world_size, serving, error.message());
  }
}

void teacher_ranks_divide(const Layout& l, ConfigErrors& e) {
  const ObjectiveConfig& o = l.config.objective;
  const TeacherLayout& t = o.teacher_parallel;
  const std::string factors = fmt::format(
      "objective.teacher_parallel.tensor_model_parallel_size {} x pipeline_model_parallel_size {}",
      t.tensor_model_parallel_size, t.pipeline_model_parallel_size);
  e.require(o.teacher_ranks % t.ranks() == 0, "objective.teacher_ranks",
            "must be a multiple of {} = {}, got {}", factors, t.ranks(), o.teacher_ranks);
  const int64_t replicas = o.teacher_ranks / t.ranks();
  e.require(replicas <= l.size(MeshAxis::Dp), "objective.teacher_ranks",
            "{} / ({}) are {} teachers for a data-parallel size of {} ({}): some would have nobody to answer",
            o.teacher_ranks, factors, replicas, l.size(MeshAxis::Dp), l.mesh.describe());
}

void batch_divides_over_ranks(const Layout& l, ConfigErrors& e) {
  const TrainingConfig& t = l.config.training;
  const int64_t replicas = l.size(MeshAxis::Dp) * l.size(MeshAxis::Ep);
  e.require(l.micro_batches() > 0, "training.global_batch_size",
            "must be a multiple of micro_batch_size {} x data-parallel size {} = {}, got {} ({})",
            t.micro_batch_size, replicas, t.micro_batch_size * replicas, t.global_batch_size,
            l.mesh.describe());
}

void copies_divide_the_data_ranks(const Layout& l, ConfigErrors& e) {
  const int64_t ranks = l.size(MeshAxis::Dp) * l.size(MeshAxis::Cp);
  const int64_t copies = l.config.parallel.num_distributed_optimizer_instances;
  e.require(copies > 0 && ranks % copies == 0, "parallel.num_distributed_optimizer_instances",
            "must divide the data x context parallel ranks, {} x {} = {}, got {} ({})", l.size(MeshAxis::Dp),
            l.size(MeshAxis::Cp), ranks, copies, l.mesh.describe());
}

void model_divides_over_tensor_ranks(const Layout& l, ConfigErrors& e) {
  check_tensor_parallel(l.config.model, l.size(MeshAxis::Tp), e);
}

void slices_hold_whole_nf4_blocks(const Layout& l, ConfigErrors& e) {
  ConfigErrors others;  // of a size that the model does not take at all: a rule of its own
  check_tensor_parallel(l.config.model, l.size(MeshAxis::Tp), others);
  if (l.config.objective.quantize_base == "nf4" && others.empty())
    check_nf4_slices(l.config.model, l.size(MeshAxis::Tp), e);
}

void sequence_divides_over_context_ranks(const Layout& l, ConfigErrors& e) {
  const int64_t chunks = context_chunks(l.size(MeshAxis::Cp));
  e.require(l.config.data.seq_length % chunks == 0, "data.seq_length",
            "must be a multiple of {}, as parallel.context_parallel_size = {} cuts each sequence into two "
            "chunks a rank, "
            "got {}",
            chunks, l.size(MeshAxis::Cp), l.config.data.seq_length);
}

void rows_divide_for_sequence_parallel(const Layout& l, ConfigErrors& e) {
  const int64_t tp = l.size(MeshAxis::Tp), cp = l.size(MeshAxis::Cp), sequence = l.config.data.seq_length;
  if (tp == 1 || !l.config.parallel.sequence_parallel || sequence % context_chunks(cp) != 0) return;
  const int64_t rows = checked_mul(l.config.training.micro_batch_size, sequence) / cp;
  e.require(rows % tp == 0, "parallel.sequence_parallel",
            "{} rows (micro_batch_size {} x seq_length {} / context_parallel_size {}) do not divide over "
            "tensor_model_parallel_size = {}; change one of them, or set sequence_parallel: false",
            rows, l.config.training.micro_batch_size, sequence, cp, tp);
}

void heads_divide_for_all_to_all(const Layout& l, ConfigErrors& e) {
  const int64_t cp = l.size(MeshAxis::Cp);
  ConfigErrors of_tensor;
  model_divides_over_tensor_ranks(l, of_tensor);
  if (cp == 1 || l.config.parallel.cp_comm_type != "a2a" || !of_tensor.empty()) return;
  const LocalHeads heads = local_heads(l.config.model, l.size(MeshAxis::Tp), 0);
  e.require(all_to_all_fits(heads.query, heads.kv, cp), "parallel.cp_comm_type",
            "a2a shares a rank's {} heads and {} key/value heads (of tensor_model_parallel_size = {}) among "
            "context_parallel_size = {} ranks, which must divide both; use p2p, which takes any number",
            heads.query, heads.kv, l.size(MeshAxis::Tp), cp);
}

void schedule_takes_the_micro_batches(const Layout& l, ConfigErrors& e) {
  if (l.micro_batches() == 0) return;
  report(e, "parallel.pipeline_schedule", [&] {
    make_schedule(schedule_kind_from_config(l.config.parallel.pipeline_schedule), l.mesh.size(MeshAxis::Pp),
                  l.chunks(), checked_cast<int>(l.micro_batches()));
  });
}

void layers_fill_the_stages(const Layout& l, ConfigErrors& e) {
  const auto layers = checked_cast<int>(l.config.model.num_hidden_layers);
  const int stages = l.mesh.size(MeshAxis::Pp) * l.chunks();
  const auto& written = l.config.parallel.pipeline_model_parallel_layout;
  if (written.empty()) {
    report(e, "parallel.pipeline_model_parallel_size", [&] { split_layers(layers, stages, {}); });
    return;
  }
  report(e, "parallel.pipeline_model_parallel_layout", [&] {
    std::vector<int> split;
    for (const int64_t count : written) split.push_back(checked_cast<int>(count));
    check_split(split, layers, stages);
  });
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
  objective_has_its_models(loaded, errors);
  save_and_load_differ(loaded, errors);
}

Mesh require_layout(const LoadedConfig& loaded, int world_size) {
  const Layout layout{loaded.config, mesh_without_teacher(loaded.config, world_size)};
  ConfigErrors errors;
  teacher_ranks_divide(layout, errors);
  batch_divides_over_ranks(layout, errors);
  copies_divide_the_data_ranks(layout, errors);
  sequence_divides_over_context_ranks(layout, errors);
  rows_divide_for_sequence_parallel(layout, errors);
  schedule_takes_the_micro_batches(layout, errors);
  if (!loaded.config.model.shape_is_open()) {
    model_divides_over_tensor_ranks(layout, errors);
    slices_hold_whole_nf4_blocks(layout, errors);
    heads_divide_for_all_to_all(layout, errors);
    layers_fill_the_stages(layout, errors);
  }
  throw_problems(located(loaded, errors), loaded.path);
  return layout.mesh;
}

}  // namespace hearth
