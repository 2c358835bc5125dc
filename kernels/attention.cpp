#include "kernels/attention.h"

#include <cudnn_frontend.h>

#include <cmath>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/error.h"

namespace hearth::kernels {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;
using TensorPtr = std::shared_ptr<Tensor_attributes>;
using Dims = std::vector<int64_t>;
using Pointers = std::unordered_map<int64_t, void*>;

enum class Direction { Forward, Backward };

// Names of the graph's tensors in the map of pointers that a run takes.
enum Uid : int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kStatistics,
  kDOut,
  kDQ,
  kDK,
  kDV,
  kLengths,
  kQkvOffsets,
  kOutOffsets,
  kStatisticsOffsets,
  kKvOffsets
};

struct Plan {
  fe::graph::Graph graph;
  int64_t workspace_bytes = 0;
};

void check(fe::error_t status, const char* call, const AttentionShape& s) {
  HEARTH_CHECK(status.is_good(), Cuda, "{}: {} (attention of {} {} x {}, {} rows, {}+{} heads of {})", call,
               status.get_message(), s.batch,
               s.spans == AttentionSpans::Documents ? "documents" : "sequences", s.sequence, s.rows, s.heads,
               s.kv_heads, s.width);
}

// What cuDNN is told of the tensors. Its dimensions are [batch, heads, sequence, width] throughout; rows of
// documents are found by an array of offsets ("ragged").
class GraphTensors {
 public:
  GraphTensors(fe::graph::Graph& graph, const AttentionShape& shape, Direction direction)
      : graph_(graph), s_(shape) {
    if (s_.spans == AttentionSpans::Sequences) return;
    lengths = index(kLengths, s_.batch, fe::DataType_t::INT32);
    qkv_offsets = index(kQkvOffsets, s_.batch + 1, fe::DataType_t::INT64);
    out_offsets = index(kOutOffsets, s_.batch + 1, fe::DataType_t::INT64);
    statistics_offsets = index(kStatisticsOffsets, s_.batch + 1, fe::DataType_t::INT64);
    if (direction == Direction::Backward && kv_gradients_apart(s_))
      kv_offsets = index(kKvOffsets, s_.batch + 1, fe::DataType_t::INT64);
  }
  TensorPtr lengths, qkv_offsets, out_offsets, statistics_offsets, kv_offsets;

  int64_t qkv_row() const { return (s_.heads + 2 * s_.kv_heads) * s_.width; }

  // Heads of rows that are `row` elements apart.
  Tensor_attributes heads(Uid uid, int64_t heads, int64_t row, const TensorPtr& offsets) const {
    return Tensor_attributes()
        .set_uid(uid)
        .set_dim({s_.batch, heads, s_.sequence, s_.width})
        .set_stride({s_.sequence * row, s_.width, row, 1})
        .set_data_type(fe::DataType_t::BFLOAT16)
        .set_ragged_offset(offsets);
  }
  Tensor_attributes q(Uid uid) const { return heads(uid, s_.heads, qkv_row(), qkv_offsets); }
  Tensor_attributes kv(Uid uid) const { return heads(uid, s_.kv_heads, qkv_row(), qkv_offsets); }
  Tensor_attributes out(Uid uid) const { return heads(uid, s_.heads, s_.heads * s_.width, out_offsets); }
  Tensor_attributes kv_gradient(Uid uid) const {
    return kv_gradients_apart(s_) ? heads(uid, s_.kv_heads, s_.kv_heads * s_.width, kv_offsets) : kv(uid);
  }
  Tensor_attributes statistics() const {
    // Before 9.26 cuDNN's backward reads sequences' statistics in this order alone.
    const Dims by_head{s_.heads * s_.sequence, s_.sequence, 1, 1};
    const Dims by_row{s_.heads * s_.sequence, 1, s_.heads, 1};
    return Tensor_attributes()
        .set_uid(kStatistics)
        .set_dim({s_.batch, s_.heads, s_.sequence, 1})
        .set_stride(s_.spans == AttentionSpans::Documents ? by_row : by_head)
        .set_data_type(fe::DataType_t::FLOAT)
        .set_ragged_offset(statistics_offsets);
  }

  TensorPtr add(const Tensor_attributes& tensor) const { return graph_.tensor(tensor); }

 private:
  TensorPtr index(Uid uid, int64_t count, fe::DataType_t dtype) const {
    return graph_.tensor(Tensor_attributes()
                             .set_uid(uid)
                             .set_dim({count, 1, 1, 1})
                             .set_stride({1, 1, 1, 1})
                             .set_data_type(dtype));
  }

  fe::graph::Graph& graph_;
  const AttentionShape& s_;
};

// Gives a tensor that the graph made the place and form that `wanted` describes.
void place_output(const TensorPtr& made, Tensor_attributes wanted) {
  made->set_output(true)
      .set_uid(wanted.get_uid())
      .set_dim(wanted.get_dim())
      .set_stride(wanted.get_stride())
      .set_data_type(wanted.get_data_type())
      .set_ragged_offset(wanted.get_ragged_offset());
}

// Causal, scaled, and within documents.
template <class Attributes>
Attributes masked(const char* name, const AttentionShape& s, const GraphTensors& t) {
  Attributes attributes;
  attributes.set_name(name)
      .set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
      .set_diagonal_band_right_bound(0)
      .set_attn_scale(1.0f / std::sqrt(static_cast<float>(s.width)));
  if (s.spans == AttentionSpans::Documents)
    attributes.set_padding_mask(true).set_seq_len_q(t.lengths).set_seq_len_kv(t.lengths);
  return attributes;
}

void describe_forward(fe::graph::Graph& graph, const AttentionShape& s) {
  const GraphTensors t(graph, s, Direction::Forward);
  auto options = masked<fe::graph::SDPA_attributes>("attention", s, t);
  options.set_generate_stats(true);
  const auto made = graph.sdpa(t.add(t.q(kQ)), t.add(t.kv(kK)), t.add(t.kv(kV)), options);
  place_output(made[0], t.out(kOut));
  place_output(made[1], t.statistics());
}

void describe_backward(fe::graph::Graph& graph, const AttentionShape& s) {
  const GraphTensors t(graph, s, Direction::Backward);
  auto options = masked<fe::graph::SDPA_backward_attributes>("attention_backward", s, t);
  // Scratch memory for N rows, rather than for `batch` documents that are all as long as they may be.
  if (s.spans == AttentionSpans::Documents)
    options.set_max_total_seq_len_q(s.rows).set_max_total_seq_len_kv(s.rows);
  const auto made = graph.sdpa_backward(t.add(t.q(kQ)), t.add(t.kv(kK)), t.add(t.kv(kV)), t.add(t.out(kOut)),
                                        t.add(t.out(kDOut)), t.add(t.statistics()), options);
  place_output(made[0], t.q(kDQ));
  place_output(made[1], t.kv_gradient(kDK));
  place_output(made[2], t.kv_gradient(kDV));
}

std::unique_ptr<Plan> make_plan(cudnnHandle_t handle, const AttentionShape& shape, Direction direction) {
  auto plan = std::make_unique<Plan>();
  plan->graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  if (direction == Direction::Forward) {
    describe_forward(plan->graph, shape);
  } else {
    describe_backward(plan->graph, shape);
  }
  check(plan->graph.build(handle, {fe::HeurMode_t::A}), "cuDNN has no plan", shape);
  plan->workspace_bytes = plan->graph.get_workspace_size();
  return plan;
}

// The map takes what is read and what is written alike.
void* pointer(const void* data) {
  return const_cast<void*>(data);
}

void add_documents(Pointers& pointers, const AttentionShape& shape, const AttentionDocumentArrays& arrays,
                   Direction direction) {
  if (shape.spans == AttentionSpans::Sequences) return;
  pointers.emplace(kLengths, pointer(arrays.lengths));
  pointers.emplace(kQkvOffsets, pointer(arrays.qkv_offsets));
  pointers.emplace(kOutOffsets, pointer(arrays.out_offsets));
  pointers.emplace(kStatisticsOffsets, pointer(arrays.statistics_offsets));
  if (direction == Direction::Backward && kv_gradients_apart(shape))
    pointers.emplace(kKvOffsets, pointer(arrays.kv_offsets));
}

// The section of k, or of v, of the first row.
template <class Pointer>
auto section(Pointer* qkv, int64_t heads, int64_t width) {
  using Word = std::conditional_t<std::is_const_v<Pointer>, const uint16_t, uint16_t>;  // bf16
  return static_cast<Word*>(qkv) + heads * width;
}

void add_operands(Pointers& pointers, const AttentionShape& s, const void* qkv) {
  pointers.emplace(kQ, pointer(qkv));
  pointers.emplace(kK, pointer(section(qkv, s.heads, s.width)));
  pointers.emplace(kV, pointer(section(qkv, s.heads + s.kv_heads, s.width)));
}

}  // namespace

bool kv_gradients_apart(const AttentionShape& shape) {
  return shape.spans == AttentionSpans::Documents && shape.heads != shape.kv_heads;
}

struct AttentionContext::Impl {
  cudnnHandle_t handle = nullptr;
  std::map<std::pair<AttentionShape, Direction>, std::unique_ptr<Plan>> plans;

  Plan& plan(const AttentionShape& shape, Direction direction) {
    auto& found = plans[{shape, direction}];
    if (!found) found = make_plan(handle, shape, direction);
    return *found;
  }
  void run(const AttentionShape& shape, Direction direction, Pointers& pointers, void* workspace,
           cudaStream_t stream) {
    const cudnnStatus_t status = cudnnSetStream(handle, stream);
    HEARTH_CHECK(status == CUDNN_STATUS_SUCCESS, Cuda, "cudnnSetStream: {}", cudnnGetErrorString(status));
    check(plan(shape, direction).graph.execute(handle, pointers, workspace), "cuDNN could not run", shape);
  }
};

AttentionContext::AttentionContext() : impl_(std::make_unique<Impl>()) {
  const cudnnStatus_t status = cudnnCreate(&impl_->handle);
  HEARTH_CHECK(status == CUDNN_STATUS_SUCCESS, Cuda, "cudnnCreate: {}", cudnnGetErrorString(status));
}

AttentionContext::~AttentionContext() {
  impl_->plans.clear();
  cudnnDestroy(impl_->handle);  // an error means that the device is gone already
}

int64_t AttentionContext::forward_workspace_bytes(const AttentionShape& shape) {
  return impl_->plan(shape, Direction::Forward).workspace_bytes;
}

int64_t AttentionContext::backward_workspace_bytes(const AttentionShape& shape) {
  return impl_->plan(shape, Direction::Backward).workspace_bytes;
}

void AttentionContext::forward(const AttentionForward& a, cudaStream_t stream) {
  Pointers pointers;
  add_operands(pointers, a.shape, a.qkv);
  pointers.emplace(kOut, a.out);
  pointers.emplace(kStatistics, a.statistics);
  add_documents(pointers, a.shape, a.documents, Direction::Forward);
  impl_->run(a.shape, Direction::Forward, pointers, a.workspace, stream);
}

void AttentionContext::backward(const AttentionBackward& a, cudaStream_t stream) {
  Pointers pointers;
  add_operands(pointers, a.shape, a.qkv);
  pointers.emplace(kOut, pointer(a.out));
  pointers.emplace(kDOut, pointer(a.d_out));
  pointers.emplace(kStatistics, pointer(a.statistics));
  pointers.emplace(kDQ, a.d_qkv);
  pointers.emplace(kDK, a.d_k);
  pointers.emplace(kDV, a.d_v);
  add_documents(pointers, a.shape, a.documents, Direction::Backward);
  impl_->run(a.shape, Direction::Backward, pointers, a.workspace, stream);
}

}  // namespace hearth::kernels
