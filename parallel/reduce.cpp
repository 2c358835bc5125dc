#include "parallel/reduce.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "base/error.h"

namespace hearth {
namespace {

// 4 KiB of fp32: the accumulator and one block of each input stay in the L1 cache.
constexpr int64_t kBlock = 1024;

template <class T>
void accumulate(T* acc, const T* x, int64_t n, ReduceOp op) {
  if (op == ReduceOp::Max) {
    for (int64_t i = 0; i < n; ++i) acc[i] = (x[i] > acc[i] || x[i] != x[i]) ? x[i] : acc[i];
  } else if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;  // signed overflow is undefined, wrapping is not
    for (int64_t i = 0; i < n; ++i) acc[i] = static_cast<T>(static_cast<U>(acc[i]) + static_cast<U>(x[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) acc[i] += x[i];
  }
}

template <class T>
void reduce_native(std::span<const void* const> in, void* out, int64_t count, ReduceOp op) {
  std::array<T, kBlock> acc;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    std::copy_n(static_cast<const T*>(in[0]) + begin, n, acc.data());
    for (const void* x : in.subspan(1)) accumulate(acc.data(), static_cast<const T*>(x) + begin, n, op);
    std::copy_n(acc.data(), n, static_cast<T*>(out) + begin);
  }
}

// Not base's convert(): that one goes element by element through double, which would dominate a bf16
// all-reduce.
struct Bf16 {
  static float load(uint16_t bits) { return bf16_to_float(bits); }
  static uint16_t store(float value) { return float_to_bf16(value); }
};
struct Fp16 {
  static float load(uint16_t bits) { return fp16_to_float(bits); }
  static uint16_t store(float value) { return float_to_fp16(value); }
};

template <class Half>
void reduce_half(std::span<const void* const> in, void* out, int64_t count, ReduceOp op) {
  std::array<float, kBlock> acc, x;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    std::transform(static_cast<const uint16_t*>(in[0]) + begin,
                   static_cast<const uint16_t*>(in[0]) + begin + n, acc.data(), Half::load);
    for (const void* next : in.subspan(1)) {
      const auto* from = static_cast<const uint16_t*>(next) + begin;
      std::transform(from, from + n, x.data(), Half::load);
      accumulate(acc.data(), x.data(), n, op);
    }
    std::transform(acc.data(), acc.data() + n, static_cast<uint16_t*>(out) + begin, Half::store);
  }
}

}  // namespace

bool is_reducible(DType dtype) {
  switch (dtype) {
    case DType::F64:
    case DType::F32:
    case DType::F16:
    case DType::BF16:
    case DType::I64:
    case DType::I32:
      return true;
    default:
      return false;
  }
}

void reduce_in_order(std::span<const void* const> in, void* out, int64_t count, DType dtype, ReduceOp op) {
  HEARTH_ASSERT(!in.empty());
  switch (dtype) {
    case DType::F64:
      return reduce_native<double>(in, out, count, op);
    case DType::F32:
      return reduce_native<float>(in, out, count, op);
    case DType::F16:
      return reduce_half<Fp16>(in, out, count, op);
    case DType::BF16:
      return reduce_half<Bf16>(in, out, count, op);
    case DType::I64:
      return reduce_native<int64_t>(in, out, count, op);
    case DType::I32:
      return reduce_native<int32_t>(in, out, count, op);
    default:
      fail(ErrorKind::Usage, "cannot reduce elements of type {}", safetensors_name(dtype));
  }
}

}  // namespace hearth
