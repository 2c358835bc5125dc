// Initial weights are a function of (seed, name, element): no layout, bucket size or dtype moves them.
#include "trainer/model/parameter_store.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdlib>

#include "base/error.h"
#include "parallel/comm.h"
#include "tests/trainer/tiny_model.h"

using namespace hearth;
using hearth::testing::tiny_config;

namespace {

ModelConfig biased_config() {
  ModelConfig c = tiny_config();
  c.attention_bias = c.attention_output_bias = c.qk_norm = true;
  return c;
}

ParameterStore initialized(int64_t data_parallel_size, int64_t bucket_elements, DType dtype, uint64_t seed) {
  ParameterStore store(biased_config(), dtype, at::kCPU, WithGradients::Yes, data_parallel_size,
                       bucket_elements);
  store.initialize(seed);
  return store;
}

// A group with memory of its own, from the heap.
class Lender final : public Comm {
 public:
  explicit Lender(bool has_memory) : has_memory_(has_memory) {}
  std::shared_ptr<void> allocate(int64_t size_bytes) override {
    asked.push_back(size_bytes);
    if (!has_memory_) return nullptr;
    ++alive;
    return {std::malloc(static_cast<size_t>(size_bytes)), [this](void* memory) {
              std::free(memory);
              --alive;
            }};
  }
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string_view backend() const override { return "lender"; }
  const std::string& group() const override { return group_; }
  void set_compute_stream(StreamHandle) override {}
  WorkPtr all_reduce(void*, int64_t, DType, ReduceOp, std::string_view) override { return {}; }
  WorkPtr reduce_scatter(const void*, void*, int64_t, DType, std::string_view) override { return {}; }
  WorkPtr all_gather(const void*, void*, int64_t, DType, std::string_view) override { return {}; }
  WorkPtr broadcast(void*, int64_t, DType, int, std::string_view) override { return {}; }
  WorkPtr all_to_all(const void*, void*, int64_t, DType, std::string_view) override { return {}; }
  WorkPtr send(const void*, int64_t, DType, int, std::string_view) override { return {}; }
  WorkPtr recv(void*, int64_t, DType, int, std::string_view) override { return {}; }
  void barrier(std::string_view) override {}

  std::vector<int64_t> asked;
  int64_t alive = 0;

 private:
  bool has_memory_;
  std::string group_ = "lender";
};

}  // namespace

BOOST_AUTO_TEST_CASE(initial_weights_do_not_depend_on_ranks_or_buckets) {
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const ParameterStore base = initialized(1, int64_t{25} << 20, dtype, 7);
    BOOST_TEST(base.plan().buckets.size() == 4u);  // head, layers, embedding, vectors
    for (const int64_t ranks : {1, 2, 3, 4, 8})
      for (const int64_t bucket : {1, 1000, 5000}) {
        const ParameterStore other = initialized(ranks, bucket, dtype, 7);
        BOOST_TEST(other.plan().buckets.size() > 1u);
        for (const Parameter& p : base.parameters())
          BOOST_TEST(at::equal(p.weight, other.at(p.spec.name).weight), p.spec.name);
      }
  }
}

BOOST_AUTO_TEST_CASE(the_seed_and_the_name_decide) {
  const ParameterStore a = initialized(1, 1000, DType::F32, 7), b = initialized(1, 1000, DType::F32, 8);
  const std::string first = "model.layers.0.mlp.gate_proj.weight",
                    second = "model.layers.1.mlp.gate_proj.weight";
  BOOST_TEST(!at::equal(a.at(first).weight, b.at(first).weight));
  BOOST_TEST(!at::equal(a.at(first).weight, a.at(second).weight));
}

BOOST_AUTO_TEST_CASE(bf16_is_the_rounded_fp32_draw) {
  const ParameterStore full = initialized(1, 1000, DType::F32, 7),
                       half = initialized(2, 5000, DType::BF16, 7);
  for (const Parameter& p : full.parameters())
    BOOST_TEST(at::equal(p.weight.to(at::kBFloat16), half.at(p.spec.name).weight), p.spec.name);
}

// What a rank draws for its masters is the slice of the whole.
BOOST_AUTO_TEST_CASE(slices_of_the_initial_values) {
  const ParameterStore store = initialized(1, 1000, DType::F32, 7);
  for (size_t i = 0; i < store.parameters().size(); ++i) {
    const at::Tensor whole = store.parameters()[i].weight.reshape({-1});
    const int64_t begin = whole.numel() / 3, end = whole.numel() - 1;
    at::Tensor slice = at::empty({end - begin}, at::kFloat);
    store.initial_values(static_cast<int64_t>(i), 7, begin, end, slice.data_ptr<float>());
    BOOST_TEST(at::equal(slice, whole.narrow(0, begin, end - begin)), store.parameters()[i].spec.name);
  }
}

BOOST_AUTO_TEST_CASE(matrices_are_normal_norms_one_and_biases_zero) {
  const ModelConfig config = biased_config();
  const ParameterStore store = initialized(1, 1000, DType::F32, 7);
  for (const Parameter& p : store.parameters()) {
    const double mean = p.weight.mean().item<double>(),
                 deviation = p.weight.std(/*unbiased=*/false).item<double>();
    if (p.spec.shape.size() == 1) {
      BOOST_TEST(mean == (p.spec.name.ends_with(".bias") ? 0.0 : 1.0), p.spec.name);
      BOOST_TEST(deviation == 0.0, p.spec.name);
      continue;
    }
    // Five standard errors of a sample's mean and deviation.
    const double n = static_cast<double>(p.weight.numel());
    BOOST_TEST(std::abs(mean) <= 5 * config.initializer_range / std::sqrt(n), p.spec.name);
    BOOST_TEST(std::abs(deviation / config.initializer_range - 1) <= 5 / std::sqrt(2 * n), p.spec.name);
  }
}

BOOST_AUTO_TEST_CASE(rows_of_padding_stay_zero) {
  const ParameterStore store = initialized(1, 1000, DType::F32, 7);
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight"}) {
    const Parameter& p = store.at(name);
    BOOST_TEST(p.weight.size(0) == 61);
    BOOST_TEST(p.padded_weight.size(0) == kVocabPadding);
    BOOST_TEST(p.padded_weight.narrow(0, 61, kVocabPadding - 61).abs().max().item<double>() == 0.0);
  }
}

BOOST_AUTO_TEST_CASE(neighbours_are_one_matrix) {
  const ParameterStore store = initialized(3, 1, DType::F32, 7);
  const std::string attention = "model.layers.1.self_attn.";
  for (const char* kind : {".weight", ".bias"}) {
    const at::Tensor fused = store.fused_weight(attention + "q_proj" + kind, attention + "v_proj" + kind);
    BOOST_TEST(fused.size(0) == 32 + 16 + 16);
    BOOST_TEST(at::equal(fused.narrow(0, 0, 32), store.at(attention + "q_proj" + kind).weight));
    BOOST_TEST(at::equal(fused.narrow(0, 32, 16), store.at(attention + "k_proj" + kind).weight));
    BOOST_TEST(at::equal(fused.narrow(0, 48, 16), store.at(attention + "v_proj" + kind).weight));
  }
}

BOOST_AUTO_TEST_CASE(an_unknown_parameter_is_named) {
  const ParameterStore store = initialized(1, 1000, DType::F32, 7);
  BOOST_CHECK_EXCEPTION(store.index("model.nothing"), Error, [](const Error& e) {
    return std::string(e.what()).find("model.nothing") != std::string::npos;
  });
}

BOOST_AUTO_TEST_CASE(weights_lie_in_memory_of_the_group_that_gathers_them) {
  count_cpu_memory();
  const auto shards = parameter_shards(biased_config(), ModelPartition::whole(biased_config()));
  for (const bool has_memory : {false, true}) BOOST_TEST_CONTEXT("has memory " << has_memory) {
      Lender group(has_memory);
      {
        ParameterStore store(shards, {.weights = BucketMemory::OnDemand, .gathered_by = &group});
        MemoryLedger& ledger = store.memory();
        BOOST_TEST(group.asked.size() == 1u);  // what stays
        const auto kept = ledger.held(MemoryPart::Weights);
        BOOST_TEST(group.asked[0] == kept);
        // A layer's bucket, twice: the second time in the block of the first.
        const auto matrices = [&](int64_t unit) {
          const auto& all = store.buckets_of_unit(unit);
          return *std::find_if(all.begin(), all.end(), [&](int64_t b) { return store.weights_on_demand(b); });
        };
        const int64_t bucket = matrices(1), other = matrices(2);
        BOOST_TEST(store.weights(bucket).nbytes() == store.weights(other).nbytes());
        const void* first = nullptr;
        for (const int64_t b : {bucket, other, bucket}) {
          ledger.begin();
          store.restore_weights(b);
          store.weights(b).fill_(3);
          if (first == nullptr) first = store.weights(b).data_ptr();
          if (has_memory) BOOST_TEST(store.weights(b).data_ptr() == first);
          store.release_weights(b);
          const MemoryUse peak = ledger.peak();
          BOOST_TEST(peak.weights == kept + static_cast<int64_t>(store.weights(b).nbytes()));
          BOOST_TEST(peak.activations == 0);
        }
        BOOST_TEST(group.asked.size() == (has_memory ? 2u : 1u));
        BOOST_TEST(group.alive == (has_memory ? 2 : 0));
      }
      BOOST_TEST(group.alive == 0);
    }
}
