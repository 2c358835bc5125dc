// Samples of the data pipeline as tensors on the model's device.
#pragma once

#include <functional>
#include <vector>

#include "data/data_config.h"
#include "data/sampler.h"
#include "kernels/distillation_op.h"
#include "trainer/model/transformer.h"

namespace hearth {

struct MicroBatch {
  ModelInput input;
  at::Tensor targets_N;  // int64, -100 where the target does not count
  int64_t valid_targets =
      0;  // by which the sum of losses is divided; tokens, unless the objective counts otherwise
  // What some objectives add.
  at::Tensor documents_N;  // int64: which document of the micro-batch a row is of
  int64_t num_documents = 0;
  std::vector<bool> on_policy;  // per sample: it is Sample::on_policy. Empty: none is
  at::Tensor frozen;            // what a frozen model says of the rows, on ranks with the head
  // Waits for what is kept of a teacher's opinion of the rows; to be called once. Null: nothing is.
  std::function<kernels::KeptTeacher()> kept;
};

enum class DocumentMask { Yes, No };  // attention stops at document borders, or runs over the whole sample
inline DocumentMask document_mask(const DataConfig& data) {
  return data.reset_attention_mask ? DocumentMask::Yes : DocumentMask::No;
}

// Throws Error{BadInput} for a token id that the model does not have.
void require_known_ids(const Sample& sample, int64_t vocab_size);

// `samples` are of one length. A rank that shares sequences with others gets its positions of them. Throws as
// require_known_ids does.
MicroBatch make_micro_batch(const std::vector<Sample>& samples, DocumentMask mask, const Transformer& model);

}  // namespace hearth
