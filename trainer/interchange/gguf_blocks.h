// Block formats of ggml tensors and their dequantisation to fp32.
// Layouts and formulas follow ggml's public block definitions (ggml-common.h) and agree bit for bit with the
// `gguf` Python package, against which the tests compare. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace hearth {

// Numbers are ggml's.
enum class GgufType : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  BF16 = 30,
};

struct GgufTypeInfo {
  std::string_view name;
  int64_t block_elements;  // values of one block
  int64_t block_bytes;
};

// Null for a type that Hearth does not read.
std::optional<GgufTypeInfo> gguf_type_info(uint32_t type);
// ggml's name of any type number it is known to use, for messages ("Q2_K", ...), else "type N".
std::string_view gguf_type_name(uint32_t type);

// Dequantises `blocks` blocks from `in` (blocks * block_bytes bytes) into `out` (blocks * block_elements
// floats).
void dequantise(GgufType type, const std::byte* in, int64_t blocks, float* out);

}  // namespace hearth
