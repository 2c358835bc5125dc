// Knowledge distillation (Hinton et al. 2015). From a teacher on the same ranks: full-vocabulary divergence
// in chunks of rows; of the teacher a micro-batch keeps the rows behind its final norm, and its logits exist
// for one chunk, beside the student's of the same chunk. From a cache, or from a teacher on ranks of its own:
// the divergence over what is kept of the teacher. Vocabularies may differ in padding: only ids of the
// tokenizer count. On targets that the student wrote (on_policy.h) only the divergence counts.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>

#include "base/error.h"
#include "kernels/cross_entropy_op.h"
#include "kernels/distillation_op.h"
#include "parallel/tensor/upload.h"
#include "trainer/objective/intermediate_states.h"
#include "trainer/objective/objective.h"
#include "trainer/objective/on_policy.h"
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
    if (in.config.objective.on_policy_share > 0)
      writer_ = std::make_unique<OnPolicyWriter>(
          in.config, in.groups, teacher_vocab_,
          std::vector<int32_t>(teacher.ids.eos.begin(), teacher.ids.eos.end()));
    if (client_ != nullptr) return;
    // The teacher's table is cut as the student's is, so that both have the same columns on every rank.
    ModelConfig shape = teacher.config;
    shape.vocab_size = in.config.model.vocab_size;
    const ResizedVocabulary tensors(*teacher.tensors, teacher.config, shape.vocab_size);
    teacher_ = std::make_unique<FrozenModel>(shape, tensors, in.config, in.groups, in.device, in.memory);
    if (!in.config.objective.intermediate.empty())
      states_.emplace(in.config, shape, in.groups, *teacher_, in.device);
  }

  std::vector<std::string> metrics() const override {
    std::vector<std::string> names{"ce loss", "kd loss"};
    if (writer_) names.insert(names.end(), {"on-policy share", "on-policy length"});
    if (states_) names.push_back("intermediate loss");
    return names;
  }
  // Cross-entropy per token of the data, divergence per token; the share of tokens that the student wrote,
  // and how many it wrote per document.
  std::vector<double> reported(const std::vector<double>& sums, double count) const override {
    std::vector<double> values = Objective::reported(sums, count);
    if (!writer_) return values;
    const double written = sums[2], texts = sums[3];
    values[0] = sums[0] / std::max(count - written, 1.0);
    values[3] = written / std::max(texts, 1.0);
    return values;
  }
  bool rewrites() const override { return writer_ != nullptr; }
  void rewrite(std::vector<Sample>& samples, InferenceModel& model) override {
    writer_->rewrite(samples, model);
  }
  bool consults() const override { return teacher_ != nullptr; }
  void consult(MicroBatch& batch) override {
    batch.frozen = teacher_->hidden(batch.input);
    if (states_) states_->complete(batch);
  }
  at::Tensor take_own_sums() override {
    if (!states_) return {};
    const at::Tensor sum = states_->take_sum();
    at::Tensor sums = at::zeros({num_sums()}, sum.options());
    for (const int64_t place : {int64_t{0}, num_sums() - 1}) sums.narrow(0, place, 1).copy_(sum);
    return sums;
  }
  void describe(const std::vector<Sample>& samples, MicroBatch& batch) override {
    if (client_ != nullptr) batch.kept = client_->ask(samples);
    if (cache_ != nullptr)
      batch.kept = [kept = kept_rows(samples, batch.targets_N.device())] { return kept; };
    if (!writer_) return;
    for (const Sample& sample : samples) {
      batch.on_policy.push_back(sample.on_policy);
      // One rank speaks for those that share a sequence.
      if (sample.on_policy && groups_.coordinate(MeshAxis::Cp) == 0)
        batch.num_documents += static_cast<int64_t>(answers_of(sample).size());
    }
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
  // The loss of rows [begin, begin + logits.size(0)) of a micro-batch; overwrites their logits by the
  // gradient.
  using RowsLoss = std::function<kernels::DistillationResult(at::Tensor& logits, int64_t begin,
                                                             const kernels::DistillationLoss& loss)>;
  RowsLoss rows_loss(Transformer& head, const MicroBatch& batch) {
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
      return [share, gather, targets_N, kept = batch.kept()](at::Tensor& logits, int64_t begin,
                                                             const kernels::DistillationLoss& loss) {
        const auto part = [&](const at::Tensor& all) { return all.narrow(0, begin, logits.size(0)); };
        return kernels::kept_distillation_op(
            logits, {part(kept.ids_NK), part(kept.logprobs_NK), part(kept.tail_mass_N)}, part(targets_N),
            share, loss, gather);
      };
    Transformer& teacher = teacher_->head_chunk();
    const at::Tensor teacher_ND = teacher.context().rows.gather(batch.frozen, "tp.teacher.x").wait();
    return [share, gather, &teacher, teacher_ND, targets_N, here = teacher_->hold_head()](
               at::Tensor& logits, int64_t begin, const kernels::DistillationLoss& loss) {
      const int64_t count = logits.size(0);
      const at::Tensor theirs = teacher.head_rows(teacher_ND.narrow(0, begin, count));
      return kernels::distillation_op(logits, theirs, targets_N.narrow(0, begin, count), share, loss, gather);
    };
  }

  ChunkLoss chunk_loss(Transformer& head, const MicroBatch& batch) {
    return [this, loss_of_rows = rows_loss(head, batch), targets_N = batch.targets_N,
            on_policy = batch.on_policy, texts = batch.num_documents](at::Tensor& logits, int64_t first) {
      const at::NoGradGuard no_grad;
      at::Tensor sums = at::zeros({num_sums()}, logits.options().dtype(at::kFloat));
      if (writer_ && first == 0) sums[4] = static_cast<double>(texts);
      for (const Run& run : runs_of(on_policy, targets_N.size(0), first, logits.size(0))) {
        at::Tensor rows = logits.narrow(0, run.begin - first, run.count);
        const auto result = loss_of_rows(rows, run.begin, run.on_policy ? divergence_alone() : loss_);
        const at::Tensor kd = result.divergence_N.sum();
        sums[0].add_(kd, loss_.kd_alpha * loss_.temperature * loss_.temperature);
        sums[2].add_(kd);
        if (run.on_policy) {
          rows.mul_(loss_.kd_alpha);
          sums[3].add_(targets_N.narrow(0, run.begin, run.count).ne(kernels::kIgnoreIndex).sum());
        } else {
          const at::Tensor ce = result.cross_entropy_N.sum();
          sums[0].add_(ce, 1.0 - loss_.kd_alpha);
          sums[1].add_(ce);
        }
      }
      return sums;
    };
  }

  kernels::DistillationLoss divergence_alone() const {
    kernels::DistillationLoss loss = loss_;
    loss.kd_alpha = 1.0;
    return loss;
  }

  // Rows of a chunk whose targets are all the student's, or all of the data.
  struct Run {
    int64_t begin = 0, count = 0;
    bool on_policy = false;
  };
  // Of rows [first, first + count) of a micro-batch of `rows` rows, whose samples have equally many.
  static std::vector<Run> runs_of(const std::vector<bool>& on_policy, int64_t rows, int64_t first,
                                  int64_t count) {
    if (on_policy.empty()) return {{first, count, false}};
    const int64_t per_sample = rows / static_cast<int64_t>(on_policy.size());
    std::vector<Run> runs;
    for (int64_t row = first; row < first + count;) {
      const int64_t sample = row / per_sample, end = std::min((sample + 1) * per_sample, first + count);
      const bool own = on_policy[static_cast<size_t>(sample)];
      if (runs.empty() || runs.back().on_policy != own) runs.push_back({row, 0, own});
      runs.back().count += end - row;
      row = end;
    }
    return runs;
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
  std::optional<IntermediateStates> states_;
  std::unique_ptr<OnPolicyWriter> writer_;  // null without on_policy_share
};

}  // namespace

extern const ObjectiveKind kObjective_distill;
const ObjectiveKind kObjective_distill{
    "distill", [](const ObjectiveInputs& in) -> std::unique_ptr<Objective> {
      HEARTH_REQUIRE(in.teacher != nullptr || in.teacher_cache != nullptr, "distillation without a teacher");
      return std::make_unique<Distill>(in);
    }};

}  // namespace hearth
