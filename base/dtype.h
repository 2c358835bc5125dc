// Element types that cross folder borders (comm, checkpoint files, kernels) without a torch header.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>

namespace hearth {

enum class DType { F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool };

constexpr int64_t size_bytes(DType dtype) {
  switch (dtype) {
    case DType::F64:
    case DType::I64:
      return 8;
    case DType::F32:
    case DType::I32:
      return 4;
    case DType::F16:
    case DType::BF16:
    case DType::I16:
      return 2;
    default:
      return 1;
  }
}

// The names of the safetensors format: "F32", "BF16", ...
std::string_view safetensors_name(DType dtype);
std::optional<DType> dtype_from_safetensors(std::string_view name);
// The names users write and config.json holds: "fp32"/"bf16"/"fp16" and "float32"/"bfloat16"/"float16".
std::optional<DType> dtype_from_config(std::string_view name);
std::string_view config_name(DType dtype);  // "fp32", "bf16", ...
std::string_view torch_name(DType dtype);   // "float32", "bfloat16", ...

inline float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(uint32_t{bits} << 16);
}
// Round to nearest even; NaN stays NaN (quiet).
inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
float fp16_to_float(uint16_t bits);
uint16_t float_to_fp16(float value);  // round to nearest even, overflow to infinity

// Converts `count` floating elements (F64, F32, F16, BF16) between types; same type is a copy. No aliasing.
// Throws Error{Usage} for a non-floating type that would need a conversion.
void convert(DType from, const void* in, DType to, void* out, int64_t count);

}  // namespace hearth
