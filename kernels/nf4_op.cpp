#include "kernels/nf4_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cpu_simd.h"
#ifdef HEARTH_CUDA
#include "kernels/cuda_scope.h"
#include "kernels/nf4.h"
#endif

namespace hearth::kernels {
namespace {

constexpr float kSmallestScale = 1e-38f;  // below it a reciprocal would overflow
constexpr int64_t kGrainBlocks = cpu::kGrainElements / kNf4Block;

// Codes are counts of these that a value is above.
constexpr std::array<float, kNf4Codes - 1> kBounds = [] {
  std::array<float, kNf4Codes - 1> bounds{};
  for (size_t i = 0; i < bounds.size(); ++i) bounds[i] = (kNf4Levels.value[i] + kNf4Levels.value[i + 1]) / 2;
  return bounds;
}();

// Largest magnitude; NaN and infinity give something that is not finite.
HEARTH_CPU_CLONES float largest(const float* x, int64_t count) {
  float most = 0, spoilt = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(x[i]);
    most = magnitude > most ? magnitude : most;
    spoilt += magnitude * 0.0f;  // NaN where the value is not finite
  }
  return most + spoilt;
}

HEARTH_CPU_CLONES void block_codes(const float* x, float absmax, uint8_t* packed) {
  const float inverse = 1.0f / std::max(absmax, kSmallestScale);
  float scaled[kNf4Block];
  int32_t code[kNf4Block] = {};
  for (int i = 0; i < kNf4Block; ++i) scaled[i] = std::min(std::max(x[i] * inverse, -1.0f), 1.0f);
  for (const float bound : kBounds)
    for (int i = 0; i < kNf4Block; ++i) code[i] += scaled[i] > bound ? 1 : 0;
  for (int i = 0; i < kNf4Block; i += 2) packed[i / 2] = static_cast<uint8_t>(code[i] << 4 | code[i + 1]);
}

int64_t in_tensor(const Nf4Place& place, int64_t block) {
  return place.first + block / place.run * place.stride + block % place.run;
}

HEARTH_CPU_CLONES void block_values(const uint8_t* packed, float scale, float* out) {
  float levels[kNf4Codes];
  for (int i = 0; i < kNf4Codes; ++i) levels[i] = kNf4Levels.value[i] * scale;
  for (int i = 0; i < kNf4Block; ++i) out[i] = levels[i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15];
}

template <class Store>
void dequantize_cpu(const Nf4Part& part, int64_t blocks, const Store& store) {
  const uint8_t *codes = part.codes.const_data_ptr<uint8_t>(),
                *scales = part.scales_B.const_data_ptr<uint8_t>();
  const float *groups = part.groups_G.const_data_ptr<float>(),
              *map = part.dynamic_map.const_data_ptr<float>();
  at::parallel_for(0, blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    float values[kNf4Block];
    for (int64_t b = begin; b < end; ++b) {
      const float product = map[scales[b]] * groups[in_tensor(part.place, b) / kNf4Group];
      block_values(codes + b * kNf4Block / 2, product + part.mean, values);
      store(b * kNf4Block, values);
    }
  });
}

void dequantize_cpu(const Nf4Part& part, at::Tensor& out_E) {
  const int64_t blocks = out_E.numel() / kNf4Block;
  if (out_E.scalar_type() == at::kFloat) {
    auto* out = out_E.data_ptr<float>();
    dequantize_cpu(part, blocks,
                   [&](int64_t at, const float* values) { std::copy_n(values, kNf4Block, out + at); });
  } else {
    auto* out = out_E.data_ptr<at::BFloat16>();
    dequantize_cpu(part, blocks, [&](int64_t at, const float* values) {
      for (int i = 0; i < kNf4Block; ++i) out[at + i] = at::BFloat16(values[i]);
    });
  }
}

void dequantize_plain(const Nf4Part& part, at::Tensor& out_E) {
  const auto options = part.codes.options();
  const at::Tensor b = at::arange(part.scales_B.numel(), options.dtype(at::kLong));
  const at::Tensor group = b.div(part.place.run, "floor")
                               .mul(part.place.stride)
                               .add(b.remainder(part.place.run))
                               .add(part.place.first)
                               .div(kNf4Group, "floor");
  const at::Tensor scales =
      part.dynamic_map.index_select(0, part.scales_B.to(at::kInt)).mul(part.groups_G.index_select(0, group));
  const at::Tensor levels =
      at::tensor(at::ArrayRef<float>(kNf4Levels.value, kNf4Codes), options.dtype(at::kFloat));
  const at::Tensor codes =
      at::stack({part.codes.bitwise_right_shift(4), part.codes.bitwise_and(15)}, 1).view({-1}).to(at::kInt);
  out_E.copy_(
      levels.index_select(0, codes).view({-1, kNf4Block}).mul(scales.add(part.mean).unsqueeze(1)).view({-1}));
}

void check_host_floats(const char* op, const at::Tensor& values) {
  HEARTH_REQUIRE(values.defined() && values.is_cpu() && values.dim() == 1 && values.is_contiguous() &&
                     values.scalar_type() == at::kFloat,
                 "{}: needs a contiguous fp32 vector on the CPU, got {}", op, describe(values));
}

void check_part(const Nf4Part& part, const at::Tensor& out_E) {
  constexpr const char* kOp = "nf4_dequantize";
  check_activation(kOp, "out", out_E, 1);
  const int64_t blocks = out_E.numel() / kNf4Block;
  const auto bytes = [&](const char* what, const at::Tensor& tensor, int64_t count) {
    HEARTH_REQUIRE(tensor.defined() && tensor.scalar_type() == at::kByte && tensor.numel() == count &&
                       tensor.is_contiguous() && tensor.device() == out_E.device(),
                   "{}: {} must be {} contiguous bytes for {}, got {}", kOp, what, count, describe(out_E),
                   describe(tensor));
  };
  HEARTH_REQUIRE(out_E.numel() % kNf4Block == 0 && out_E.is_contiguous(),
                 "{}: out must be contiguous, a multiple of {} values, got {}", kOp, kNf4Block,
                 describe(out_E));
  bytes("codes", part.codes, out_E.numel() / 2);
  bytes("scales", part.scales_B, blocks);
  check_fp32_flat(kOp, "dynamic_map", part.dynamic_map, kNf4MapSize, out_E);
  check_fp32_flat(kOp, "groups", part.groups_G, part.groups_G.numel(), out_E);
  HEARTH_REQUIRE(part.place.first >= 0 && part.place.run > 0 &&
                     (blocks == 0 || in_tensor(part.place, blocks - 1) / kNf4Group < part.groups_G.numel()),
                 "{}: blocks of {} lie outside a tensor of {} groups", kOp, describe(out_E),
                 part.groups_G.numel());
}

#ifdef HEARTH_CUDA
void dequantize_cuda(const Nf4Part& part, at::Tensor& out_E) {
  const CudaScope scope(out_E);
  nf4_dequantize({.dtype = kernel_dtype(out_E),
                  .codes = part.codes.const_data_ptr<uint8_t>(),
                  .scales = part.scales_B.const_data_ptr<uint8_t>(),
                  .groups = part.groups_G.const_data_ptr<float>(),
                  .dynamic_map = part.dynamic_map.const_data_ptr<float>(),
                  .mean = part.mean,
                  .out = out_E.data_ptr(),
                  .count = out_E.numel(),
                  .first = part.place.first,
                  .run = part.place.run,
                  .stride = part.place.stride},
                 scope.stream());
}
#endif

}  // namespace

Nf4Values nf4_quantize_op(const at::Tensor& values_E) {
  check_host_floats("nf4_quantize", values_E);
  HEARTH_REQUIRE(values_E.numel() % kNf4Block == 0, "nf4_quantize: needs a multiple of {} values, got {}",
                 kNf4Block, values_E.numel());
  const int64_t blocks = values_E.numel() / kNf4Block;
  Nf4Values out{at::empty({values_E.numel() / 2}, values_E.options().dtype(at::kByte)),
                at::empty({blocks}, values_E.options())};
  const float* x = values_E.const_data_ptr<float>();
  auto* codes = out.codes.data_ptr<uint8_t>();
  auto* absmax = out.absmax_B.data_ptr<float>();
  at::parallel_for(0, blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      absmax[b] = largest(x + b * kNf4Block, kNf4Block);
      block_codes(x + b * kNf4Block, absmax[b], codes + b * kNf4Block / 2);
    }
  });
  HEARTH_CHECK(std::isfinite(largest(absmax, blocks)), BadInput,
               "nf4_quantize: among {} weights some are not finite; they cannot be quantised",
               values_E.numel());
  return out;
}

at::Tensor nf4_dynamic_map() {
  std::vector<float> values{0.0f, 1.0f};
  for (int bits = 0; bits < 7; ++bits) {
    const at::Tensor bounds = at::linspace(0.1, 1.0, (int64_t{1} << bits) + 1, at::kFloat);
    const at::Tensor middles = bounds.slice(0, 0, -1).add(bounds.slice(0, 1)).div(2.0);
    const at::Tensor scaled = middles.mul(std::pow(10.0, bits - 6));
    for (int64_t i = 0; i < scaled.numel(); ++i) {
      const float value = scaled.const_data_ptr<float>()[i];
      values.insert(values.end(), {value, -value});
    }
  }
  std::sort(values.begin(), values.end());
  return at::tensor(values, at::kFloat);
}

Nf4Scales nf4_quantize_scales_op(const at::Tensor& absmax_B) {
  check_host_floats("nf4_quantize_scales", absmax_B);
  const int64_t blocks = absmax_B.numel(), count = (blocks + kNf4Group - 1) / kNf4Group;
  HEARTH_REQUIRE(blocks > 0, "nf4_quantize_scales: needs at least one block");
  const float* absmax = absmax_B.const_data_ptr<float>();
  // One after the other: the ranks of a job, with whatever number of threads, must find the same codes.
  const double sum = std::accumulate(absmax, absmax + blocks, 0.0);
  Nf4Scales out{at::empty({blocks}, absmax_B.options().dtype(at::kByte)),
                at::empty({count}, absmax_B.options()),
                static_cast<float>(sum / static_cast<double>(blocks))};
  const at::Tensor rest_B = absmax_B.sub(out.mean), map = nf4_dynamic_map();
  const at::Tensor bounds = map.slice(0, 0, -1).add(map.slice(0, 1)).div(2.0);
  const float *rest = rest_B.const_data_ptr<float>(), *first = bounds.const_data_ptr<float>();
  for (int64_t g = 0; g < count; ++g) {
    const int64_t begin = g * kNf4Group, end = std::min(blocks, begin + kNf4Group);
    const float most = largest(rest + begin, end - begin), inverse = 1.0f / std::max(most, kSmallestScale);
    out.groups_G.data_ptr<float>()[g] = most;
    for (int64_t b = begin; b < end; ++b) {
      const float scaled = std::min(std::max(rest[b] * inverse, -1.0f), 1.0f);
      out.codes_B.data_ptr<uint8_t>()[b] =
          static_cast<uint8_t>(std::lower_bound(first, first + bounds.numel(), scaled) - first);
    }
  }
  return out;
}

void nf4_dequantize_op(const Nf4Part& part, at::Tensor& out_E, KernelPath path) {
  check_part(part, out_E);
  if (path == KernelPath::Plain) return dequantize_plain(part, out_E);
#ifdef HEARTH_CUDA
  if (out_E.is_cuda()) return dequantize_cuda(part, out_E);
#endif
  dequantize_cpu(part, out_E);
}

}  // namespace hearth::kernels
