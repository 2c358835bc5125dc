// How activations cross a tensor-parallel group: the two operators of Megatron-LM's tensor and sequence
// parallelism (Shoeybi et al. 2019; Korthikanti et al. 2022). Activations are [rows, width]. With sequence
// parallelism a rank holds a contiguous 1/size of the rows between the parallel linears: gather() before a
// column-parallel linear, sum() behind a row-parallel one. Without it every rank holds all rows: gather() is
// nothing and sum() an all-reduce. On one rank both are nothing. Backward is written out by the callers: the
// backward of gather() is sum() and the other way round. Borrows the communicator. All ranks of the group
// make the same calls. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <utility>

#include "parallel/comm.h"

namespace hearth {

enum class SequenceParallel { Off, On };

// Rows under way. wait() orders the result before later work of the compute stream; then the tensor may be
// read.
class PendingRows {
 public:
  explicit PendingRows(at::Tensor ready) : result_(std::move(ready)) {}
  PendingRows(at::Tensor input, at::Tensor result, WorkPtr work)
      : input_(std::move(input)), result_(std::move(result)), work_(std::move(work)) {}
  at::Tensor wait();

 private:
  at::Tensor input_, result_;  // alive until the transfer is done
  WorkPtr work_;
};

class RowCollectives {
 public:
  RowCollectives() = default;  // one rank
  RowCollectives(Comm& comm, SequenceParallel sequence_parallel) : comm_(&comm), mode_(sequence_parallel) {}

  // Returns the mode before.
  SequenceParallel set_mode(SequenceParallel mode) { return std::exchange(mode_, mode); }
  int64_t size() const { return comm_ == nullptr ? 1 : comm_->size(); }
  int64_t rank() const { return comm_ == nullptr ? 0 : comm_->rank(); }
  bool splits_rows() const { return size() > 1 && mode_ == SequenceParallel::On; }
  // Rows of one rank out of `rows` of the micro-batch. Error{Config} where they do not divide.
  int64_t local_rows(int64_t rows) const;

  // [n, width] -> all rows, in rank order.
  PendingRows gather(const at::Tensor& rows_ND, std::string_view site) const;
  // [rows, width], this rank's addend -> the sum, of this rank's rows. `rows_ND` may be overwritten.
  PendingRows sum(const at::Tensor& rows_ND, std::string_view site) const;
  // [...] -> [size, ...], in rank order: small per-row statistics.
  at::Tensor gather_all(const at::Tensor& values, std::string_view site) const;

 private:
  Comm* comm_ = nullptr;
  SequenceParallel mode_ = SequenceParallel::Off;
};

}  // namespace hearth
