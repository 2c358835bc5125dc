// Causal grouped-query attention in bf16 through cuDNN's fused graphs (FlashAttention-3's schedule on Hopper:
// Shah et al. 2024), on raw pointers: no torch. The context keeps a handle and one plan per shape and
// direction; a plan takes milliseconds of host time, so callers keep the number of shapes small. Query head
// h attends with key and value head h / (heads / kv_heads); scores are scaled by 1 / sqrt(width).
//
// The forward pass always gives the same bits. The backward pass does not: it sums dq with float atomics.
// (cuDNN before 9.25 offers a repeatable one on Hopper only with a workspace quadratic in the sequence.)
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

namespace hearth::kernels {

enum class AttentionSpans { Sequences, Documents };

// N rows of q, k and v: `batch` sequences of `sequence` rows each, back to back; or documents of any lengths,
// back to back, of which there are at most `batch`, none longer than `sequence`.
struct AttentionShape {
  AttentionSpans spans;
  int64_t batch, sequence;
  int64_t rows;  // N
  int64_t heads, kv_heads;
  int64_t width;  // of a head: a multiple of 8, at most 256
  auto operator<=>(const AttentionShape&) const = default;
};

// Where the documents lie, on the device. Each array of offsets has batch + 1 entries, 16-byte aligned: the
// first row of a document times what one row takes, in elements; those after the last document are N rows.
struct AttentionDocumentArrays {
  const int32_t* lengths = nullptr;             // [batch], in rows; 0 after the last document
  const int64_t* qkv_offsets = nullptr;         // of (heads + 2 kv_heads) x width
  const int64_t* out_offsets = nullptr;         // of heads x width
  const int64_t* statistics_offsets = nullptr;  // of heads
  const int64_t* kv_offsets = nullptr;          // of kv_heads x width
};

struct AttentionForward {
  AttentionShape shape;
  const void* qkv;  // bf16 [N, heads + 2 kv_heads, width], 16-byte aligned: q, k, v sections of each row
  void* out;        // bf16 [N, heads, width]
  // fp32, log of the sum of exponentials of a row's scaled scores: [batch, heads, sequence], with documents
  // [N, heads].
  float* statistics;
  AttentionDocumentArrays documents;  // with AttentionSpans::Documents
  void* workspace;                    // forward_workspace_bytes(), 256-byte aligned
};

struct AttentionBackward {
  AttentionShape shape;
  const void* d_out;        // bf16 [N, heads, width]
  const void* qkv;          // as in forward, as are the next two
  const void* out;          // what forward wrote
  const float* statistics;  // what forward wrote
  void* d_qkv;              // bf16, as qkv: every element of the section q is written, of k and v see below
  // Where the gradients of k and v go: sections of d_qkv, or two tensors [N, kv_heads, width] of their own
  // where kv_gradients_apart().
  void *d_k, *d_v;
  AttentionDocumentArrays documents;
  void* workspace;  // backward_workspace_bytes(), 256-byte aligned
};

// Documents with fewer key than query heads: cuDNN spreads the gradients of k and v of every query head over
// scratch memory with the row stride of their outputs times heads / kv_heads. Inside d_qkv that would be 6
// times the memory for 32 and 8 heads, for the price of one small copy.
bool kv_gradients_apart(const AttentionShape& shape);

// One per device and stream. Not thread-safe.
class AttentionContext {
 public:
  AttentionContext();  // on the current device
  ~AttentionContext();
  AttentionContext(const AttentionContext&) = delete;
  AttentionContext& operator=(const AttentionContext&) = delete;

  // These build the plan of a shape that is new, outside of any stream capture. Throw Error{Cuda} where cuDNN
  // has none, with the shape and cuDNN's words.
  int64_t forward_workspace_bytes(const AttentionShape& shape);
  int64_t backward_workspace_bytes(const AttentionShape& shape);

  // Enqueue on `stream`; never synchronize or allocate.
  void forward(const AttentionForward& args, cudaStream_t stream);
  void backward(const AttentionBackward& args, cudaStream_t stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth::kernels
