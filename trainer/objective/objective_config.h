// The `objective` section of the experiment file: what the loss is, and what of the model it trains.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/config_visit.h"
#include "data/data_config.h"
#include "trainer/model/lora_adapters.h"
#include "trainer/objective/teacher_config.h"

namespace hearth {

// Fine-tuning of a served model on new data that must not forget the old.
struct IncrementalConfig {
  std::vector<DatasetEntry> replay, old_validation;
  double replay_share = 0.1;
  double max_forgetting = 0.0;
  bool operator==(const IncrementalConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("replay", replay, OnResume::MayChange, "datasets of old data that are mixed into data.train");
    v("replay_share", replay_share, OnResume::MayChange,
      "share of the samples that come from replay, in (0, 1)");
    v("old_validation", old_validation, OnResume::MayChange,
      "held-out old data: its loss is reported beside that of data.validation, and before the first step");
    v("max_forgetting", max_forgetting, OnResume::MayChange,
      "nats per token by which the loss on old_validation may rise over the run; a checkpoint beyond it is "
      "not "
      "exported. 0 = no bound");
  }
  void validate(ConfigErrors& e) const {
    e.require(0 < replay_share && replay_share < 1, "replay_share", "must be in (0, 1), got {}",
              replay_share);
    e.require(std::isfinite(max_forgetting) && max_forgetting >= 0, "max_forgetting",
              "must be finite and >= 0, got {}", max_forgetting);
    e.require(max_forgetting == 0 || !old_validation.empty(), "max_forgetting",
              "needs old_validation: the bound is on the loss there");
    const auto entries = [&](const char* list, const std::vector<DatasetEntry>& all) {
      for (size_t i = 0; i < all.size(); ++i) {
        const ConfigErrors::Scope scope(e, fmt::format("{}[{}]", list, i));
        all[i].validate(e);
      }
    };
    entries("replay", replay);
    entries("old_validation", old_validation);
  }
};

struct ObjectiveConfig {
  std::string kind = "pretrain";

  int64_t lora_rank = 0;
  double lora_alpha = 16;
  double lora_dropout = 0.0;
  bool use_rslora = false;
  std::vector<std::string> lora_target_modules = {"all-linear"};
  std::string quantize_base = "none";

  std::optional<std::string> teacher, teacher_cache;
  int64_t teacher_ranks = 0, teacher_top_k = 0;
  TeacherLayout teacher_parallel;
  double kd_alpha = 0.5;
  double logit_kl_temperature = 1.0;
  std::string kd_divergence = "forward_kl";
  double jsd_beta = 0.5;

  double pref_beta = 0.1;
  std::string pref_loss = "sigmoid";
  double pref_label_smoothing = 0.0;

  IncrementalConfig incremental;

  bool operator==(const ObjectiveConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("kind", kind, OnResume::Frozen,
      "pretrain: mean cross-entropy of the next token over all valid tokens; sft: the same over the trained "
      "tokens of conversations; distill: cross-entropy and the divergence from a teacher; dpo: preference "
      "pairs against a frozen reference, model.init_from");
    v("lora_rank", lora_rank, OnResume::Frozen,
      "rank of low-rank adapters on frozen weights (model.init_from); 0 = all weights are trained");
    v("lora_alpha", lora_alpha, OnResume::Frozen,
      "adapters are scaled by lora_alpha / lora_rank, or / sqrt(lora_rank) with use_rslora");
    v("lora_dropout", lora_dropout, OnResume::MustConfirm,
      "share of the input's elements that adapters do not see in training, in [0, 1); linears that share an "
      "input (q, k, v; gate, up) share the choice, which depends on training.seed and the token's place in "
      "the "
      "sample stream alone");
    v("use_rslora", use_rslora, OnResume::Frozen, "rank-stabilised scale of the adapters");
    v("lora_target_modules", lora_target_modules, OnResume::Frozen,
      "all-linear, or of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj");
    v("quantize_base", quantize_base, OnResume::Frozen,
      "none, or nf4 (QLoRA): the frozen linears of the layers below adapters are kept in 4-bit NormalFloat "
      "with doubly quantised scales, 4.13 bits a weight, as bitsandbytes makes them; adapters are merged "
      "into "
      "the unquantised weights");
    v("teacher", teacher, OnResume::MustConfirm,
      "distill: checkpoint, run folder or HF directory of the teacher; the student's tokenizer");
    v("teacher_cache", teacher_cache, OnResume::MustConfirm,
      "distill: folder that `hearth distill cache` wrote of the training data, instead of a teacher");
    v("teacher_ranks", teacher_ranks, OnResume::MayChange,
      "distill: the last ranks of the job, which serve the teacher and train nothing; 0 = the teacher lies "
      "on "
      "the ranks that train");
    v("teacher_parallel", teacher_parallel, OnResume::MayChange, "layout of the teacher over teacher_ranks");
    v("teacher_top_k", teacher_top_k, OnResume::MustConfirm,
      "distill, with teacher_ranks: log-probabilities that the teacher sends of a token (8 bytes each), with "
      "the "
      "mass of the rest; the vocabulary size makes the divergence exact");
    v("kd_alpha", kd_alpha, OnResume::MustConfirm,
      "distill: loss = (1 - kd_alpha) x cross-entropy + kd_alpha x temperature^2 x divergence");
    v("logit_kl_temperature", logit_kl_temperature, OnResume::MustConfirm,
      "distill: divides the logits of both");
    v("kd_divergence", kd_divergence, OnResume::MustConfirm, "distill: forward_kl, reverse_kl or jsd");
    v("jsd_beta", jsd_beta, OnResume::MustConfirm,
      "distill: weight of the teacher in the mixture of jsd, in (0, 1)");
    v("pref_beta", pref_beta, OnResume::MustConfirm, "dpo: strength of the tie to the reference");
    v("pref_loss", pref_loss, OnResume::MustConfirm, "dpo: sigmoid, hinge or ipo");
    v("pref_label_smoothing", pref_label_smoothing, OnResume::MustConfirm,
      "dpo, sigmoid: share of pairs assumed to be labelled the wrong way round, in [0, 0.5)");
    v("incremental", incremental, OnResume::MayChange, "new data without forgetting the old");
  }
  LoraShape lora() const { return {lora_rank, lora_alpha, use_rslora, lora_target_modules}; }
  void validate(ConfigErrors& e) const {
    e.one_of(kind, "kind", {"pretrain", "sft", "distill", "dpo"});
    e.require(lora_rank >= 0, "lora_rank", "must be >= 0, got {}", lora_rank);
    e.require(std::isfinite(lora_alpha) && lora_alpha > 0, "lora_alpha", "must be finite and > 0, got {}",
              lora_alpha);
    e.require(0 <= lora_dropout && lora_dropout < 1, "lora_dropout", "must be in [0, 1), got {}",
              lora_dropout);
    e.require(lora_dropout == 0 || lora_rank > 0, "lora_dropout", "needs adapters: lora_rank is 0");
    e.require(!lora_target_modules.empty(), "lora_target_modules", "must name at least one module");
    for (size_t i = 0; i < lora_target_modules.size(); ++i) {
      std::vector<std::string_view> known{"all-linear"};
      known.insert(known.end(), lora_modules().begin(), lora_modules().end());
      e.one_of(lora_target_modules[i], fmt::format("lora_target_modules[{}]", i), known);
    }
    e.one_of(quantize_base, "quantize_base", {"none", "nf4"});
    e.require(quantize_base == "none" || lora_rank > 0, "quantize_base",
              "needs adapters to train: set lora_rank, or quantize_base none");
    const int teachers = (teacher ? 1 : 0) + (teacher_cache ? 1 : 0);
    e.require(teachers == (kind == "distill" ? 1 : 0), "teacher", "{}",
              kind == "distill"
                  ? "or teacher_cache is required for objective.kind distill, and only one of them"
                  : "and teacher_cache are for objective.kind distill alone");
    e.require(!teacher_cache || kd_divergence == "forward_kl", "kd_divergence",
              "must be forward_kl with teacher_cache: of a kept teacher nothing else is known");
    e.require(teacher_ranks >= 0, "teacher_ranks", "must be >= 0, got {}", teacher_ranks);
    e.require(teacher_ranks <= 0 || teacher, "teacher_ranks", "serve objective.teacher, which is not given");
    e.require(teacher_ranks <= 0 || kd_divergence == "forward_kl", "kd_divergence",
              "must be forward_kl with teacher_ranks: of the teacher only what it sends is known");
    e.require(
        teacher_ranks > 0 ? teacher_top_k >= 1 : teacher_top_k == 0, "teacher_top_k",
        "must be >= 1 with teacher_ranks (64 is usual, the vocabulary size is exact) and 0 without, got {}",
        teacher_top_k);
    e.require(0 <= kd_alpha && kd_alpha <= 1, "kd_alpha", "must be in [0, 1], got {}", kd_alpha);
    e.require(std::isfinite(logit_kl_temperature) && logit_kl_temperature > 0, "logit_kl_temperature",
              "must be finite and > 0, got {}", logit_kl_temperature);
    e.one_of(kd_divergence, "kd_divergence", {"forward_kl", "reverse_kl", "jsd"});
    e.require(0 < jsd_beta && jsd_beta < 1, "jsd_beta", "must be in (0, 1), got {}", jsd_beta);
    e.require(std::isfinite(pref_beta) && pref_beta > 0, "pref_beta", "must be finite and > 0, got {}",
              pref_beta);
    e.one_of(pref_loss, "pref_loss", {"sigmoid", "hinge", "ipo"});
    e.require(0 <= pref_label_smoothing && pref_label_smoothing < 0.5, "pref_label_smoothing",
              "must be in [0, 0.5), got {}", pref_label_smoothing);
    e.require(teacher_ranks > 0 || teacher_parallel == TeacherLayout{}, "teacher_parallel",
              "lays out teacher_ranks, which is 0: set it, or leave this out");
    {
      const ConfigErrors::Scope scope(e, "teacher_parallel");
      teacher_parallel.validate(e);
    }
    const ConfigErrors::Scope scope(e, "incremental");
    incremental.validate(e);
  }
};

}  // namespace hearth
