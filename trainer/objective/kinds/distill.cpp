// Knowledge distillation (Hinton et al. 2015). From a teacher on the same ranks: full-vocabulary divergence
// in chunks of rows; of the teacher a micro-batch keeps the rows behind its final norm, and its logits exist
// for one chunk, beside the student's of the same chunk. From a cache, or from a teacher on ranks of its own:
// the divergence over what is kept of the teacher. Vocabularies may differ in padding: only ids of the
// tokenizer count.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "kernels/distillation_op.h"
#include "parallel/tensor/upload.h"
#include "trainer/objective/objective.h"
#include "trainer/objective/teacher_service.h"

namespace hearth {
namespace {

kernels::DistillationLoss loss_of(const ObjectiveConfig& config) {
  using Kind = kernels::DivergenceKind;
  return {.divergence = config.kd_divergence == "forward_kl"   ? Kind::ForwardKl
                        : config.kd_divergence == "reverse_kl" ? Kind::ReverseKl
                                                               : Kind::Jsd,
          .beta = config.jsd_beta,
          .temperature = config.logit_kl_temperature,
          .kd_alpha = config.kd_alpha};
}

class Distill : public Objective {
 public:
  explicit Distill(const ObjectiveInputs& in)
      : loss_(loss_of(in.config.objective)),
        groups_(in.groups),
        cache_(in.teacher_cache),
        client_(in.teacher_client) {
    if (cache_ != nullptr) {
      teacher_vocab_ = cache_->info().vocab_size;
      HEARTH_CHECK(cache_->info().temperature == loss_.temperature, Config,
                   "objective.logit_kl_temperature is {}, but the cache was made at {}: make it anew, or "
                   "train at that "
                   "temperature",
                   loss_.temperature, cache_->info().temperature);
      return;
    }
    const ModelBundle& teacher = *in.teacher;
    teacher_vocab_ = shared_vocabulary(teacher, in.config.model.vocab_size);
    if (client_ != nullptr) return;
    // The teacher's table is cut as the student's is, so that both have the same columns on every rank.
    ModelConfig shape = teacher.config;
    shape.vocab_size = in.config.model.vocab_size;
    const ResizedVocabulary tensors(*teacher.tensors, teacher.config, shape.vocab_size);
    teacher_ = std::make_unique<FrozenModel>(shape, tensors, in.config, in.groups, in.device, in.memory);
  }

  std::vector<std::string> metrics() const override { return {"ce loss", "kd loss"}; }
  bool consults() const override { return teacher_ != nullptr; }
  void consult(MicroBatch& batch) override { batch.frozen = teacher_->hidden(batch.input); }
  void describe(const std::vector<Sample>& samples, MicroBatch& batch) override {
    if (client_ != nullptr) batch.kept = client_->ask(samples);
    if (cache_ != nullptr)
      batch.kept = [kept = kept_rows(samples, batch.targets_N.device())] { return kept; };
  }
  int64_t reads_ahead() const override { return client_ != nullptr ? 1 : 0; }

  LossResult loss(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) override {
    return linear_head_loss(hidden_nD, head.head(), num_sums(), chunk_loss(head, batch));
  }

  at::Tensor evaluate(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) override {
    const at::Tensor hidden = head.context().rows.gather(hidden_nD, "tp.head.x").wait();
    const auto loss = chunk_loss(head, batch);
    at::Tensor sums;
    const int64_t chunk =
        rows_per_logits_chunk(hidden.size(0), head.head().linear.weight.size(0), hidden.element_size());
    head.context().before_forward(head.head().unit);
    for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
      at::Tensor logits = head.head_rows(hidden.narrow(0, begin, std::min(chunk, hidden.size(0) - begin)));
      const at::Tensor part = loss(logits, begin).to(at::kDouble);
      sums = sums.defined() ? sums.add(part) : part;
    }
    head.context().after_forward(head.head().unit);
    return sums;
  }

 private:
  ChunkLoss chunk_loss(Transformer& head, const MicroBatch& batch) {
    const VocabWeights& table = head.head();
    const kernels::DistillationShare share{
        .first_id = table.first_id,
        .valid = table.count,
        .common = std::clamp<int64_t>(teacher_vocab_ - table.first_id, 0, table.count)};
    const RowCollectives& rows = table.context->rows;
    const kernels::GatherStatistics gather = [&rows](const at::Tensor& values) {
      return rows.size() == 1 ? values.unsqueeze(0) : rows.gather_all(values, "tp.kd");
    };
    const at::Tensor targets_N = batch.targets_N;
    if (batch.kept)
      return [this, share, gather, targets_N, kept = batch.kept()](at::Tensor& logits, int64_t first) {
        const at::NoGradGuard no_grad;
        const auto part = [&](const at::Tensor& all) { return all.narrow(0, first, logits.size(0)); };
        return sums_of(kernels::kept_distillation_op(
            logits, {part(kept.ids_NK), part(kept.logprobs_NK), part(kept.tail_mass_N)}, part(targets_N),
            share, loss_, gather));
      };
    Transformer& teacher = teacher_->head_chunk();
    const at::Tensor teacher_ND = teacher.context().rows.gather(batch.frozen, "tp.teacher.x").wait();
    return [this, share, gather, &teacher, teacher_ND, targets_N, here = teacher_->hold_head()](
               at::Tensor& logits, int64_t first) {
      const at::NoGradGuard no_grad;
      const int64_t count = logits.size(0);
      const at::Tensor theirs = teacher.head_rows(teacher_ND.narrow(0, first, count));
      return sums_of(
          kernels::distillation_op(logits, theirs, targets_N.narrow(0, first, count), share, loss_, gather));
    };
  }

  at::Tensor sums_of(const kernels::DistillationResult& result) const {
    const double alpha = loss_.kd_alpha, t_squared = loss_.temperature * loss_.temperature;
    const at::Tensor ce = result.cross_entropy_N.sum(), kd = result.divergence_N.sum();
    return at::stack({ce.mul(1.0 - alpha).add(kd, alpha * t_squared), ce, kd});
  }

  // This rank's positions of the samples. What the cache does not have (held-out data; a run's training data
  // was asked for at its start) has no opinion: all kept probabilities are 0, and so is the divergence.
  kernels::KeptTeacher kept_rows(const std::vector<Sample>& samples, at::Device device) const {
    const auto sequence = static_cast<int64_t>(samples[0].loss_mask.size()), k = cache_->info().top_k;
    const int64_t size = groups_.context ? groups_.context->size() : 1;
    const auto positions = context_positions(sequence, size, groups_.coordinate(MeshAxis::Cp));
    TeacherRows all;
    all.resize(static_cast<int64_t>(samples.size() * positions.size()), k);
    std::fill(all.logprobs.begin(), all.logprobs.end(), -std::numeric_limits<float>::infinity());
    int64_t row = 0;
    for (const Sample& sample : samples) {
      const int64_t there =
          std::clamp<int64_t>(cache_->num_tokens(sample.shard_digest) - sample.first_token, 0, sequence);
      const TeacherRows rows =
          there > 0 ? cache_->read(sample.shard_digest, sample.first_token, there) : TeacherRows{};
      for (const int64_t position : positions) {
        if (position < there) {
          std::copy_n(rows.ids.begin() + position * k, k, all.ids.begin() + row * k);
          std::copy_n(rows.logprobs.begin() + position * k, k, all.logprobs.begin() + row * k);
          all.tail_mass[static_cast<size_t>(row)] = rows.tail_mass[static_cast<size_t>(position)];
        }
        ++row;
      }
    }
    return {upload(all.ids, device).to(at::kLong).view({-1, k}), upload(all.logprobs, device).view({-1, k}),
            upload(all.tail_mass, device)};
  }

  kernels::DistillationLoss loss_;
  ParallelGroups& groups_;
  const TeacherCache* cache_;
  TeacherClient* client_;
  int64_t teacher_vocab_ = 0;
  std::unique_ptr<FrozenModel> teacher_;  // null with a cache, and where it has ranks of its own
};

}  // namespace

extern const ObjectiveKind kObjective_distill;
const ObjectiveKind kObjective_distill{
    "distill", [](const ObjectiveInputs& in) -> std::unique_ptr<Objective> {
      HEARTH_REQUIRE(in.teacher != nullptr || in.teacher_cache != nullptr, "distillation without a teacher");
      return std::make_unique<Distill>(in);
    }};

}  // namespace hearth
