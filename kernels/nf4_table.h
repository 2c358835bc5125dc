// The 4-bit NormalFloat data type (Dettmers et al. 2023, "QLoRA", section 3 and appendix E): quantiles of the
// standard normal distribution, normalised to [-1, 1], with an exact zero. For host and device code.
#pragma once

namespace hearth::kernels {

constexpr int kNf4Codes = 16;
constexpr int kNf4Block = 64;   // values with one scale
constexpr int kNf4Group = 256;  // scales with one scale of their own
constexpr int kNf4MapSize = 256;  // 8-bit codes of scales

struct Nf4Levels {
  float value[kNf4Codes];
};
// Ascending.
constexpr Nf4Levels kNf4Levels = {{-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
                                   -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
                                   0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f,
                                   0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                                   0.7229568362236023f, 1.0f}};

}  // namespace hearth::kernels
