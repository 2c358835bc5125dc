// The angles of a thread's pairs, for the kernels that rotate. For .cu files only.
#pragma once

#include "kernels/cuda_device.cuh"
#include "kernels/rope.h"

namespace hearth::kernels {

// cos and sin of kVec pairs of one position, from pair `first` on; cos is NaN for a position that the table
// lacks.
template <int kVec>
struct Angles {
  float cosine[kVec], sine[kVec];
};

// Rotates by `sign` times the angle. kVec is 1, or the table's rows are aligned to 16 bytes.
template <int kVec>
__device__ __forceinline__ Angles<kVec> read_angles(const RopeAngles& a, int64_t token, int64_t half,
                                                    int first, float sign) {
  constexpr int kPart = kVec < 4 ? kVec : 4;
  const int64_t position = read_id(a.positions, a.positions_dtype == DType::I64, token);
  const bool valid = position >= 0 && position < a.num_positions;
  const int64_t offset = (valid ? position * half : 0) + first;
  Angles<kVec> angles;
#pragma unroll
  for (int part = 0; part < kVec; part += kPart) {
    const auto cosine = load<float, kPart>(a.cosine + offset + part);
    const auto sine = load<float, kPart>(a.sine + offset + part);
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
      angles.cosine[part + i] = valid ? cosine.at[i] : __int_as_float(0x7fffffff);
      angles.sine[part + i] = sign * sine.at[i];
    }
  }
  return angles;
}

}  // namespace hearth::kernels
