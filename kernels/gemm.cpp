#include "kernels/gemm.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/launch_check.h"

namespace hearth::kernels {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;  // what NVIDIA recommends for Hopper
// Lengths of prompts come once, shapes of training come back.
constexpr int kUsesBeforeTuning = 2;
constexpr int kCandidates = 16;  // algorithms that are timed in short turns
constexpr float kTurnMilliseconds = 3.0f;
constexpr float kWorthChanging = 0.995f;  // of the heuristic's time; closer ones are noise
// The fastest of those are timed again, each for so long that the card's power limit settles on it alone: in
// training that limit rules, and then the algorithm that takes the least energy is the fastest.
constexpr float kSettleMilliseconds = 40.0f, kSettledMilliseconds = 60.0f;
constexpr float kFinalistWithin = 1.06f;  // of the fastest short turn
constexpr size_t kFinalists = 5;
constexpr double kFinalFlops = 1e11;  // smaller products do not fill a card to its limit
constexpr size_t kRounds = 3;  // every one is timed once in each, so that a warming card is fair to all

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
  cublasLtMatmulAlgo_t first_choice{};  // of the heuristic
  cublasLtMatmulAlgo_t tuned{};
  int uses = 0;
  bool is_tuned = false;
};
static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(GemmAlgorithm));

// 16 bytes where the pointer allows, otherwise what it has: the heuristic must not choose wider accesses.
uint32_t alignment_bytes(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return address % 16 == 0 ? 16u : static_cast<uint32_t>(address & -address);
}

using Key = std::tuple<DType, DType, Transpose, Transpose, int64_t, int64_t, int64_t, int64_t, int64_t,
                       int64_t, bool, bool, bool, uint32_t, uint32_t, uint32_t>;
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
          a.c != nullptr,
          alignment_bytes(a.a),
          alignment_bytes(a.b),
          std::min(alignment_bytes(a.d), a.c ? alignment_bytes(a.c) : 16u)};
}

// The current device in one word.
std::string name_of_card() {
  int device = 0;
  cudaDeviceProp properties{};
  HEARTH_CUDA_CHECK(cudaGetDevice(&device));
  HEARTH_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  std::string card = properties.name;
  std::replace(card.begin(), card.end(), ' ', '-');
  return card;
}

// Of the plan file: everything that the choice depends on, in one word.
std::string name_of(const std::string& card, const GemmArgs& a) {
  const auto transpose = [](Transpose t) { return t == Transpose::Yes ? 'T' : 'N'; };
  const auto [ad, dd, at, bt, m, n, k, as, bs, ds, bias, beta, other, a16, b16, d16] = key_of(a);
  return fmt::format("{}:lt{}:{}:{}:{}{}:{}x{}x{}:{},{},{}:{}{}{}:{},{},{}", card, cublasLtGetVersion(),
                     config_name(ad), config_name(dd), transpose(at), transpose(bt), m, n, k, as, bs, ds,
                     bias ? "b" : "-", beta ? "+" : "-", other ? "c" : "-", a16, b16, d16);
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

// The heuristic's ranking, best first; at least one.
std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, const Plan& plan, const GemmArgs& a,
                                             int count) {
  cublasLtMatmulPreference_t raw = nullptr;
  check(cublasLtMatmulPreferenceCreate(&raw), "cublasLtMatmulPreferenceCreate", a);
  const Preference preference(raw);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes, a);
  // Sums of split products meet in fp32 scratch memory, not in the output's dtype.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE}, a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_bytes(a.b), a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_bytes(a.a), a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_bytes(a.c ? a.c : a.d), a);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_bytes(a.d), a);
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int found = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle, plan.operation.get(), plan.first.get(), plan.second.get(),
                                       plan.out.get(), plan.out.get(), preference.get(), count,
                                       results.data(), &found),
        "cublasLtMatmulAlgoGetHeuristic", a);
  std::vector<cublasLtMatmulAlgo_t> ranked;
  for (int i = 0; i < found; ++i)
    if (const auto& result = results[static_cast<size_t>(i)]; result.state == CUBLAS_STATUS_SUCCESS)
      ranked.push_back(result.algo);
  HEARTH_CHECK(!ranked.empty(), Cuda, "cuBLASLt has no algorithm for m={} n={} k={} {} -> {}", a.m, a.n, a.k,
               config_name(a.operand_dtype), config_name(a.d_dtype));
  return ranked;
}

Plan make_plan(cublasLtHandle_t handle, const GemmArgs& a) {
  const bool a_t = a.a_transpose == Transpose::Yes, b_t = a.b_transpose == Transpose::Yes;
  Plan plan{make_operation(a), make_layout(a.operand_dtype, b_t ? a.n : a.k, b_t ? a.k : a.n, a.b_stride, a),
            make_layout(a.operand_dtype, a_t ? a.k : a.m, a_t ? a.m : a.k, a.a_stride, a),
            make_layout(a.d_dtype, a.m, a.n, a.d_stride, a)};
  // The heuristic looks at the bias pointer for its alignment.
  if (a.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, a.bias, a);
  plan.first_choice = candidates(handle, plan, a, 1).front();
  return plan;
}

// An algorithm of a product, and how long a call of it took.
struct Candidate {
  cublasLtMatmulAlgo_t algorithm;
  float once = 0;  // milliseconds, roughly
  std::array<float, kRounds> milliseconds{};
  float handicap = 1.0f;

  float median() const {
    auto sorted = milliseconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[kRounds / 2] * handicap;
  }
  bool operator<(const Candidate& other) const { return median() < other.median(); }
};

// Milliseconds of `count` calls of `run`, back to back.
class Stopwatch {
 public:
  Stopwatch() {
    HEARTH_CUDA_CHECK(cudaEventCreate(&begin_));
    HEARTH_CUDA_CHECK(cudaEventCreate(&end_));
  }
  ~Stopwatch() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  template <class Run>
  float time(int count, cudaStream_t stream, Run&& run) {
    HEARTH_CUDA_CHECK(cudaEventRecord(begin_, stream));
    for (int i = 0; i < count; ++i) run();
    HEARTH_CUDA_CHECK(cudaEventRecord(end_, stream));
    HEARTH_CUDA_CHECK(cudaEventSynchronize(end_));
    float milliseconds = 0;
    HEARTH_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return milliseconds;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

struct GemmContext::Impl {
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  GemmPlanFile* file = nullptr;
  std::string card;
  std::map<Key, Plan> plans;

  cublasStatus_t multiply(const Plan& p, const cublasLtMatmulAlgo_t& algorithm, const GemmArgs& a, void* d,
                          cudaStream_t stream) const {
    return cublasLtMatmul(handle, p.operation.get(), &a.alpha, a.b, p.first.get(), a.a, p.second.get(),
                          &a.beta, a.c ? a.c : a.d, p.out.get(), d, p.out.get(), &algorithm, workspace,
                          kWorkspaceBytes, stream);
  }
  bool restore(Plan& plan, const GemmArgs& args) const;
  void tune(Plan& plan, const GemmArgs& args, cudaStream_t stream);
};

// What an earlier run found, where this library still takes it.
bool GemmContext::Impl::restore(Plan& plan, const GemmArgs& args) const {
  const auto kept = file ? file->find(name_of(card, args)) : std::nullopt;
  if (!kept) return false;
  cublasLtMatmulAlgo_t algorithm{};
  std::memcpy(&algorithm, kept->data(), sizeof(algorithm));
  cublasLtMatmulHeuristicResult_t result{};
  if (cublasLtMatmulAlgoCheck(handle, plan.operation.get(), plan.first.get(), plan.second.get(),
                              plan.out.get(), plan.out.get(), &algorithm, &result) != CUBLAS_STATUS_SUCCESS ||
      result.workspaceSize > kWorkspaceBytes)
    return false;
  plan.tuned = algorithm;
  return true;
}

// The fastest of the candidates on the product's own operands. A result that is added to where it lies (beta
// 1, no c) goes to scratch memory meanwhile; where there is none left the heuristic's choice stays.
void GemmContext::Impl::tune(Plan& plan, const GemmArgs& args, cudaStream_t stream) {
  plan.tuned = plan.first_choice;
  void* scratch = nullptr;
  const bool adds_in_place = args.beta != 0.0f && (args.c == nullptr || args.c == args.d);
  if (adds_in_place) {
    const int64_t stride = args.d_stride > 0 ? args.d_stride : args.n;
    if (cudaMallocAsync(&scratch, static_cast<size_t>(args.m * stride * size_bytes(args.d_dtype)), stream) !=
        cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      return;
    }
  }
  void* out = scratch ? scratch : args.d;
  Stopwatch watch;
  // Milliseconds of a call of `candidate`, from calls for about so long.
  const auto time = [&](const Candidate& candidate, float milliseconds) {
    const int calls = std::max(1, static_cast<int>(milliseconds / std::max(candidate.once, 1e-3f)));
    return watch.time(calls, stream, [&] { multiply(plan, candidate.algorithm, args, out, stream); }) /
           static_cast<float>(calls);
  };
  std::vector<Candidate> ranked;
  for (const auto& algorithm : candidates(handle, plan, args, kCandidates)) {
    if (multiply(plan, algorithm, args, out, stream) != CUBLAS_STATUS_SUCCESS)
      continue;  // and loads its code
    Candidate& candidate = ranked.emplace_back(Candidate{.algorithm = algorithm});
    candidate.once = watch.time(1, stream, [&] { multiply(plan, algorithm, args, out, stream); });
  }
  for (size_t round = 0; round < kRounds; ++round)
    for (Candidate& candidate : ranked) candidate.milliseconds[round] = time(candidate, kTurnMilliseconds);
  // Of equal ones the heuristic's first.
  if (!ranked.empty()) ranked.front().handicap = kWorthChanging;
  std::stable_sort(ranked.begin(), ranked.end());
  const double flops =
      2.0 * static_cast<double>(args.m) * static_cast<double>(args.n) * static_cast<double>(args.k);
  if (flops >= kFinalFlops && ranked.size() > 1) {
    std::erase_if(ranked, [limit = kFinalistWithin * ranked.front().median()](const Candidate& candidate) {
      return candidate.median() > limit;
    });
    if (ranked.size() > kFinalists) ranked.resize(kFinalists);
    for (size_t round = 0; round < kRounds && ranked.size() > 1; ++round)
      for (Candidate& candidate : ranked) {
        time(candidate, kSettleMilliseconds);
        candidate.milliseconds[round] = time(candidate, kSettledMilliseconds);
      }
    std::stable_sort(ranked.begin(), ranked.end());
  }
  if (!ranked.empty()) plan.tuned = ranked.front().algorithm;
  if (scratch) HEARTH_CUDA_CHECK(cudaFreeAsync(scratch, stream));
  if (!file) return;
  GemmAlgorithm bytes{};
  std::memcpy(bytes.data(), &plan.tuned, sizeof(plan.tuned));
  file->keep(name_of(card, args), bytes);
}

GemmContext::GemmContext(GemmPlanFile* file) : impl_(std::make_unique<Impl>()) {
  impl_->file = file;
  impl_->card = name_of_card();
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
  auto found = impl_->plans.find(key);
  if (found == impl_->plans.end()) found = impl_->plans.emplace(key, make_plan(impl_->handle, args)).first;
  Plan& plan = found->second;
  if (args.bias) set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias, args);
  if (args.tune && !plan.is_tuned) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    HEARTH_CUDA_CHECK(cudaStreamIsCapturing(stream, &capture));
    if (plan.uses == 0) plan.is_tuned = impl_->restore(plan, args);
    if (!plan.is_tuned && plan.uses >= kUsesBeforeTuning && capture == cudaStreamCaptureStatusNone) {
      impl_->tune(plan, args, stream);
      plan.is_tuned = true;
    }
    ++plan.uses;
  }
  const bool use_tuned = args.tune && plan.is_tuned;
  check(impl_->multiply(plan, use_tuned ? plan.tuned : plan.first_choice, args, args.d, stream),
        "cublasLtMatmul", args);
}

}  // namespace hearth::kernels
