#include "kernels/embedding_op.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <limits>

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

bool is_in(int64_t id, int64_t first_id, int64_t rows) {
  return id >= first_id && id < first_id + rows;
}

at::Tensor forward_cpu(const at::Tensor& table_RD, const at::Tensor& ids_N, int64_t first_id) {
  const int64_t count = ids_N.numel(), rows = table_RD.size(0), width = table_RD.size(1);
  const auto row_bytes = static_cast<size_t>(width * table_RD.element_size());
  at::Tensor out_ND = at::empty({count, width}, table_RD.options());
  const int64_t* ids = ids_N.const_data_ptr<int64_t>();
  const auto* table = static_cast<const char*>(table_RD.const_data_ptr());
  auto* out = static_cast<char*>(out_ND.data_ptr());
  at::parallel_for(0, count, cpu::grain_rows(width), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      char* to = out + static_cast<size_t>(n) * row_bytes;
      if (is_in(ids[n], first_id, rows))
        std::memcpy(to, table + static_cast<size_t>(ids[n] - first_id) * row_bytes, row_bytes);
      else
        std::memset(to, 0, row_bytes);  // all bits zero is 0 in both dtypes
    }
  });
  return out_ND;
}

// Threads split the columns, so every row's contributions are added in token order whatever their number.
void backward_cpu(const at::Tensor& dy_in, const at::Tensor& ids_N, int64_t first_id, at::Tensor& dtable_RD) {
  const at::Tensor dy_ND = widen(dy_in);
  const int64_t count = ids_N.numel(), rows = dtable_RD.size(0), width = dy_ND.size(1);
  const int64_t* ids = ids_N.const_data_ptr<int64_t>();
  const float* dy = dy_ND.const_data_ptr<float>();
  float* table = dtable_RD.data_ptr<float>();
  const int64_t grain = std::max(cpu::kLanes, cpu::kGrainElements / std::max<int64_t>(1, count));
  at::parallel_for(0, width, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < count; ++n)
      if (is_in(ids[n], first_id, rows))
        add_row(dy + n * width + begin, table + (ids[n] - first_id) * width + begin, end - begin);
  });
}

// Rows of the table for the ids, and which ids have none: those get row 0, which must exist.
struct TableRows {
  at::Tensor row_N, absent_N;
};
TableRows table_rows(const at::Tensor& ids_N, int64_t first_id, int64_t rows) {
  const at::Tensor absent = ids_N.lt(first_id).logical_or_(ids_N.ge(first_id + rows));
  return {ids_N.sub(first_id).masked_fill_(absent, 0), absent};
}

at::Tensor range_forward_plain(const at::Tensor& table_RD, const at::Tensor& ids_N, int64_t first_id) {
  if (table_RD.size(0) == 0) return at::zeros({ids_N.numel(), table_RD.size(1)}, table_RD.options());
  const TableRows found = table_rows(ids_N, first_id, table_RD.size(0));
  return table_RD.index_select(0, found.row_N).masked_fill_(found.absent_N.unsqueeze(1), 0.0);
}

void range_backward_plain(const at::Tensor& dy_ND, const at::Tensor& ids_N, int64_t first_id,
                          at::Tensor& dtable_RD) {
  if (dtable_RD.size(0) == 0) return;
  const TableRows found = table_rows(ids_N, first_id, dtable_RD.size(0));
  const at::Tensor rows_ND = dy_ND.to(at::kFloat).masked_fill(found.absent_N.unsqueeze(1), 0.0);
  on_wide_sum(dtable_RD, [&](at::Tensor& sum) { sum.index_add_(0, found.row_N, rows_ND); });
}

#ifdef HEARTH_CUDA
at::Tensor forward_cuda(const at::Tensor& table_RD, const at::Tensor& ids_N, int64_t first_id, float absent) {
  const CudaScope scope(table_RD);
  at::Tensor out_ND = at::empty({ids_N.numel(), table_RD.size(1)}, table_RD.options());
  embedding_forward({.dtype = kernel_dtype(table_RD),
                     .table = table_RD.const_data_ptr(),
                     .ids = ids_N.const_data_ptr(),
                     .ids_dtype = kernel_dtype(ids_N),
                     .out = out_ND.data_ptr(),
                     .tokens = ids_N.numel(),
                     .vocab = table_RD.size(0),
                     .width = table_RD.size(1),
                     .first_id = first_id,
                     .absent = absent},
                    scope.stream());
  return out_ND;
}

void backward_cuda(const at::Tensor& dy_ND, const at::Tensor& ids_N, int64_t first_id,
                   at::Tensor& dtable_RD) {
  const CudaScope scope(dy_ND);
  const auto [sorted, order] = at::sort(ids_N, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  embedding_backward({.dtype = kernel_dtype(dy_ND),
                      .dy = dy_ND.const_data_ptr(),
                      .sorted_ids = sorted.const_data_ptr<int64_t>(),
                      .tokens_of = order.const_data_ptr<int64_t>(),
                      .dtable_accum = dtable_RD.data_ptr(),
                      .accum_dtype = kernel_dtype(dtable_RD),
                      .tokens = ids_N.numel(),
                      .vocab = dtable_RD.size(0),
                      .width = dtable_RD.size(1),
                      .first_id = first_id},
                     scope.stream());
}
#endif

// Checks the inputs and returns the ids as int64 [N].
at::Tensor check_forward(const char* op, const at::Tensor& table_RD, const at::Tensor& ids_N) {
  check_activation(op, "table", table_RD, 2);
  HEARTH_REQUIRE(table_RD.is_contiguous(), "{}: table must be contiguous, got {}", op, describe(table_RD));
  HEARTH_REQUIRE(ids_N.defined(), "{}: ids are undefined", op);
  check_ids(op, "ids", ids_N, ids_N.numel(), table_RD);
  return ids_N.to(at::kLong).view({-1});
}

at::Tensor check_backward(const char* op, const at::Tensor& dy_ND, const at::Tensor& ids_N,
                          const at::Tensor& dtable_RD) {
  check_activation(op, "dy", dy_ND, 2);
  HEARTH_REQUIRE(dy_ND.is_contiguous(), "{}: dy must be contiguous, got {}", op, describe(dy_ND));
  check_ids(op, "ids", ids_N, dy_ND.size(0), dy_ND);
  HEARTH_REQUIRE(dtable_RD.defined() && dtable_RD.dim() == 2 && dtable_RD.size(1) == dy_ND.size(1),
                 "{}: the accumulator must be [rows, {}], got {}", op, dy_ND.size(1), describe(dtable_RD));
  check_state(op, "dtable_accum", dtable_RD, dtable_RD.numel(), dy_ND);
  return ids_N.to(at::kLong).view({-1});
}

void check_first_id(const char* op, int64_t first_id) {
  HEARTH_REQUIRE(first_id >= 0, "{}: first_id must be >= 0, got {}", op, first_id);
}

}  // namespace

at::Tensor embedding_forward_op(const at::Tensor& table_VD, const at::Tensor& ids_N, KernelPath path) {
  constexpr const char* kOp = "embedding_forward";
  const at::Tensor ids = check_forward(kOp, table_VD, ids_N);
  if (table_VD.is_cpu()) check_ids_cpu(kOp, ids, table_VD.size(0));
  if (path == KernelPath::Plain) return table_VD.index_select(0, ids);
#ifdef HEARTH_CUDA
  if (table_VD.is_cuda())
    return forward_cuda(table_VD, ids, /*first_id=*/0, std::numeric_limits<float>::quiet_NaN());
#endif
  return forward_cpu(table_VD, ids, /*first_id=*/0);
}

void embedding_backward_op(const at::Tensor& dy_ND, const at::Tensor& ids_N, at::Tensor& dtable_accum_VD,
                           KernelPath path) {
  constexpr const char* kOp = "embedding_backward";
  const at::Tensor ids = check_backward(kOp, dy_ND, ids_N, dtable_accum_VD);
  if (dy_ND.is_cpu()) check_ids_cpu(kOp, ids, dtable_accum_VD.size(0));
  if (path == KernelPath::Plain) {
    return on_wide_sum(dtable_accum_VD,
                       [&](at::Tensor& sum) { sum.index_add_(0, ids, dy_ND.to(at::kFloat)); });
  }
#ifdef HEARTH_CUDA
  if (dy_ND.is_cuda()) return backward_cuda(dy_ND, ids, /*first_id=*/0, dtable_accum_VD);
#endif
  on_wide_sum(dtable_accum_VD, [&](at::Tensor& sum) { backward_cpu(dy_ND, ids, /*first_id=*/0, sum); });
}

at::Tensor embedding_range_forward_op(const at::Tensor& table_RD, const at::Tensor& ids_N, int64_t first_id,
                                      KernelPath path) {
  constexpr const char* kOp = "embedding_range_forward";
  const at::Tensor ids = check_forward(kOp, table_RD, ids_N);
  check_first_id(kOp, first_id);
  if (path == KernelPath::Plain) return range_forward_plain(table_RD, ids, first_id);
#ifdef HEARTH_CUDA
  if (table_RD.is_cuda()) return forward_cuda(table_RD, ids, first_id, /*absent=*/0.0f);
#endif
  return forward_cpu(table_RD, ids, first_id);
}

void embedding_range_backward_op(const at::Tensor& dy_ND, const at::Tensor& ids_N, int64_t first_id,
                                 at::Tensor& dtable_accum_RD, KernelPath path) {
  constexpr const char* kOp = "embedding_range_backward";
  const at::Tensor ids = check_backward(kOp, dy_ND, ids_N, dtable_accum_RD);
  check_first_id(kOp, first_id);
  if (path == KernelPath::Plain) return range_backward_plain(dy_ND, ids, first_id, dtable_accum_RD);
#ifdef HEARTH_CUDA
  if (dy_ND.is_cuda()) return backward_cuda(dy_ND, ids, first_id, dtable_accum_RD);
#endif
  on_wide_sum(dtable_accum_RD, [&](at::Tensor& sum) { backward_cpu(dy_ND, ids, first_id, sum); });
}

}  // namespace hearth::kernels
