#include "trainer/model/model_partition.h"

#include "base/error.h"

namespace hearth {
namespace {

bool ends_with(const std::string& name, std::string_view tail) {
  return name.size() >= tail.size() && name.compare(name.size() - tail.size(), tail.size(), tail) == 0;
}

bool contains(const std::string& name, std::string_view part) {
  return name.find(part) != std::string::npos;
}

// Slices one parameter for a tensor-parallel rank.
class Slicer {
 public:
  Slicer(const ModelConfig& config, const ModelPartition& partition)
      : config_(config),
        partition_(partition),
        heads_(local_heads(config, partition.tensor_size, partition.tensor_rank)) {}

  ParameterShard slice(const ParameterSpec& spec, int64_t unit) const {
    ParameterShard shard;
    shard.spec = spec;
    shard.unit = unit;
    shard.box = Box::whole(spec.shape);
    const std::string& name = spec.name;
    const int64_t size = partition_.tensor_size, rank = partition_.tensor_rank;
    if (name == "model.embed_tokens.weight" || name == "lm_head.weight") {
      const VocabShare share = vocab_share(config_.vocab_size, size, rank);
      rows(shard, share.first, share.count);
      shard.storage_rows = share.storage;
      return shard;
    }
    const int64_t width = config_.head_width();
    if (contains(name, "q_proj.")) {
      rows(shard, rank * heads_.query * width, heads_.query * width);
    } else if (contains(name, "k_proj.") || contains(name, "v_proj.")) {
      rows(shard, heads_.first_kv * width, heads_.kv * width);
      if (heads_.replicas > 1) replicated(shard, GradientSum::KvReplicas, rank % heads_.replicas == 0);
    } else if (contains(name, "gate_proj.") || contains(name, "up_proj.")) {
      rows(shard, rank * (spec.shape[0] / size), spec.shape[0] / size);
    } else if (ends_with(name, "o_proj.weight") || ends_with(name, "down_proj.weight")) {
      shard.box.offset[1] = rank * (spec.shape[1] / size);
      shard.box.extent[1] = spec.shape[1] / size;
    } else if (size > 1) {
      // Norms and the output bias: whole on every rank. A rank sees its rows only with sequence parallelism,
      // and its heads only for the norms of q and k; otherwise all ranks compute the same gradient.
      const bool partial =
          partition_.sequence_parallel || contains(name, "q_norm") || contains(name, "k_norm");
      replicated(shard, partial ? GradientSum::TensorParallel : GradientSum::None, rank == 0);
    }
    shard.storage_rows = shard.box.extent[0];
    return shard;
  }

 private:
  static void rows(ParameterShard& shard, int64_t first, int64_t count) {
    shard.box.offset[0] = first;
    shard.box.extent[0] = count;
  }
  static void replicated(ParameterShard& shard, GradientSum sum, bool counts) {
    shard.sum = sum;
    shard.counts = counts;
  }

  const ModelConfig& config_;
  const ModelPartition& partition_;
  LocalHeads heads_;
};

// -1 for what is outside the layers.
int64_t layer_of(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (name.rfind(kPrefix, 0) != 0) return -1;
  return std::stoll(name.substr(kPrefix.size()));
}

}  // namespace

ModelPartition ModelPartition::whole(const ModelConfig& config) {
  ModelPartition partition;
  partition.chunks = {
      {.first_layer = 0, .num_layers = config.num_hidden_layers, .embedding = true, .head = true}};
  return partition;
}

bool ModelPartition::has_embedding() const {
  return std::any_of(chunks.begin(), chunks.end(), [](const ModelChunk& c) { return c.embedding; });
}
bool ModelPartition::has_head() const {
  return std::any_of(chunks.begin(), chunks.end(), [](const ModelChunk& c) { return c.head; });
}

std::vector<ModelChunk> model_chunks(const std::vector<int>& layers) {
  std::vector<ModelChunk> chunks;
  int64_t first = 0;
  for (size_t stage = 0; stage < layers.size(); ++stage) {
    chunks.push_back({.first_layer = first,
                      .num_layers = layers[stage],
                      .embedding = stage == 0,
                      .head = stage + 1 == layers.size()});
    first += layers[stage];
  }
  return chunks;
}

int64_t ParameterShard::numel() const {
  int64_t n = 1;
  for (const int64_t extent : box.extent) n *= extent;
  return n;
}

int64_t ParameterShard::row_elements() const {
  return box.extent.size() > 1 ? box.extent[1] : 1;
}

void check_tensor_parallel(const ModelConfig& c, int64_t size, ConfigErrors& errors) {
  const std::string advice =
      fmt::format("tensor_model_parallel_size = {}; choose a size that divides it", size);
  errors.require(c.num_attention_heads % size == 0, "model.num_attention_heads",
                 "{} is not a multiple of parallel.{}", c.num_attention_heads, advice);
  errors.require(
      c.kv_heads() % size == 0 || size % c.kv_heads() == 0, "model.num_key_value_heads",
      "{} is neither a multiple nor a divisor of parallel.tensor_model_parallel_size = {}: ranks hold whole "
      "key/value heads, or equally many ranks share each",
      c.kv_heads(), size);
  errors.require(c.intermediate_size % size == 0, "model.intermediate_size",
                 "{} is not a multiple of parallel.{}", c.intermediate_size, advice);
}

void require_tensor_parallel(const ModelConfig& config, int64_t size) {
  ConfigErrors errors;
  check_tensor_parallel(config, size, errors);
  std::string text;
  for (const auto& entry : errors.entries())
    text += (text.empty() ? "" : "; ") + entry.key + " " + entry.message;
  HEARTH_CHECK(text.empty(), Config, "{}", text);
}

LocalHeads local_heads(const ModelConfig& c, int64_t size, int64_t rank) {
  const int64_t kv = c.kv_heads();
  LocalHeads heads{.query = c.num_attention_heads / size, .kv = kv / size, .first_kv = rank * (kv / size)};
  if (kv < size) heads = {.query = heads.query, .kv = 1, .first_kv = rank * kv / size, .replicas = size / kv};
  return heads;
}

VocabShare vocab_share(int64_t vocab_size, int64_t size, int64_t rank) {
  const int64_t multiple = kVocabPadding * size;
  const int64_t storage = (vocab_size + multiple - 1) / multiple * kVocabPadding;
  const int64_t first = std::min(rank * storage, vocab_size);
  return {.first = first, .count = std::min(storage, vocab_size - first), .storage = storage};
}

std::vector<ParameterShard> parameter_shards(const ModelConfig& config, const ModelPartition& partition) {
  require_tensor_parallel(config, partition.tensor_size);
  const Slicer slicer(config, partition);
  const auto holds_layer = [&](int64_t layer) {
    return std::any_of(partition.chunks.begin(), partition.chunks.end(), [&](const ModelChunk& c) {
      return layer >= c.first_layer && layer < c.first_layer + c.num_layers;
    });
  };
  std::vector<ParameterShard> shards;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    const int64_t layer = layer_of(spec.name), head_unit = 1 + config.num_hidden_layers;
    if (layer >= 0) {
      if (holds_layer(layer)) shards.push_back(slicer.slice(spec, 1 + layer));
    } else if (spec.name == "model.embed_tokens.weight") {
      const bool as_head = config.tie_word_embeddings && partition.has_head();
      if (!partition.has_embedding() && !as_head) continue;
      shards.push_back(slicer.slice(spec, 0));
      if (partition.tied_ends_apart) {
        shards.back().sum = GradientSum::TiedEmbedding;
        shards.back().counts = partition.has_embedding();
      }
    } else if (partition.has_head()) {
      shards.push_back(slicer.slice(spec, head_unit));
    }
  }
  return shards;
}

}  // namespace hearth
