#include "kernels/op_support.h"

namespace hearth::kernels {

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "undefined";
  std::string shape;
  for (const int64_t extent : tensor.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(extent);
  return std::string(c10::toString(tensor.scalar_type())) + "[" + shape + "] " + tensor.device().str();
}

void check_activation(const char* op, const char* what, const at::Tensor& tensor, int64_t dim) {
  HEARTH_REQUIRE(tensor.defined() && tensor.dim() == dim &&
                     (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16),
                 "{}: {} must be an fp32 or bf16 tensor of {} dimensions, got {}", op, what, dim,
                 describe(tensor));
  HEARTH_REQUIRE(tensor.numel() == 0 || tensor.size(dim - 1) == 1 || tensor.stride(dim - 1) == 1,
                 "{}: the last dimension of {} must be contiguous, got {} with stride {}", op, what,
                 describe(tensor), tensor.stride(dim - 1));
}

void check_fp32_flat(const char* op, const char* what, const at::Tensor& tensor, int64_t count,
                     const at::Tensor& like) {
  HEARTH_REQUIRE(tensor.defined() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous() &&
                     tensor.numel() == count && tensor.device() == like.device(),
                 "{}: {} must be a contiguous fp32 tensor of {} elements on {}, got {}", op, what, count,
                 like.device().str(), describe(tensor));
}

void check_state(const char* op, const char* what, const at::Tensor& tensor, int64_t count,
                 const at::Tensor& like) {
  HEARTH_REQUIRE(tensor.defined() &&
                     (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16) &&
                     tensor.is_contiguous() && tensor.numel() == count && tensor.device() == like.device(),
                 "{}: {} must be a contiguous fp32 or bf16 tensor of {} elements on {}, got {}", op, what,
                 count, like.device().str(), describe(tensor));
}

void check_ids(const char* op, const char* what, const at::Tensor& ids, int64_t count,
               const at::Tensor& like) {
  HEARTH_REQUIRE(ids.defined() && (ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt) &&
                     ids.is_contiguous() && ids.numel() == count && ids.device() == like.device(),
                 "{}: {} must be a contiguous int32 or int64 tensor of {} elements on {}, got {}", op, what,
                 count, like.device().str(), describe(ids));
}

void check_same(const char* op, const char* what, const at::Tensor& a, const at::Tensor& b) {
  HEARTH_REQUIRE(a.defined() && b.defined() && a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() &&
                     a.device() == b.device(),
                 "{}: {} must agree in shape, dtype and device, got {} and {}", op, what, describe(a),
                 describe(b));
}

DType kernel_dtype(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::F32;
    case at::kBFloat16:
      return DType::BF16;
    case at::kLong:
      return DType::I64;
    case at::kInt:
      return DType::I32;
    default:
      break;
  }
  fail(ErrorKind::Usage, "kernels take fp32, bf16, int32 and int64, got {}", describe(tensor));
}

at::Tensor widen(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat ? tensor : tensor.to(at::kFloat).contiguous();
}

}  // namespace hearth::kernels
