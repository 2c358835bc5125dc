#include "kernels/attention_op.h"

#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#ifdef HEARTH_CUDA
#include <map>
#include <mutex>
#include <utility>

#include "kernels/attention.h"
#include "kernels/cuda_scope.h"
#endif

namespace hearth::kernels {
namespace {

// Fewer documents than this share one plan; more are rounded up to a power of two.
constexpr int64_t kLeastCapacity = 16;
constexpr int64_t kTile = 128;  // rows of cuDNN's largest tile: a longest document is rounded up to these

// Each section of the table holds capacity + 1 offsets, and one word more to keep the next one 16-byte
// aligned.
enum TableSection : int64_t { kQkv, kOut, kStatistics, kKv, kLengths };
int64_t section_words(int64_t capacity) {
  return capacity + 2;
}

void check_call(const char* op, const at::Tensor& qkv, const AttentionCall& call) {
  const AttentionHeads& h = call.heads;
  check_activation(op, "qkv", qkv, 3);
  HEARTH_REQUIRE(h.kv > 0 && h.query > 0 && h.query % h.kv == 0,
                 "{}: query heads must be a multiple of key and value heads, got {} and {}", op, h.query,
                 h.kv);
  HEARTH_REQUIRE(call.batch > 0 && call.sequence > 0 && qkv.size(0) == call.batch * call.sequence &&
                     qkv.size(1) == h.query + 2 * h.kv && qkv.size(2) == h.width && qkv.is_contiguous(),
                 "{}: qkv must be contiguous [{} x {}, {} + 2 x {}, {}], got {}", op, call.batch,
                 call.sequence, h.query, h.kv, h.width, describe(qkv));
  HEARTH_REQUIRE(!call.documents || call.documents->rows == qkv.size(0),
                 "{}: the documents are of {} rows, qkv has {}", op, call.documents->rows, qkv.size(0));
}

// First rows of what attention stays within, and N.
std::vector<int64_t> borders(const AttentionCall& call) {
  std::vector<int64_t> rows;
  if (call.documents) {
    rows.assign(call.documents->starts.begin(), call.documents->starts.end());
  } else {
    for (int64_t b = 0; b < call.batch; ++b) rows.push_back(b * call.sequence);
  }
  rows.push_back(call.batch * call.sequence);
  return rows;
}

// One document, in fp32, heads first: q [H, L, W]; k and v [H, L, W], repeated for the query heads they
// serve.
struct Document {
  Document(const at::Tensor& qkv, const AttentionCall& call, int64_t first_row, int64_t rows)
      : first(first_row), length(rows), group(call.heads.query / call.heads.kv) {
    const at::Tensor part = qkv.narrow(0, first, length).to(at::kFloat).transpose(0, 1);
    q = part.narrow(0, 0, call.heads.query).contiguous();
    k = part.narrow(0, call.heads.query, call.heads.kv).repeat_interleave(group, 0);
    v = part.narrow(0, call.heads.query + call.heads.kv, call.heads.kv).repeat_interleave(group, 0);
    scale = 1.0 / std::sqrt(static_cast<double>(call.heads.width));
  }
  at::Tensor scores() const {
    const at::Tensor future =
        at::ones({length, length}, at::TensorOptions(q.device()).dtype(at::kBool)).triu(1);
    return at::bmm(q, k.transpose(1, 2))
        .mul(scale)
        .masked_fill(future, -std::numeric_limits<double>::infinity());
  }
  int64_t first, length, group;
  double scale = 1;
  at::Tensor q, k, v;
};

// Rows [first, first + length) of statistics as [H, L, 1].
at::Tensor statistics_of(const at::Tensor& statistics, const AttentionCall& call, const Document& d) {
  if (call.documents) return statistics.narrow(0, d.first, d.length).transpose(0, 1).unsqueeze(2);
  return statistics.select(0, d.first / call.sequence).unsqueeze(2);
}

at::Tensor empty_statistics(const at::Tensor& qkv, const AttentionCall& call) {
  const auto options = qkv.options().dtype(at::kFloat);
  return call.documents ? at::empty({qkv.size(0), call.heads.query}, options)
                        : at::empty({call.batch, call.heads.query, call.sequence}, options);
}

AttentionResult forward_plain(const at::Tensor& qkv, const AttentionCall& call) {
  AttentionResult result{at::empty({qkv.size(0), call.heads.query * call.heads.width}, qkv.options()),
                         empty_statistics(qkv, call)};
  const at::Tensor out = result.out_NE.view({qkv.size(0), call.heads.query, call.heads.width});
  const auto rows = borders(call);
  for (size_t i = 0; i + 1 < rows.size(); ++i) {
    const Document d(qkv, call, rows[i], rows[i + 1] - rows[i]);
    const at::Tensor scores = d.scores(), sums = at::logsumexp(scores, 2, /*keepdim=*/true);
    out.narrow(0, d.first, d.length).copy_(at::bmm(scores.sub(sums).exp_(), d.v).transpose(0, 1));
    statistics_of(result.statistics, call, d).copy_(sums);
  }
  return result;
}

// Sums the heads that share a key and value head: [H, L, W] -> [L, K, W].
at::Tensor shared_heads(const at::Tensor& x, const Document& d) {
  return x.view({-1, d.group, d.length, x.size(2)}).sum(1).transpose(0, 1);
}

// With p the probabilities and dp = dy v^T: ds = p (dp - rowsum(dy y)), and dq, dk, dv from ds and p (Dao et
// al. 2022, appendix B.4).
at::Tensor backward_plain(const at::Tensor& d_out, const at::Tensor& qkv, const AttentionResult& forward,
                          const AttentionCall& call) {
  const int64_t heads = call.heads.query, kv = call.heads.kv;
  at::Tensor d_qkv = at::empty(qkv.sizes(), qkv.options());
  const auto heads_first = [&](const at::Tensor& x, const Document& d) {
    return x.narrow(0, d.first, d.length).view({d.length, heads, -1}).to(at::kFloat).transpose(0, 1);
  };
  const auto rows = borders(call);
  for (size_t i = 0; i + 1 < rows.size(); ++i) {
    const Document d(qkv, call, rows[i], rows[i + 1] - rows[i]);
    const at::Tensor dy = heads_first(d_out, d), y = heads_first(forward.out_NE, d);
    const at::Tensor p = d.scores().sub(statistics_of(forward.statistics, call, d)).exp_();
    const at::Tensor dp = at::bmm(dy, d.v.transpose(1, 2));
    const at::Tensor ds = dp.sub(dy.mul(y).sum(2, /*keepdim=*/true)).mul_(p).mul_(d.scale);
    const at::Tensor part = d_qkv.narrow(0, d.first, d.length);
    part.narrow(1, 0, heads).copy_(at::bmm(ds, d.k).transpose(0, 1));
    part.narrow(1, heads, kv).copy_(shared_heads(at::bmm(ds.transpose(1, 2), d.q), d));
    part.narrow(1, heads + kv, kv).copy_(shared_heads(at::bmm(p.transpose(1, 2), dy), d));
  }
  return d_qkv;
}

#ifdef HEARTH_CUDA
AttentionShape shape_of(const AttentionCall& call, int64_t rows) {
  const AttentionDocuments* d = call.documents.get();
  return {.spans = d ? AttentionSpans::Documents : AttentionSpans::Sequences,
          .batch = d ? d->capacity : call.batch,
          .sequence = d ? d->longest : call.sequence,
          .rows = rows,
          .heads = call.heads.query,
          .kv_heads = call.heads.kv,
          .width = call.heads.width};
}

AttentionDocumentArrays arrays_of(const AttentionDocuments* documents) {
  if (documents == nullptr) return {};
  const int64_t words = section_words(documents->capacity);
  const auto* table = documents->table.const_data_ptr<int64_t>();
  return {.lengths = reinterpret_cast<const int32_t*>(table + kLengths * words),
          .qkv_offsets = table + kQkv * words,
          .out_offsets = table + kOut * words,
          .statistics_offsets = table + kStatistics * words,
          .kv_offsets = table + kKv * words};
}

// Calls run(context, stream) with the context of the tensor's device and current stream, which live as long
// as the process: see run_gemm.
template <class Run>
void with_context(const at::Tensor& on, Run&& run) {
  static std::mutex mutex;
  static auto& contexts = *new std::map<std::pair<int, cudaStream_t>, AttentionContext>;
  const CudaScope scope(on);
  const std::lock_guard lock(mutex);
  run(contexts[{on.device().index(), scope.stream()}], scope.stream());
}

at::Tensor workspace_of(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

AttentionResult forward_cuda(const at::Tensor& qkv, const AttentionCall& call) {
  AttentionResult result{at::empty({qkv.size(0), call.heads.query * call.heads.width}, qkv.options()),
                         empty_statistics(qkv, call)};
  const AttentionShape shape = shape_of(call, qkv.size(0));
  with_context(qkv, [&](AttentionContext& context, cudaStream_t stream) {
    const at::Tensor workspace = workspace_of(context.forward_workspace_bytes(shape), qkv);
    context.forward({.shape = shape,
                     .qkv = qkv.const_data_ptr(),
                     .out = result.out_NE.data_ptr(),
                     .statistics = result.statistics.data_ptr<float>(),
                     .documents = arrays_of(call.documents.get()),
                     .workspace = workspace.data_ptr()},
                    stream);
  });
  return result;
}

at::Tensor backward_cuda(const at::Tensor& d_out, const at::Tensor& qkv, const AttentionResult& forward,
                         const AttentionCall& call) {
  const AttentionShape shape = shape_of(call, qkv.size(0));
  const int64_t kv = call.heads.kv;
  at::Tensor d_qkv = at::empty(qkv.sizes(), qkv.options());
  const at::Tensor sections = d_qkv.narrow(1, call.heads.query, 2 * kv);
  const at::Tensor apart = kv_gradients_apart(shape)
                               ? at::empty({2, qkv.size(0), kv, call.heads.width}, qkv.options())
                               : at::Tensor();
  const at::Tensor d_k = apart.defined() ? apart.select(0, 0) : sections.narrow(1, 0, kv);
  const at::Tensor d_v = apart.defined() ? apart.select(0, 1) : sections.narrow(1, kv, kv);
  with_context(qkv, [&](AttentionContext& context, cudaStream_t stream) {
    const at::Tensor workspace = workspace_of(context.backward_workspace_bytes(shape), qkv);
    context.backward({.shape = shape,
                      .d_out = d_out.const_data_ptr(),
                      .qkv = qkv.const_data_ptr(),
                      .out = forward.out_NE.const_data_ptr(),
                      .statistics = forward.statistics.const_data_ptr<float>(),
                      .d_qkv = d_qkv.data_ptr(),
                      .d_k = d_k.data_ptr(),
                      .d_v = d_v.data_ptr(),
                      .documents = arrays_of(call.documents.get()),
                      .workspace = workspace.data_ptr()},
                     stream);
  });
  if (apart.defined()) sections.unflatten(1, {2, kv}).copy_(apart.transpose(0, 1));
  return d_qkv;
}

// The fused path runs on CUDA; false: the plain one is to run.
bool runs_fused(const char* op, const at::Tensor& qkv, const AttentionCall& call, KernelPath path) {
  if (path == KernelPath::Plain || !qkv.is_cuda()) return false;
  HEARTH_REQUIRE(
      attention_is_fused(qkv.scalar_type(), call.heads.width, call.sequence),
      "{}: the fused path takes bf16, heads of 64 or 128 and sequences of more than one row, got {} in "
      "sequences of {}",
      op, describe(qkv), call.sequence);
  HEARTH_REQUIRE(!call.documents || call.documents->table.is_cuda(),
                 "{}: the documents' table must lie on the device", op);
  return true;
}
#endif

}  // namespace

AttentionDocuments attention_documents(std::vector<int32_t> starts, int64_t rows, int64_t sequence) {
  HEARTH_REQUIRE(!starts.empty() && starts.front() == 0 && starts.back() < rows &&
                     std::is_sorted(starts.begin(), starts.end(), std::less_equal<>()),
                 "attention: {} document starts in {} rows must begin with 0 and ascend", starts.size(),
                 rows);
  AttentionDocuments documents{
      .starts = std::move(starts), .rows = rows, .capacity = 0, .longest = 0, .table = {}};
  const auto count = static_cast<int64_t>(documents.starts.size());
  documents.capacity =
      static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(count, kLeastCapacity))));
  int64_t longest = 0;
  for (size_t i = 0; i < documents.starts.size(); ++i) {
    const int64_t end = i + 1 < documents.starts.size() ? documents.starts[i + 1] : rows;
    longest = std::max(longest, end - documents.starts[i]);
  }
  HEARTH_REQUIRE(longest <= sequence, "attention: a document of {} rows in sequences of {}", longest,
                 sequence);
  // Blocks of rows that no document has still cost a launch each, so short documents are worth plans of their
  // own: for a half, a quarter and an eighth of the sequence.
  int64_t bound = sequence;
  for (int halvings = 0; halvings < 3 && (bound + 1) / 2 >= longest; ++halvings) bound = (bound + 1) / 2;
  documents.longest = (bound + kTile - 1) / kTile * kTile;
  return documents;
}

std::vector<int64_t> attention_document_table(const AttentionDocuments& documents,
                                              const AttentionHeads& heads) {
  const auto capacity = static_cast<size_t>(documents.capacity), count = documents.starts.size();
  const auto words = static_cast<size_t>(section_words(documents.capacity));
  std::vector<int64_t> table(words * (kLengths + 1));
  const int64_t row_elements[] = {(heads.query + 2 * heads.kv) * heads.width, heads.query * heads.width,
                                  heads.query, heads.kv * heads.width};
  std::vector<int32_t> lengths(capacity);
  const auto first_row = [&](size_t i) { return i < count ? int64_t{documents.starts[i]} : documents.rows; };
  for (size_t i = 0; i <= capacity; ++i) {
    for (size_t section = 0; section < std::size(row_elements); ++section)
      table[section * words + i] = checked_mul(first_row(i), row_elements[section]);
    if (i < capacity) lengths[i] = checked_cast<int32_t>(first_row(i + 1) - first_row(i));
  }
  std::memcpy(table.data() + kLengths * words, lengths.data(), capacity * sizeof(int32_t));
  return table;
}

bool attention_is_fused(at::ScalarType dtype, int64_t width, int64_t sequence) {
  return dtype == at::kBFloat16 && (width == 64 || width == 128) && sequence > 1;
}

AttentionResult attention_forward_op(const at::Tensor& qkv_NHW, const AttentionCall& call, KernelPath path) {
  constexpr const char* kOp = "attention_forward";
  check_call(kOp, qkv_NHW, call);
#ifdef HEARTH_CUDA
  if (runs_fused(kOp, qkv_NHW, call, path)) return forward_cuda(qkv_NHW, call);
#endif
  static_cast<void>(path);
  return forward_plain(qkv_NHW, call);
}

at::Tensor attention_backward_op(const at::Tensor& d_out_NE, const at::Tensor& qkv_NHW,
                                 const AttentionResult& forward, const AttentionCall& call, KernelPath path) {
  constexpr const char* kOp = "attention_backward";
  check_call(kOp, qkv_NHW, call);
  check_same(kOp, "d_out and out", d_out_NE, forward.out_NE);
  HEARTH_REQUIRE(d_out_NE.is_contiguous() && d_out_NE.dim() == 2 && d_out_NE.size(0) == qkv_NHW.size(0) &&
                     d_out_NE.size(1) == call.heads.query * call.heads.width &&
                     d_out_NE.scalar_type() == qkv_NHW.scalar_type() && d_out_NE.device() == qkv_NHW.device(),
                 "{}: d_out must be contiguous [{}, {}] like qkv, got {}", kOp, qkv_NHW.size(0),
                 call.heads.query * call.heads.width, describe(d_out_NE));
  check_fp32_flat(kOp, "statistics", forward.statistics, qkv_NHW.size(0) * call.heads.query, qkv_NHW);
#ifdef HEARTH_CUDA
  if (runs_fused(kOp, qkv_NHW, call, path)) return backward_cuda(d_out_NE, qkv_NHW, forward, call);
#endif
  static_cast<void>(path);
  return backward_plain(d_out_NE, qkv_NHW, forward, call);
}

}  // namespace hearth::kernels
