// A TensorSource that shows exactly the parameters of a ModelConfig (parameter_specs: HF names, whole-model
// shapes), whatever the source beneath holds beside them. Thread-safe where the source beneath is.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/checkpoint/tensor_source.h"
#include "trainer/model/model_config.h"

namespace hearth {

// What a source may hold beyond the model's parameters.
enum class Extras {
  Refuse,  // an HF directory or GGUF: an unknown weight means another model
  Ignore,  // a checkpoint: optimizer state lies beside the weights
};

// Compares `raw` with parameter_specs(config) and throws one Error{BadInput} that lists what is missing,
// unexpected, wrongly shaped or not floating. Allowed differences:
//   * more rows in model.embed_tokens.weight and lm_head.weight where `extras` is Ignore: Hearth padded the
//   vocabulary for
//     its layout; the rows beyond vocab_size are cut;
//   * rotary buffers (*.rotary_emb.inv_freq, ...), which old exporters stored: ignored;
//   * lm_head.weight beside a tied embedding, when the two are equal element by element (read in pieces); a
//   different
//     one is an error, because serving it tied or untied would be another model.
std::unique_ptr<TensorSource> bind_parameters(const ModelConfig& config, std::unique_ptr<TensorSource> raw,
                                              Extras extras);

// Walks the elements of a tensor in pieces of at most `max_elements`, so that host memory stays bounded.
void for_each_piece(int64_t numel, int64_t max_elements,
                    const std::function<void(int64_t begin, int64_t end)>& visit);
inline constexpr int64_t kPieceElements = int64_t{1} << 22;  // 16 MB of fp32

// What stored_dtype() of a model is: the type of its matrices; F32 where they differ.
DType common_dtype(const TensorSource& source);

}  // namespace hearth
