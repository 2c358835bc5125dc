#include "kernels/id_sort.h"

#include <bit>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "kernels/cuda_device.cuh"

namespace hearth::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kAlignment = 256;  // of the parts of the workspace: what cub asks of its own

__global__ void __launch_bounds__(kThreads)
    rows_and_tokens_kernel(const SortIdsArgs a, int32_t* rows, int32_t* tokens) {
  const int64_t n = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (n >= a.tokens) return;
  const int64_t id = read_id(a.ids, a.ids_dtype == DType::I64, n);
  const bool inside = id >= a.first_id && id < a.first_id + a.rows;
  rows[n] = static_cast<int32_t>(inside ? id - a.first_id : a.rows);
  tokens[n] = static_cast<int32_t>(n);
}

int64_t padded_bytes(int64_t tokens) {
  return (tokens * int64_t{sizeof(int32_t)} + kAlignment - 1) / kAlignment * kAlignment;
}

// With `storage` null it writes the size that cub wants to `bytes`, and enqueues nothing.
void run_cub(void* storage, size_t& bytes, const int32_t* rows, const int32_t* tokens, const SortIdsArgs& a,
             cudaStream_t stream) {
  const int bits = std::bit_width(static_cast<uint64_t>(a.rows));  // the largest key is a.rows
  HEARTH_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(storage, bytes, rows, a.sorted_rows, tokens, a.tokens_of,
                                                    static_cast<int>(a.tokens), 0, bits, stream));
}

size_t cub_bytes(const SortIdsArgs& args) {
  size_t bytes = 0;
  run_cub(nullptr, bytes, nullptr, nullptr, args, nullptr);
  return bytes;
}

void check_sizes(int64_t tokens, int64_t rows) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  require_launch(tokens <= kMost, "sort_ids", "there may be 2^31 - 1 tokens", tokens);
  require_launch(rows <= kMost, "sort_ids", "a table may have 2^31 - 1 rows", rows);
}

}  // namespace

int64_t sort_ids_workspace_bytes(int64_t tokens, int64_t rows) {
  check_sizes(tokens, rows);
  SortIdsArgs sizes{};
  sizes.tokens = tokens;
  sizes.rows = rows;
  return 2 * padded_bytes(tokens) + static_cast<int64_t>(cub_bytes(sizes));
}

void sort_ids(const SortIdsArgs& args, cudaStream_t stream) {
  check_sizes(args.tokens, args.rows);
  if (args.tokens == 0) return;
  auto* bytes = static_cast<char*>(args.workspace);
  auto* rows = reinterpret_cast<int32_t*>(bytes);
  auto* tokens = reinterpret_cast<int32_t*>(bytes + padded_bytes(args.tokens));
  rows_and_tokens_kernel<<<grid_size("sort_ids", (args.tokens + kThreads - 1) / kThreads), kThreads, 0,
                           stream>>>(args, rows, tokens);
  HEARTH_CUDA_CHECK(cudaGetLastError());
  size_t storage_bytes = cub_bytes(args);
  run_cub(bytes + 2 * padded_bytes(args.tokens), storage_bytes, rows, tokens, args, stream);
}

}  // namespace hearth::kernels
