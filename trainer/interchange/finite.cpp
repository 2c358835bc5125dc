#include "trainer/interchange/finite.h"

#include <cstring>

#include "base/error.h"

namespace hearth {
namespace {

// A value is not finite when all bits of its exponent are set.
template <class Bits>
int64_t scan(const void* data, int64_t count, Bits exponent) {
  const auto* bytes = static_cast<const char*>(data);
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    if ((bits & exponent) == exponent) return i;
  }
  return -1;
}

}  // namespace

int64_t first_non_finite(DType dtype, const void* data, int64_t count) {
  switch (dtype) {
    case DType::F64:
      return scan<uint64_t>(data, count, 0x7ff0000000000000u);
    case DType::F32:
      return scan<uint32_t>(data, count, 0x7f800000u);
    case DType::F16:
      return scan<uint16_t>(data, count, 0x7c00u);
    case DType::BF16:
      return scan<uint16_t>(data, count, 0x7f80u);
    default:
      fail(ErrorKind::Internal, "{} has no finite values to check", config_name(dtype));
  }
}

}  // namespace hearth
