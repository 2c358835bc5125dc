#include "parallel/context/ring_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/zeros.h>

#include "parallel/context/block_attention.h"
#include "parallel/tensor/tensor_dtype.h"

namespace hearth::context {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One hop of a buffer to the next rank and of the previous rank's to here, under way.
class Rotation {
 public:
  Rotation() = default;
  // Over NCCL a send and a receive of one communicator run one after the other, and each waits for its peer:
  // if every rank sent first, none would receive. Even ranks send first and odd ones receive first, so the
  // pairs meet; in a ring of odd size the last rank waits for rank 0's send to end, which rank 1's receive
  // lets happen.
  Rotation(Comm& cp, const Tensor& out, Tensor& in, std::string_view site) {
    const int size = cp.size(), next = (cp.rank() + 1) % size, previous = (cp.rank() + size - 1) % size;
    const auto send = [&] { return cp.send(out.const_data_ptr(), out.numel(), dtype_of(out), next, site); };
    const auto receive = [&] { return cp.recv(in.data_ptr(), in.numel(), dtype_of(in), previous, site); };
    const bool sends_first = cp.rank() % 2 == 0;
    first_ = sends_first ? send() : receive();
    second_ = sends_first ? receive() : send();
  }
  void wait() {
    if (first_) first_->wait();
    if (second_) second_->wait();
    first_.reset();
    second_.reset();
  }
  void poll() {  // MPI moves data only inside its calls
    if (second_) second_->poll();
  }

 private:
  WorkPtr first_, second_;
};

// Tensors of a call as the blocks see them.
struct Rows {
  const AttentionCall& call;
  const ContextLayout& layout = *call.layout;

  Tensor queries(const Tensor& qkv_NHW) const { return qkv_NHW.narrow(1, 0, call.num_heads); }
  Tensor keys(const Tensor& kv_N2KW) const { return kv_N2KW.narrow(1, 0, call.num_kv_heads); }
  Tensor values(const Tensor& kv_N2KW) const {
    return kv_N2KW.narrow(1, call.num_kv_heads, call.num_kv_heads);
  }
  const std::vector<ContextRectangle>& rectangles(int step) const {
    return layout.rectangles[static_cast<size_t>((layout.rank + layout.size - step) % layout.size)];
  }
  // [N, ...] -> the rows of a rectangle, [B', rows, ...], a view.
  Tensor query_block(const Tensor& rows, const ContextRectangle& r) const {
    return block(rows, r).narrow(1, r.query_begin, r.query_count);
  }
  Tensor key_block(const Tensor& rows, const ContextRectangle& r) const {
    return block(rows, r).narrow(1, r.key_begin, r.key_count);
  }
  // [H, N] -> [B', H, rows], a view.
  Tensor lse_block(const Tensor& lse_HN, const ContextRectangle& r) const {
    return lse_HN.unflatten(1, {layout.batch, layout.local})
        .narrow(1, r.batch_begin, r.batch_count)
        .narrow(2, r.query_begin, r.query_count)
        .transpose(0, 1);
  }

 private:
  Tensor block(const Tensor& rows, const ContextRectangle& r) const {
    return rows.unflatten(0, {layout.batch, layout.local}).narrow(0, r.batch_begin, r.batch_count);
  }
};

// Adds a block to the running softmax: out and lse of the union of the keys. With w = the block's share of
// the sum of exponentials, out = (1 - w) out + w block.
void merge(Tensor out_BLHW, Tensor lse_BHL, const AttendedBlock& block) {
  const Tensor share = at::sigmoid(block.lse_BHL - lse_BHL);
  out_BLHW.lerp_(block.out_BLHW.to(out_BLHW.scalar_type()), share.transpose(1, 2).unsqueeze(-1));
  lse_BHL.copy_(at::logaddexp(lse_BHL, block.lse_BHL));
}

// Own rows first: every row sees at least itself, so the running log-sum-exp is finite from the start.
AttendedRows forward_blocks(const Tensor& qkv_NHW, const AttentionCall& call) {
  const Rows rows{call};
  const Tensor q = rows.queries(qkv_NHW);
  Tensor kv = qkv_NHW.narrow(1, call.num_heads, 2 * call.num_kv_heads).contiguous(), next;
  AttendedRows sum;
  for (int step = 0; step < call.cp->size(); ++step) {
    Rotation rotation;
    if (step + 1 < call.cp->size()) {
      next = at::empty_like(kv);
      rotation = Rotation(*call.cp, kv, next, "context.kv");
    }
    const Tensor k = rows.keys(kv), v = rows.values(kv);
    if (step == 0) {
      sum = attend_documents(q, k, v, rows.layout.local_documents, call.kernels);
      sum.out_NHW = sum.out_NHW.to(sum.lse_HN.scalar_type());
    }
    for (const ContextRectangle& r : rows.rectangles(step)) {
      merge(rows.query_block(sum.out_NHW, r), rows.lse_block(sum.lse_HN, r),
            attend(rows.query_block(q, r), rows.key_block(k, r), rows.key_block(v, r), BlockMask::Full,
                   call.kernels));
      rotation.poll();
    }
    rotation.wait();
    kv = next;
  }
  return sum;
}

// Gradients of one step's blocks: adds to dq, returns [N, 2K, W] of the keys and values that are here.
Tensor backward_blocks(const Rows& rows, int step, const Tensor& q, const Tensor& kv, const Tensor& dout_NHW,
                       const AttendedRows& attended, Tensor& dq_NHW, Rotation& rotation) {
  Tensor dkv = at::zeros(kv.sizes(), dq_NHW.options());
  const Tensor k = rows.keys(kv), v = rows.values(kv), dk = rows.keys(dkv), dv = rows.values(dkv);
  for (const ContextRectangle& r : rows.rectangles(step)) {
    const AttendedBlock whole{rows.query_block(attended.out_NHW, r), rows.lse_block(attended.lse_HN, r)};
    const auto grads =
        attend_backward(rows.query_block(dout_NHW, r), rows.query_block(q, r), rows.key_block(k, r),
                        rows.key_block(v, r), whole, BlockMask::Full, rows.call.kernels);
    rows.query_block(dq_NHW, r).add_(grads.dq);
    rows.key_block(dk, r).add_(grads.dk);
    rows.key_block(dv, r).add_(grads.dv);
    rotation.poll();
  }
  return dkv;
}

// Keys and values go round as in the forward. Their gradients follow one step behind: a rank adds its share
// to the sum that arrives while it computes, and passes it on. After size - 1 hops the sum is home, where the
// share of its owner is added: the order of additions is fixed.
Tensor backward_ring(const Tensor& qkv_NHW, const Tensor& dout_NHW, const AttendedRows& attended,
                     const AttentionCall& call) {
  const Rows rows{call};
  const int64_t kv_heads = call.num_kv_heads;
  const int size = call.cp->size();
  const Tensor q = rows.queries(qkv_NHW);
  Tensor kv = qkv_NHW.narrow(1, call.num_heads, 2 * kv_heads).contiguous(), next;
  Tensor dq, own_dkv, travelling, arriving;
  Rotation gradient_hop;
  for (int step = 0; step < size; ++step) {
    Rotation hop;
    if (step + 1 < size) {
      next = at::empty_like(kv);
      hop = Rotation(*call.cp, kv, next, "context.kv_again");
    }
    if (step == 0) {
      const auto grads = attend_documents_backward(dout_NHW, q, rows.keys(kv), rows.values(kv), attended,
                                                   rows.layout.local_documents, call.kernels);
      const auto sum_dtype = attended.lse_HN.scalar_type();
      dq = grads.dq.to(sum_dtype);
      own_dkv = at::cat({grads.dk, grads.dv}, 1).to(sum_dtype);
    } else {
      Tensor dkv = backward_blocks(rows, step, q, kv, dout_NHW, attended, dq, hop);
      gradient_hop.wait();
      travelling = arriving.defined() ? dkv.add_(arriving) : dkv;
      arriving = at::empty_like(travelling);
      gradient_hop = Rotation(*call.cp, travelling, arriving, "context.dkv");
    }
    hop.wait();
    kv = next;
  }
  gradient_hop.wait();
  Tensor dqkv = at::empty(qkv_NHW.sizes(), qkv_NHW.options());
  rows.queries(dqkv).copy_(dq);
  dqkv.narrow(1, call.num_heads, 2 * kv_heads).copy_(arriving.defined() ? own_dkv.add_(arriving) : own_dkv);
  return dqkv;
}

// Saves qkv, the output and a log-sum-exp per row and head; keys and values of other ranks are fetched again.
struct RingFn : torch::autograd::Function<RingFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv_NHW, const AttentionCall& call) {
    const auto sum = forward_blocks(qkv_NHW, call);
    const Tensor out = at::_unsafe_view(sum.out_NHW.to(qkv_NHW.scalar_type()), {qkv_NHW.size(0), -1});
    keep_call(ctx, call);
    ctx->save_for_backward({qkv_NHW, out, sum.lse_HN});
    return out;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto call = kept_call(ctx);
    const std::vector<int64_t> shape{saved[0].size(0), call.num_heads, saved[0].size(2)};
    // Dense: cuDNN's plans, which LibTorch keeps by the strides of q, k and v, have those of the output too.
    const Tensor dout = grads[0].contiguous().view(shape);
    return {backward_ring(saved[0], dout, {saved[1].view(shape), saved[2]}, call), Tensor()};
  }
};

}  // namespace

Tensor ring_attention(const Tensor& qkv_NHW, const AttentionCall& call) {
  return RingFn::apply(qkv_NHW, call);
}

}  // namespace hearth::context
