// The arithmetic of `hearth bench train`: kinds of kernels, bytes of a step. What it measures is
// tried by tests/integration/bench.py.
#include "trainer/bench/benchmark.h"

#include <boost/test/unit_test.hpp>
#include <cmath>

#include "trainer/bench/kernel_time.h"
#include "trainer/bench/roofline.h"

namespace hearth {
namespace {

BOOST_AUTO_TEST_CASE(kernels_are_told_apart_by_their_names) {
  const std::pair<const char*, const char*> kKinds[] = {
      {"nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "gemm"},
      {"void cublasLt::splitKreduce_kernel<32, 16>(...)", "gemm"},
      {"cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x64", "attention"},
      {"void cudnn::fusion::compute_dot_do_o_specialized<true>(...)", "attention"},
      {"void hearth::kernels::(anonymous namespace)::rms_norm_backward_kernel<float>(...)", "norm"},
      {"hearth::kernels::(anonymous namespace)::head_norm_rope_forward_kernel", "rope"},
      {"hearth::kernels::(anonymous namespace)::cross_entropy_row_kernel", "loss"},
      {"hearth::kernels::(anonymous namespace)::distillation_gradient_kernel", "loss"},
      {"void cub::DeviceRadixSortOnesweepKernel<...>", "embedding"},
      {"hearth::kernels::(anonymous namespace)::adamw_kernel<4, float>", "optimizer"},
      {"ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"},
      {"Memcpy DtoD (Device -> Device)", "copy"},
      {"void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "copy"},
      {"a kernel that nobody has seen", "other"}};
  for (const auto& [name, kind] : kKinds) BOOST_TEST(kind_of_kernel(name) == kind, name);
}

// Three equal steps of 100 ns, the first slower: a product, a collective half under it, the optimizer.
BOOST_AUTO_TEST_CASE(kernels_are_the_mean_of_all_steps_but_the_first) {
  std::vector<KernelSpan> kernels;
  for (const int64_t at : {0, 1000, 1100}) {
    const int64_t slower = at == 0 ? 30 : 0;
    kernels.push_back({"nvjet_sm90", 7, at, at + 40 + slower});
    kernels.push_back({"ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(args)", 9, at + 30, at + 50 + slower});
    kernels.push_back({"void hearth::kernels::adamw_kernel<4>(args)", 7, at + 60 + slower, at + 90 + slower});
  }
  std::swap(kernels.front(), kernels.back());  // kineto's order is no promise
  const KernelTime time = summarize_kernels(kernels, 3);
  const auto is = [](double seconds, double nanoseconds) {
    return std::abs(seconds * 1e9 - nanoseconds) <= 1e-6;
  };
  BOOST_TEST_REQUIRE(time.by_kind.size() == 3U);
  BOOST_TEST((time.by_kind[0].first == "gemm" && is(time.by_kind[0].second, 40)));
  BOOST_TEST((time.by_kind[1].first == "optimizer" && is(time.by_kind[1].second, 30)));
  BOOST_TEST((time.by_kind[2].first == "communication" && is(time.by_kind[2].second, 20)));
  BOOST_TEST(time.by_name[1].first == "hearth::kernels::adamw_kernel");
  BOOST_TEST(is(time.total(), 90));
  BOOST_TEST(is(time.idle, (10 + 10 + 10) / 2.0), time.idle);  // in each step, and once between the two
  const std::vector<KindOverlap> want = {
      {.kind = "ReduceScatter", .calls = 1, .total_ns = 20, .covered_ns = 10, .exposed_ns = 10},
      {.kind = "all", .calls = 1, .total_ns = 20, .covered_ns = 10, .exposed_ns = 10}};
  BOOST_TEST((time.communication == want));
  BOOST_TEST(communication_call("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)") == "SendRecv");
  BOOST_TEST(communication_call("ncclKernel_new") == "other");
}

BOOST_AUTO_TEST_CASE(copies_in_a_stream_of_nccl_are_its_own) {
  std::vector<KernelSpan> kernels;
  for (const int64_t at : {0, 100}) {
    kernels.push_back({"nvjet_sm90", 7, at, at + 50});
    kernels.push_back({"Memcpy DtoD (Device -> Device)", 7, at + 50, at + 60});
    kernels.push_back({"Memcpy PtoP (Device -> Device)", 9, at + 40, at + 70});
    kernels.push_back({"ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(args)", 9, at + 70, at + 80});
  }
  const KernelTime time = summarize_kernels(kernels, 2);
  const std::vector<KindOverlap> want = {
      {.kind = "ReduceScatter", .calls = 1, .total_ns = 10, .covered_ns = 0, .exposed_ns = 10},
      {.kind = "copy engines", .calls = 1, .total_ns = 30, .covered_ns = 20, .exposed_ns = 10},
      {.kind = "all", .calls = 2, .total_ns = 40, .covered_ns = 20, .exposed_ns = 20}};
  BOOST_TEST((time.communication == want));
  BOOST_TEST_REQUIRE(time.by_kind.size() == 3U);
  BOOST_TEST(time.by_kind[2].first == "copy");
}

// Two layers of 8 with 2 heads and 1 key/value head of 4, feed-forward 16, vocabulary 32; 3 samples of 5
// tokens.
BOOST_AUTO_TEST_CASE(the_bytes_of_a_step_are_those_of_its_tensors) {
  ExperimentConfig config;
  config.model.hidden_size = 8;
  config.model.num_hidden_layers = 2;
  config.model.num_attention_heads = 2;
  config.model.num_key_value_heads = 1;
  config.model.head_dim = 4;
  config.model.intermediate_size = 16;
  config.model.vocab_size = 32;
  config.training.micro_batch_size = 3;
  config.data.seq_length = 5;
  config.precision.dtype = "bf16";
  const int64_t rows = 15, hidden = rows * 8, rotated = rows * 3 * 4, wide = rows * 16;
  const StepBytes bytes = step_bytes(config, /*micro_batches=*/2);
  // Forward and backward of a layer with norms and activations rebuilt, then the last norm.
  const int64_t layer = (6 * hidden + 2 * rotated + 3 * wide) + (10 * hidden + 2 * rotated + 6 * wide);
  BOOST_TEST(bytes.activations == 2 * 2 * (2 * layer + 5 * hidden));
  BOOST_TEST(bytes.loss == 2 * 2 * 2 * rows * 32);
  BOOST_TEST(bytes.embedding == 2 * (2 * 3 * hidden + 2 * 4 * hidden));
  // Gradients twice, master and two moments read and written in fp32, the parameter written.
  BOOST_TEST(bytes.optimizer == parameter_count(config.model) * (2 * 4 + 2 * 12 + 2));
  config.recompute.granularity = "none";
  BOOST_TEST(step_bytes(config, 2).activations == 2 * 2 * (2 * (layer - 2 * hidden - wide) + 5 * hidden));
  config.precision.main_params_dtype = "none";
  config.precision.main_grads_dtype = config.precision.exp_avg_dtype = config.precision.exp_avg_sq_dtype =
      "bf16";
  BOOST_TEST(step_bytes(config, 2).optimizer == parameter_count(config.model) * 16);
}

}  // namespace
}  // namespace hearth
