#include "base/dtype.h"

#include <array>

#include "base/error.h"

namespace hearth {
namespace {
struct Names {
  DType dtype;
  std::string_view safetensors, config, torch;
};
constexpr std::array<Names, 10> kNames{{{DType::F64, "F64", "fp64", "float64"},
                                        {DType::F32, "F32", "fp32", "float32"},
                                        {DType::F16, "F16", "fp16", "float16"},
                                        {DType::BF16, "BF16", "bf16", "bfloat16"},
                                        {DType::I64, "I64", "int64", "int64"},
                                        {DType::I32, "I32", "int32", "int32"},
                                        {DType::I16, "I16", "int16", "int16"},
                                        {DType::I8, "I8", "int8", "int8"},
                                        {DType::U8, "U8", "uint8", "uint8"},
                                        {DType::Bool, "BOOL", "bool", "bool"}}};
const Names& names(DType dtype) {
  for (const auto& entry : kNames)
    if (entry.dtype == dtype) return entry;
  fail(ErrorKind::Internal, "dtype {} has no name", static_cast<int>(dtype));
}

template <class T>
T load(const void* base, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(base) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}
template <class T>
void store(void* base, int64_t index, T value) {
  std::memcpy(static_cast<char*>(base) + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

double read_element(DType dtype, const void* in, int64_t i) {
  switch (dtype) {
    case DType::F64:
      return load<double>(in, i);
    case DType::F32:
      return load<float>(in, i);
    case DType::F16:
      return fp16_to_float(load<uint16_t>(in, i));
    case DType::BF16:
      return bf16_to_float(load<uint16_t>(in, i));
    default:
      fail(ErrorKind::Usage, "cannot convert from {}", config_name(dtype));
  }
}
void write_element(DType dtype, void* out, int64_t i, double value) {
  switch (dtype) {
    case DType::F64:
      return store<double>(out, i, value);
    case DType::F32:
      return store<float>(out, i, static_cast<float>(value));
    case DType::F16:
      return store<uint16_t>(out, i, float_to_fp16(static_cast<float>(value)));
    case DType::BF16:
      return store<uint16_t>(out, i, float_to_bf16(static_cast<float>(value)));
    default:
      fail(ErrorKind::Usage, "cannot convert to {}", config_name(dtype));
  }
}
}  // namespace

std::string_view safetensors_name(DType dtype) {
  return names(dtype).safetensors;
}
std::string_view config_name(DType dtype) {
  return names(dtype).config;
}
std::string_view torch_name(DType dtype) {
  return names(dtype).torch;
}
std::optional<DType> dtype_from_safetensors(std::string_view text) {
  for (const auto& entry : kNames)
    if (entry.safetensors == text) return entry.dtype;
  return std::nullopt;
}
std::optional<DType> dtype_from_config(std::string_view text) {
  for (const auto& entry : kNames)
    if (entry.config == text || entry.torch == text) return entry.dtype;
  return std::nullopt;
}

float fp16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, mantissa = bits & 0x3ffu;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float subnormal = static_cast<float>(mantissa) * 0x1.0p-24f;
  return sign ? -subnormal : subnormal;
}

uint16_t float_to_fp16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 2^16 or more
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, rounded to even by the float addition
    const float scaled = std::bit_cast<float>(magnitude) + 0.5f;  // 0.5 has an ulp of 2^-24
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(scaled) - std::bit_cast<uint32_t>(0.5f)));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

void convert(DType from, const void* in, DType to, void* out, int64_t count) {
  if (count == 0) return;  // pointers may be null then, which memcpy forbids
  if (from == to) {
    std::memcpy(out, in, static_cast<size_t>(checked_mul(count, size_bytes(from))));
    return;
  }
  if (from == DType::BF16 && to == DType::F32) {  // the hot pair, kept vectorisable
    for (int64_t i = 0; i < count; ++i) store<float>(out, i, bf16_to_float(load<uint16_t>(in, i)));
    return;
  }
  if (from == DType::F32 && to == DType::BF16) {
    for (int64_t i = 0; i < count; ++i) store<uint16_t>(out, i, float_to_bf16(load<float>(in, i)));
    return;
  }
  for (int64_t i = 0; i < count; ++i) write_element(to, out, i, read_element(from, in, i));
}

}  // namespace hearth
