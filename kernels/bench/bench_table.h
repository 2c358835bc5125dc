// How `hearth bench kernels` measures and what it prints: medians of CUDA events over several input sets in
// rotation, so that the L2 cache does not serve them. On the current device and stream; builds with CUDA
// only. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace hearth::kernels {

using Body = std::function<void(int64_t set)>;  // runs the operation on input set number `set`

// Input sets of `bytes` each that are together several times as large as the cache.
int64_t sets_for(double bytes);

class Table {
 public:
  // Measures the rate of a large copy, then prints it and the heading. Rows are wanted of operations that
  // `filter` is in.
  explicit Table(std::string filter);
  bool wants(const std::string& op) const { return op.find(filter_) != std::string::npos; }

  template <class Make>
  static std::vector<at::Tensor> many(int64_t count, Make&& make) {
    std::vector<at::Tensor> out;
    for (int64_t i = 0; i < count; ++i) out.push_back(make());
    return out;
  }

  // A row has the rate in percent of a large copy's and of a copy's of as many bytes, measured alike.
  // Each measures `ours` and `aten`, which make sets_for(bytes) sets, and prints a row.
  void memory_row(const std::string& op, const std::string& shape, double bytes, const Body& ours,
                  const Body& aten);
  void compute_row(const std::string& op, const std::string& shape, double flops, double bytes,
                   const Body& ours, const Body& aten);

 private:
  std::string filter_;
  double copy_gbps_ = 0;
};

}  // namespace hearth::kernels
