#include "trainer/communication_volume.h"

#include <algorithm>

#include "base/dtype.h"
#include "base/error.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

// Bytes that each of `ranks` sends to spread or to collect `bytes` once; an all-reduce does both.
int64_t moved(int64_t bytes, int64_t ranks) {
  return bytes / ranks * (ranks - 1) + bytes % ranks * (ranks - 1) / ranks;
}

class Volume {
 public:
  Volume(const ExperimentConfig& config, const Mesh& mesh, const PipelineSchedule& schedule, int rank)
      : config_(config),
        schedule_(schedule),
        partition_(model_partition(config, mesh, schedule, rank)),
        shards_(parameter_shards(config.model, partition_)),
        pipeline_rank_(mesh.coordinate(rank, MeshAxis::Pp)),
        tensor_(mesh.size(MeshAxis::Tp)),
        context_(mesh.size(MeshAxis::Cp)),
        copies_(config.parallel.num_distributed_optimizer_instances),
        shard_(int64_t{mesh.size(MeshAxis::Dp)} * context_ / copies_),
        micros_(schedule.micros),
        rows_(config.training.micro_batch_size * config.data.seq_length / context_),
        element_(size_bytes(dtype_from_config(config.precision.dtype).value_or(DType::F32))),
        grad_(size_bytes(config.precision.grads_dtype())) {}

  CommunicationVolume all() const {
    CommunicationVolume volume;
    volume.tensor = tensor();
    volume.pipeline = pipeline();
    volume.context = context();
    volume.gradients = gradients();
    volume.weights = weights();
    volume.replicated = replicated();
    return volume;
  }

 private:
  int64_t layers() const {
    int64_t count = 0;
    for (const ModelChunk& chunk : partition_.chunks) count += chunk.num_layers;
    return count;
  }
  bool rebuilds(const char* module) const {
    const auto& modules = config_.recompute.modules;
    if (config_.recompute.granularity == "full") return true;
    return config_.recompute.granularity == "selective" &&
           std::find(modules.begin(), modules.end(), module) != modules.end();
  }

  // All rows of a micro-batch cross the group: with sequence parallelism by a gather or a scatter, four of
  // them in a layer's forward and six in its backward (two inputs are gathered again for their weight
  // gradients), else by all-reduces, two and two. The table and the head take two gathers or scatters, or one
  // all-reduce.
  int64_t tensor() const {
    if (tensor_ == 1) return 0;
    const int64_t crossing = moved(rows_ * config_.model.hidden_size * element_, tensor_);
    const int64_t forward = 4, backward = partition_.sequence_parallel ? 6 : 4;
    const int64_t again = config_.recompute.granularity == "full" ? forward : 0;
    constexpr int64_t kStatistics = 3 * 4;  // of a row of logits: three fp32 (kernels/cross_entropy_op.h)
    int64_t bytes = layers() * (forward + backward + again) * crossing;
    if (partition_.has_embedding()) bytes += 2 * crossing;
    if (partition_.has_head()) bytes += 2 * crossing + (tensor_ - 1) * rows_ * kStatistics;
    return micros_ * bytes;
  }

  int64_t pipeline() const {
    const auto& list = schedule_.ranks[static_cast<size_t>(pipeline_rank_)];
    const int64_t sends = std::count_if(list.begin(), list.end(), [](const Action& a) {
      return a.kind == ActionKind::SendForward || a.kind == ActionKind::SendBackward;
    });
    const int64_t rows = partition_.sequence_parallel ? rows_ / tensor_ : rows_;
    return sends * rows * config_.model.hidden_size * element_;
  }

  // parallel/context/README.md.
  int64_t context() const {
    if (context_ == 1) return 0;
    const LocalHeads heads = local_heads(config_.model, tensor_, partition_.tensor_rank);
    const int64_t width = config_.model.head_width(), hops = context_ - 1;
    int64_t forward = hops * rows_ * 2 * heads.kv * width * element_;
    int64_t backward = hops * rows_ * 2 * heads.kv * width * (element_ + 4);
    if (config_.parallel.cp_comm_type == "a2a")
      forward = backward = moved(rows_ * (2 * heads.query + 2 * heads.kv) * width * element_, context_);
    if (rebuilds("core_attn")) backward += forward;
    return micros_ * layers() * (forward + backward);
  }

  // parallel/zero/README.md.
  int64_t gradients() const {
    const int64_t once = moved(grad_ * elements(), shard_);
    if (config_.parallel.zero_stage == 0) return 2 * once;
    const int64_t between_copies = 2 * moved(grad_ * elements() / shard_, copies_);
    return (config_.parallel.zero_stage == 1 ? once : micros_ * once) + between_copies;
  }
  int64_t weights() const {
    if (config_.parallel.zero_stage == 0) return 0;
    if (config_.parallel.zero_stage < 3) return moved(element_ * elements(), shard_);
    int64_t bytes = 0;
    for (const ParameterShard& shard : shards_) {
      const bool vector = shard.spec.shape.size() < 2;
      bytes += (vector ? 1 : micros_ * uses(shard)) * shard.storage_elements();
    }
    return moved(element_ * bytes, shard_);
  }
  // Of a matrix in one micro-batch: layers in forward and in backward; the table where it is looked up, the
  // head where it makes logits and their gradients in one go.
  int64_t uses(const ParameterShard& shard) const {
    const int64_t head_unit = 1 + config_.model.num_hidden_layers;
    if (shard.unit == head_unit) return 1;
    if (shard.unit > 0) return 2;
    const bool also_head = config_.model.tie_word_embeddings && partition_.has_head();
    return (partition_.has_embedding() ? 1 : 0) + (also_head ? 1 : 0);
  }
  int64_t elements() const {
    int64_t count = 0;
    for (const ParameterShard& shard : shards_) count += shard.storage_elements();
    return count;
  }

  // After the data-parallel sum, each rank adds what it owns of it.
  int64_t replicated() const {
    const int64_t owners = config_.parallel.zero_stage == 0 ? 1 : shard_;
    int64_t bytes = 0;
    for (const ParameterShard& shard : shards_)
      bytes += 2 * moved(grad_ * shard.storage_elements() / owners, sharers(shard));
    return bytes;
  }
  int64_t sharers(const ParameterShard& shard) const {
    switch (shard.sum) {
      case GradientSum::TensorParallel:
        return tensor_;
      case GradientSum::KvReplicas:
        return local_heads(config_.model, tensor_, partition_.tensor_rank).replicas;
      case GradientSum::TiedEmbedding:
        return 2;
      default:
        return 1;
    }
  }

  const ExperimentConfig& config_;
  const PipelineSchedule& schedule_;
  ModelPartition partition_;
  std::vector<ParameterShard> shards_;
  int pipeline_rank_;
  int64_t tensor_, context_;  // sizes of the groups over which activations and sequences are shared
  int64_t copies_,
      shard_;  // data x context parallel ranks: so many copies of the state, each over so many ranks
  int64_t micros_, rows_;
  int64_t element_, grad_;  // bytes of an activation or weight, and of a gradient
};

}  // namespace

CommunicationVolume communication_volume(const ExperimentConfig& config, const Mesh& mesh,
                                         const PipelineSchedule& schedule, int rank) {
  return Volume(config, mesh, schedule, rank).all();
}

}  // namespace hearth
