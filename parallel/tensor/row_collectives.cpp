#include "parallel/tensor/row_collectives.h"

#include <ATen/ops/empty.h>

#include "base/error.h"
#include "parallel/tensor/tensor_dtype.h"

namespace hearth {
at::Tensor PendingRows::wait() {
  if (work_ != nullptr) {
    work_->wait();
    work_.reset();
    input_.reset();
  }
  return result_;
}

int64_t RowCollectives::local_rows(int64_t rows) const {
  if (!splits_rows()) return rows;
  HEARTH_CHECK(rows % size() == 0, Config,
               "sequence_parallel: {} rows of a micro-batch do not divide by tensor_model_parallel_size {}",
               rows, size());
  return rows / size();
}

PendingRows RowCollectives::gather(const at::Tensor& rows_ND, std::string_view site) const {
  if (!splits_rows()) return PendingRows(rows_ND);
  const at::Tensor send = rows_ND.contiguous();
  at::Tensor all = at::empty({send.size(0) * size(), send.size(1)}, send.options());
  WorkPtr work = comm_->all_gather(send.data_ptr(), all.data_ptr(), send.numel(), dtype_of(send), site);
  return {send, std::move(all), std::move(work)};
}

PendingRows RowCollectives::sum(const at::Tensor& rows_ND, std::string_view site) const {
  if (size() == 1) return PendingRows(rows_ND);
  const at::Tensor send = rows_ND.contiguous();
  if (!splits_rows()) {
    WorkPtr work = comm_->all_reduce(send.data_ptr(), send.numel(), dtype_of(send), ReduceOp::Sum, site);
    return {send, send, std::move(work)};
  }
  at::Tensor mine = at::empty({local_rows(send.size(0)), send.size(1)}, send.options());
  WorkPtr work = comm_->reduce_scatter(send.data_ptr(), mine.data_ptr(), mine.numel(), dtype_of(send), site);
  return {send, std::move(mine), std::move(work)};
}

at::Tensor RowCollectives::gather_all(const at::Tensor& values, std::string_view site) const {
  if (size() == 1) return values.unsqueeze(0);
  const at::Tensor send = values.contiguous();
  auto shape = send.sizes().vec();
  shape.insert(shape.begin(), size());
  at::Tensor all = at::empty(shape, send.options());
  comm_->all_gather(send.data_ptr(), all.data_ptr(), send.numel(), dtype_of(send), site)->wait();
  return all;
}

}  // namespace hearth
