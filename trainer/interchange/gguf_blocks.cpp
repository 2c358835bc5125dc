#include "trainer/interchange/gguf_blocks.h"

#include <array>
#include <bit>
#include <cstring>

#include "base/dtype.h"
#include "base/error.h"

namespace hearth {
namespace {

static_assert(std::endian::native == std::endian::little, "blocks are read as they lie in the file");

constexpr int64_t kSmall = 32;   // values of a Q4_0 ... Q8_0 block
constexpr int64_t kSuper = 256;  // values of a K block

struct TypeName {
  uint32_t number;
  std::string_view name;
};
constexpr TypeName kTypeNames[] = {
    {0, "F32"},     {1, "F16"},    {2, "Q4_0"},     {3, "Q4_1"},    {6, "Q5_0"},     {7, "Q5_1"},
    {8, "Q8_0"},    {9, "Q8_1"},   {10, "Q2_K"},    {11, "Q3_K"},   {12, "Q4_K"},    {13, "Q5_K"},
    {14, "Q6_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
    {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"}, {24, "I8"},      {25, "I16"},
    {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},  {30, "BF16"},    {34, "TQ1_0"},
    {35, "TQ2_0"},  {39, "MXFP4"}};

uint8_t byte_at(const std::byte* p, int64_t i) {
  return std::to_integer<uint8_t>(p[i]);
}
float half_at(const std::byte* p) {
  uint16_t bits = 0;
  std::memcpy(&bits, p, 2);
  return fp16_to_float(bits);
}
uint32_t word_at(const std::byte* p) {
  uint32_t bits = 0;
  std::memcpy(&bits, p, 4);
  return bits;
}

// Q4_0: d fp16, 16 bytes; low nibbles are values 0..15, high nibbles 16..31. y = d (q - 8).
void q4_0(const std::byte* in, float* out) {
  const float d = half_at(in);
  for (int64_t i = 0; i < 16; ++i) {
    const int q = byte_at(in + 2, i);
    out[i] = d * static_cast<float>((q & 15) - 8);
    out[i + 16] = d * static_cast<float>((q >> 4) - 8);
  }
}

// Q4_1: d, m fp16. y = d q + m.
void q4_1(const std::byte* in, float* out) {
  const float d = half_at(in), m = half_at(in + 2);
  for (int64_t i = 0; i < 16; ++i) {
    const int q = byte_at(in + 4, i);
    out[i] = d * static_cast<float>(q & 15) + m;
    out[i + 16] = d * static_cast<float>(q >> 4) + m;
  }
}

// The fifth bits of a Q5 block: bit i of `high` belongs to value i.
int fifth(uint32_t high, int64_t i) {
  return static_cast<int>((high >> i) & 1u) << 4;
}

// Q5_0: d fp16, 32 fifth bits, 16 bytes. y = d (q - 16).
void q5_0(const std::byte* in, float* out) {
  const float d = half_at(in);
  const uint32_t high = word_at(in + 2);
  for (int64_t i = 0; i < 16; ++i) {
    const int q = byte_at(in + 6, i);
    out[i] = d * static_cast<float>(((q & 15) | fifth(high, i)) - 16);
    out[i + 16] = d * static_cast<float>(((q >> 4) | fifth(high, i + 16)) - 16);
  }
}

// Q5_1: d, m fp16, 32 fifth bits, 16 bytes. y = d q + m.
void q5_1(const std::byte* in, float* out) {
  const float d = half_at(in), m = half_at(in + 2);
  const uint32_t high = word_at(in + 4);
  for (int64_t i = 0; i < 16; ++i) {
    const int q = byte_at(in + 8, i);
    out[i] = d * static_cast<float>((q & 15) | fifth(high, i)) + m;
    out[i + 16] = d * static_cast<float>((q >> 4) | fifth(high, i + 16)) + m;
  }
}

// Q8_0: d fp16, 32 signed bytes. y = d q.
void q8_0(const std::byte* in, float* out) {
  const float d = half_at(in);
  for (int64_t i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(byte_at(in + 2, i))) * d;
}

// The eight 6-bit scales and minima of a Q4_K or Q5_K block, packed into 12 bytes: the first four of each lie
// in the low six bits of bytes 0-3 and 4-7, whose top two bits complete the nibbles of bytes 8-11 to the last
// four.
struct SuperScales {
  std::array<float, 8> scale, minimum;
};
SuperScales super_scales(const std::byte* in, const std::byte* packed) {
  const float d = half_at(in), dmin = half_at(in + 2);
  SuperScales out{};
  for (int64_t j = 0; j < 8; ++j) {
    int scale = 0, minimum = 0;
    if (j < 4) {
      scale = byte_at(packed, j) & 63;
      minimum = byte_at(packed, j + 4) & 63;
    } else {
      scale = (byte_at(packed, j + 4) & 15) | ((byte_at(packed, j - 4) >> 6) << 4);
      minimum = (byte_at(packed, j + 4) >> 4) | ((byte_at(packed, j) >> 6) << 4);
    }
    out.scale[static_cast<size_t>(j)] = d * static_cast<float>(scale);
    out.minimum[static_cast<size_t>(j)] = dmin * static_cast<float>(minimum);
  }
  return out;
}

// Q4_K: d, dmin fp16, 12 bytes of scales, 128 bytes. Each 32 bytes hold two groups of 32: low nibbles, then
// high. y = (d scale) q - (dmin minimum).
void q4_k(const std::byte* in, float* out) {
  const SuperScales s = super_scales(in, in + 4);
  const std::byte* quants = in + 16;
  for (size_t group = 0; group < 8; ++group) {
    const std::byte* bytes = quants + 32 * (group / 2);
    const int shift = group % 2 == 0 ? 0 : 4;
    for (int64_t i = 0; i < 32; ++i)
      *out++ = s.scale[group] * static_cast<float>((byte_at(bytes, i) >> shift) & 15) - s.minimum[group];
  }
}

// Q5_K: as Q4_K with 32 more bytes before the nibbles: bit g of byte i is the fifth bit of value i of group
// g.
void q5_k(const std::byte* in, float* out) {
  const SuperScales s = super_scales(in, in + 4);
  const std::byte* high = in + 16;
  const std::byte* quants = in + 48;
  for (size_t group = 0; group < 8; ++group) {
    const std::byte* bytes = quants + 32 * (group / 2);
    const int shift = group % 2 == 0 ? 0 : 4;
    for (int64_t i = 0; i < 32; ++i) {
      const int q = ((byte_at(bytes, i) >> shift) & 15) | (((byte_at(high, i) >> group) & 1) << 4);
      *out++ = s.scale[group] * static_cast<float>(q) - s.minimum[group];
    }
  }
}

// Q6_K: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, d fp16. Each half of 128
// values takes 64 low and 32 high bytes; its four runs of 32 use (low bytes 0-31, nibble 0), (32-63, 0),
// (0-31, 1), (32-63, 1) and the high bytes' bit pairs 0 to 3. One scale per 16 values. y = (d scale) (q -
// 32).
void q6_k(const std::byte* in, float* out) {
  const std::byte* low = in;
  const std::byte* high = in + 128;
  const std::byte* scales = in + 192;
  const float d = half_at(in + 208);
  for (int64_t run = 0; run < 8; ++run) {
    const int64_t half = run / 4, quarter = run % 4;
    const std::byte* nibbles = low + 64 * half + 32 * (quarter % 2);
    const std::byte* pairs = high + 32 * half;
    for (int64_t i = 0; i < 32; ++i) {
      const auto scale = static_cast<int8_t>(byte_at(scales, 2 * run + i / 16));
      const int q = ((byte_at(nibbles, i) >> (4 * (quarter / 2))) & 15) |
                    (((byte_at(pairs, i) >> (2 * quarter)) & 3) << 4);
      *out++ = (d * static_cast<float>(scale)) * static_cast<float>(q - 32);
    }
  }
}

using BlockFunction = void (*)(const std::byte*, float*);
BlockFunction block_function(GgufType type) {
  switch (type) {
    case GgufType::Q4_0:
      return q4_0;
    case GgufType::Q4_1:
      return q4_1;
    case GgufType::Q5_0:
      return q5_0;
    case GgufType::Q5_1:
      return q5_1;
    case GgufType::Q8_0:
      return q8_0;
    case GgufType::Q4_K:
      return q4_k;
    case GgufType::Q5_K:
      return q5_k;
    case GgufType::Q6_K:
      return q6_k;
    default:
      fail(ErrorKind::Internal, "GGUF type {} has no blocks", static_cast<uint32_t>(type));
  }
}

}  // namespace

std::string_view gguf_type_name(uint32_t type) {
  for (const auto& entry : kTypeNames)
    if (entry.number == type) return entry.name;
  return "an unknown type";
}

std::optional<GgufTypeInfo> gguf_type_info(uint32_t type) {
  const auto info = [&](int64_t elements, int64_t bytes) {
    return std::optional(GgufTypeInfo{gguf_type_name(type), elements, bytes});
  };
  switch (static_cast<GgufType>(type)) {
    case GgufType::F32:
      return info(1, 4);
    case GgufType::F16:
    case GgufType::BF16:
      return info(1, 2);
    case GgufType::Q4_0:
      return info(kSmall, 18);
    case GgufType::Q4_1:
      return info(kSmall, 20);
    case GgufType::Q5_0:
      return info(kSmall, 22);
    case GgufType::Q5_1:
      return info(kSmall, 24);
    case GgufType::Q8_0:
      return info(kSmall, 34);
    case GgufType::Q4_K:
      return info(kSuper, 144);
    case GgufType::Q5_K:
      return info(kSuper, 176);
    case GgufType::Q6_K:
      return info(kSuper, 210);
  }
  return std::nullopt;
}

void dequantise(GgufType type, const std::byte* in, int64_t blocks, float* out) {
  switch (type) {
    case GgufType::F32:
      return convert(DType::F32, in, DType::F32, out, blocks);
    case GgufType::F16:
      return convert(DType::F16, in, DType::F32, out, blocks);
    case GgufType::BF16:
      return convert(DType::BF16, in, DType::F32, out, blocks);
    default:
      break;
  }
  const GgufTypeInfo info = *gguf_type_info(static_cast<uint32_t>(type));
  const BlockFunction block = block_function(type);
  for (int64_t b = 0; b < blocks; ++b) block(in + b * info.block_bytes, out + b * info.block_elements);
}

}  // namespace hearth
