// A host array as a tensor on a device, without a wait for what the device is doing: through pinned memory,
// which ATen keeps until the copy is done. Copies from other memory wait for all work that was queued before
// them.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

namespace hearth {

template <class T>
at::Tensor upload(const std::vector<T>& values, at::Device device) {
  const auto options = at::TensorOptions(c10::CppTypeToScalarType<T>::value).pinned_memory(device.is_cuda());
  at::Tensor host = at::empty({static_cast<int64_t>(values.size())}, options);
  std::copy(values.begin(), values.end(), host.template data_ptr<T>());
  return host.to(device, /*non_blocking=*/true);
}

}  // namespace hearth
