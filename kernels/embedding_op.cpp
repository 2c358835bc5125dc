#include "kernels/embedding_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu_simd.h"
#ifdef HEARTH_CUDA
#include "kernels/cuda_scope.h"
#include "kernels/embedding.h"
#endif

namespace hearth::kernels {
namespace {

HEARTH_CPU_CLONES void add_row(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] += x[i];
}

void check_ids_cpu(const char* op, const at::Tensor& ids_N, int64_t vocab) {
  const int64_t* ids = ids_N.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < ids_N.numel(); ++n)
    HEARTH_REQUIRE(ids[n] >= 0 && ids[n] < vocab, "{}: token id {} at {} is outside the vocabulary of {}", op,
                   ids[n], n, vocab);
}

at::Tensor forward_cpu(const at::Tensor& table_VD, const at::Tensor& ids_N) {
  const int64_t count = ids_N.numel(), width = table_VD.size(1);
  const int64_t row_bytes = width * table_VD.element_size();
  at::Tensor out_ND = at::empty({count, width}, table_VD.options());
  const int64_t* ids = ids_N.const_data_ptr<int64_t>();
  const auto* table = static_cast<const char*>(table_VD.const_data_ptr());
  auto* out = static_cast<char*>(out_ND.data_ptr());
  at::parallel_for(0, count, cpu::grain_rows(width), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      std::memcpy(out + n * row_bytes, table + ids[n] * row_bytes, static_cast<size_t>(row_bytes));
  });
  return out_ND;
}

// Threads split the columns, so every row's contributions are added in token order whatever their number.
void backward_cpu(const at::Tensor& dy_in, const at::Tensor& ids_N, at::Tensor& dtable_VD) {
  const at::Tensor dy_ND = widen(dy_in);
  const int64_t count = ids_N.numel(), width = dy_ND.size(1);
  const int64_t* ids = ids_N.const_data_ptr<int64_t>();
  const float* dy = dy_ND.const_data_ptr<float>();
  float* table = dtable_VD.data_ptr<float>();
  const int64_t grain = std::max(cpu::kLanes, cpu::kGrainElements / std::max<int64_t>(1, count));
  at::parallel_for(0, width, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < count; ++n)
      add_row(dy + n * width + begin, table + ids[n] * width + begin, end - begin);
  });
}

#ifdef HEARTH_CUDA
at::Tensor forward_cuda(const at::Tensor& table_VD, const at::Tensor& ids_N) {
  const CudaScope scope(table_VD);
  at::Tensor out_ND = at::empty({ids_N.numel(), table_VD.size(1)}, table_VD.options());
  embedding_forward({.dtype = kernel_dtype(table_VD),
                     .table = table_VD.const_data_ptr(),
                     .ids = ids_N.const_data_ptr(),
                     .ids_dtype = kernel_dtype(ids_N),
                     .out = out_ND.data_ptr(),
                     .tokens = ids_N.numel(),
                     .vocab = table_VD.size(0),
                     .width = table_VD.size(1)},
                    scope.stream());
  return out_ND;
}

void backward_cuda(const at::Tensor& dy_ND, const at::Tensor& ids_N, at::Tensor& dtable_VD) {
  const CudaScope scope(dy_ND);
  const auto [sorted, order] = at::sort(ids_N, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  embedding_backward({.dtype = kernel_dtype(dy_ND),
                      .dy = dy_ND.const_data_ptr(),
                      .sorted_ids = sorted.const_data_ptr<int64_t>(),
                      .tokens_of = order.const_data_ptr<int64_t>(),
                      .dtable_accum = dtable_VD.data_ptr<float>(),
                      .tokens = ids_N.numel(),
                      .vocab = dtable_VD.size(0),
                      .width = dtable_VD.size(1)},
                     scope.stream());
}
#endif

}  // namespace

at::Tensor embedding_forward_op(const at::Tensor& table_VD, const at::Tensor& ids_N, KernelPath path) {
  check_activation("embedding_forward", "table", table_VD, 2);
  HEARTH_REQUIRE(table_VD.is_contiguous(), "embedding_forward: table must be contiguous, got {}",
                 describe(table_VD));
  HEARTH_REQUIRE(ids_N.defined(), "embedding_forward: ids are undefined");
  check_ids("embedding_forward", "ids", ids_N, ids_N.numel(), table_VD);
  const at::Tensor ids = ids_N.to(at::kLong).view({-1});
  if (table_VD.is_cpu()) check_ids_cpu("embedding_forward", ids, table_VD.size(0));
  if (path == KernelPath::Plain) return table_VD.index_select(0, ids);
#ifdef HEARTH_CUDA
  if (table_VD.is_cuda()) return forward_cuda(table_VD, ids);
#endif
  return forward_cpu(table_VD, ids);
}

void embedding_backward_op(const at::Tensor& dy_ND, const at::Tensor& ids_N, at::Tensor& dtable_accum_VD,
                           KernelPath path) {
  constexpr const char* kOp = "embedding_backward";
  check_activation(kOp, "dy", dy_ND, 2);
  HEARTH_REQUIRE(dy_ND.is_contiguous(), "{}: dy must be contiguous, got {}", kOp, describe(dy_ND));
  check_ids(kOp, "ids", ids_N, dy_ND.size(0), dy_ND);
  HEARTH_REQUIRE(
      dtable_accum_VD.defined() && dtable_accum_VD.dim() == 2 && dtable_accum_VD.size(1) == dy_ND.size(1),
      "{}: the accumulator must be [V, {}], got {}", kOp, dy_ND.size(1), describe(dtable_accum_VD));
  check_fp32_flat(kOp, "dtable_accum", dtable_accum_VD, dtable_accum_VD.numel(), dy_ND);
  const at::Tensor ids = ids_N.to(at::kLong).view({-1});
  if (dy_ND.is_cpu()) check_ids_cpu(kOp, ids, dtable_accum_VD.size(0));
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && dy_ND.is_cuda()) return backward_cuda(dy_ND, ids, dtable_accum_VD);
#endif
  if (path == KernelPath::Plain) {
    dtable_accum_VD.index_add_(0, ids, dy_ND.to(at::kFloat));
    return;
  }
  backward_cpu(dy_ND, ids, dtable_accum_VD);
}

}  // namespace hearth::kernels
