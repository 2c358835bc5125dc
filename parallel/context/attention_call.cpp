#include "parallel/context/attention_call.h"

#include <fmt/format.h>

#include "base/error.h"

namespace hearth::context {
namespace {

constexpr const char* kKey = "context_attention";

struct KeptCall : torch::CustomClassHolder {
  explicit KeptCall(const AttentionCall& from) : layout(*from.layout), call(from) { call.layout = &layout; }
  ContextLayout layout;
  AttentionCall call;
};

}  // namespace

void keep_call(torch::autograd::AutogradContext* ctx, const AttentionCall& call) {
  ctx->saved_data[kKey] = c10::IValue::make_capsule(c10::make_intrusive<KeptCall>(call));
}

AttentionCall kept_call(torch::autograd::AutogradContext* ctx) {
  const auto capsule = ctx->saved_data[kKey].toCapsule();
  return static_cast<const KeptCall*>(capsule.get())->call;
}

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}]", fmt::join(tensor.sizes().begin(), tensor.sizes().end(), ", "));
}

}  // namespace hearth::context
