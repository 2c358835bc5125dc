// Written by make_nf4_golden.py with bitsandbytes. Digests are FNV-1a.
#pragma once

#include <cstdint>

namespace hearth::testing {

constexpr int kGoldenBlocks = 600;
constexpr uint64_t kGoldenCodes = 0x87cfb4473cfd31dfULL;
constexpr uint64_t kGoldenScales = 0xe95b08101fd25d6bULL;
constexpr uint64_t kGoldenMap = 0xd677f22a96665bc4ULL;
constexpr uint64_t kGoldenValues = 0xdf90c5535bcae97fULL;
constexpr float kGoldenMean = 0x1.2a56520000000p-1f;
constexpr float kGoldenGroups[] = {0x1.232e060000000p-1f, 0x1.24d7760000000p-1f, 0x1.2256d20000000p-1f};

}  // namespace hearth::testing
