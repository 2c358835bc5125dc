#include "kernels/gemm.h"

#include <cublasLt.h>

#include <map>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "kernels/launch_check.h"

namespace hearth::kernels {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA recommends for Hopper

void check(cublasStatus_t status, const char* call, const GemmArgs& a) {
  HEARTH_CHECK(status == CUBLAS_STATUS_SUCCESS, Cuda, "{}: {} for m={} n={} k={} {} -> {}", call,
               cublasLtGetStatusString(status), a.m, a.n, a.k, config_name(a.operand_dtype),
               config_name(a.d_dtype));
}

template <class Handle, cublasStatus_t (*destroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  ~Owned() {
    if (handle_) destroy(handle_);
  }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};
using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

struct Plan {
  Operation operation;
  Layout first, second, out;
  cublasLtMatmulAlgo_t algorithm{};
};

// 16 bytes where the pointer allows, otherwise what it has: the heuristic must not choose wider accesses.
uint32_t alignment_bytes(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return address % 16 == 0 ? 16u : static_cast<uint32_t>(address & -address);
}

using Key = std::tuple<DType, DType, Transpose, Transpose, int64_t, int64_t, int64_t, int64_t, int64_t,
                       int64_t, bool, bool, uint32_t, uint32_t, uint32_t>;
Key key_of(const GemmArgs& a) {
  return {a.operand_dtype,
          a.d_dtype,
          a.a_transpose,
          a.b_transpose,
          a.m,
          a.n,
          a.k,
          a.a_stride,
          a.b_stride,
          a.d_stride,
          a.bias != nullptr,
          a.beta != 0.0f,
          alignment_bytes(a.a),
          alignment_bytes(a.b),
          alignment_bytes(a.d)};
}

cudaDataType_t cuda_type(DType dtype) {
  if (dtype == DType::F32) return CUDA_R_32F;
  if (dtype == DType::BF16) return CUDA_R_16BF;
  fail_dtype("gemm", dtype);
}

// A row-major [rows, cols] matrix is a column-major [cols, rows] one.
Layout make_layout(DType dtype, int64_t rows, int64_t cols, int64_t stride, const GemmArgs& a) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, cuda_type(dtype), static_cast<uint64_t>(cols),
                                   static_cast<uint64_t>(rows), stride > 0 ? stride : cols),
        "cublasLtMatrixLayoutCreate", a);
  return Layout(layout);
}

template <class Value>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, const Value& value,
         const GemmArgs& a) {
  check(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof(value)),
        "cublasLtMatmulDescSetAttribute", a);
}

template <class Value>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, const Value& value,
         const GemmArgs& a) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
        "cublasLtMatmulPreferenceSetAttribute", a);
}

// Column-major, d^T = op(b)^T op(a)^T: cuBLASLt's first operand is our b.
Operation make_operation(const GemmArgs& a) {
  cublasLtMatmulDesc_t descriptor = nullptr;
  check(cublasLtMatmulDescCreate(&descriptor, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate", a);
  Operation operation(descriptor);
  const cublasOperation_t first = a.b_transpose == Transpose::Yes ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = a.a_transpose == Transpose::Yes ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, first, a);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, second, a);
  if (a.bias) set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS, a);
  return operation;
}

Plan make_plan(cublasLtHandle_t handle, const GemmArgs& a) {
  const bool a_t = a.a_transpose == Transpose::Yes, b_t = a.b_transpose == Transpose::Yes;
  Plan plan{make_operation(a),
            make_layout(a.operand_dtype, b_t ? a.n : a.k, b_t ? a.k : a.n, a.b_stride, a),
            make_layout(a.operand_dtype, a_t ? a.k : a.m, a_t ? a.m : a.k, a.a_stride, a),
            make_layout(a.d_dtype, a.m, a.n, a.d_stride, a),
            {}};
  // The heuristic looks at the bias pointer for its alignment.
  if (a.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, a.bias, a);
  cublasLtMatmulPreference_t raw = nullptr;
  check(cublasLtMatmulPreferenceCreate(&raw), "cublasLtMatmulPreferenceCreate", a);
  const Preference preference(raw);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes, a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_bytes(a.b), a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_bytes(a.a), a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_bytes(a.d), a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_bytes(a.d), a);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle, plan.operation.get(), plan.first.get(), plan.second.get(),
                                       plan.out.get(), plan.out.get(), preference.get(), 1, &result, &found),
        "cublasLtMatmulAlgoGetHeuristic", a);
  HEARTH_CHECK(found > 0, Cuda, "cuBLASLt has no algorithm for m={} n={} k={} {} -> {}", a.m, a.n, a.k,
               config_name(a.operand_dtype), config_name(a.d_dtype));
  plan.algorithm = result.algo;
  return plan;
}

}  // namespace

struct GemmContext::Impl {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  std::map<Key, Plan> plans;
};

GemmContext::GemmContext() : impl_(std::make_unique<Impl>()) {
  const cublasStatus_t status = cublasLtCreate(&impl_->handle);
  HEARTH_CHECK(status == CUBLAS_STATUS_SUCCESS, Cuda, "cublasLtCreate: {}", cublasLtGetStatusString(status));
  HEARTH_CUDA_CHECK(cudaMalloc(&impl_->workspace, kWorkspaceBytes));
}

// Errors here mean that the device is gone already; there is nothing left to free.
GemmContext::~GemmContext() {
  cudaFree(impl_->workspace);
  cublasLtDestroy(impl_->handle);
}

void GemmContext::run(const GemmArgs& args, cudaStream_t stream) {
  require_launch(args.m > 0 && args.n > 0 && args.k > 0, "gemm", "m, n and k must be > 0",
                 args.m * args.n * args.k);
  const Key key = key_of(args);
  auto plan = impl_->plans.find(key);
  if (plan == impl_->plans.end()) plan = impl_->plans.emplace(key, make_plan(impl_->handle, args)).first;
  const Plan& p = plan->second;
  if (args.bias) set(p.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias, args);
  const float alpha = 1.0f;
  check(cublasLtMatmul(impl_->handle, p.operation.get(), &alpha, args.b, p.first.get(), args.a,
                       p.second.get(), &args.beta, args.d, p.out.get(), args.d, p.out.get(), &p.algorithm,
                       impl_->workspace, kWorkspaceBytes, stream),
        "cublasLtMatmul", args);
}

}  // namespace hearth::kernels
