#include "trainer/model/attention_backend.h"

#include <array>
#include <utility>

#include "kernels/attention_op.h"

namespace hearth {
namespace {

constexpr std::array<std::pair<std::string_view, AttentionBackend>, 4> kWords{
    {{"auto", AttentionBackend::Auto},
     {"cudnn", AttentionBackend::Cudnn},
     {"flash", AttentionBackend::Flash},
     {"aten", AttentionBackend::Aten}}};

bool runs(AttentionBackend backend, const AttentionRows& rows) {
  const bool half_on_gpu = rows.device.is_cuda() && rows.dtype == at::kBFloat16;
  switch (backend) {
    case AttentionBackend::Cudnn:
      return half_on_gpu && !rows.deterministic &&
             kernels::attention_is_fused(rows.dtype, rows.head_width, rows.sequence);
    case AttentionBackend::Flash:
      return half_on_gpu && rows.head_width % 8 == 0 && rows.head_width <= 256;
    default:
      return true;
  }
}

std::string_view word_of(AttentionBackend backend) {
  for (const auto& [word, named] : kWords)
    if (named == backend) return word;
  return "?";
}

}  // namespace

AttentionBackend attention_backend_from_config(std::string_view word) {
  for (const auto& [known, backend] : kWords)
    if (known == word) return backend;
  fail(ErrorKind::Config, "training.attention_backend: must be auto, cudnn, flash or aten, got '{}'", word);
}

AttentionBackend choose_attention_backend(AttentionBackend setting, const AttentionRows& rows) {
  if (setting != AttentionBackend::Auto) {
    HEARTH_CHECK(
        runs(setting, rows), Config,
        "training.attention_backend: {} needs a GPU and bf16, and cudnn heads of 64 or 128, sequences of "
        "more "
        "than one token and no deterministic_mode; here are {} rows on {}, heads of {}, sequences of {}, "
        "deterministic_mode {}; auto picks what runs",
        word_of(setting), c10::toString(rows.dtype), rows.device.str(), rows.head_width, rows.sequence,
        rows.deterministic);
    return setting;
  }
  for (const AttentionBackend backend : {AttentionBackend::Cudnn, AttentionBackend::Flash})
    if (runs(backend, rows)) return backend;
  return AttentionBackend::Aten;
}

}  // namespace hearth
