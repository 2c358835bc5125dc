#include "parallel/context/all_to_all_attention.h"

#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>

#include "parallel/context/block_attention.h"
#include "parallel/tensor/tensor_dtype.h"

namespace hearth::context {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Letters: P ranks; R = P x N = B x S rows of the whole sequences; h = (H + 2K)/P heads of one rank.

// [P, ...]: entry i goes to rank i, and the entry for this rank of rank i comes back at i.
Tensor exchange(const Tensor& by_rank, Comm& cp, std::string_view site) {
  const Tensor out = by_rank.contiguous(), in = at::empty_like(out);
  cp.all_to_all(out.const_data_ptr(), in.data_ptr(), out.numel() / cp.size(), dtype_of(out), site)->wait();
  return in;
}

// [P, N, heads, W] in the order of ranks -> [R, heads, W] in the order of positions, and back.
Tensor to_positions(const Tensor& by_rank, const ContextLayout& layout) {
  return by_rank.flatten(0, 1).index_select(0, layout.rows_by_position);
}
Tensor to_ranks(const Tensor& rows, const ContextLayout& layout) {
  return rows.index_select(0, layout.rows_by_rank).unflatten(0, {layout.size, layout.batch * layout.local});
}

// Head counts of q, k and v.
using Heads = std::array<int64_t, 3>;

Heads heads_of(const AttentionCall& call, int64_t ranks) {
  return {call.num_heads / ranks, call.num_kv_heads / ranks, call.num_kv_heads / ranks};
}

// [N, H + 2K, W] -> [P, N, h, W]: rank i gets its share of q, of k and of v. Query heads stay with the
// key/value head that they read, as each rank gets a range of both.
Tensor split_heads(const Tensor& qkv_NHW, const AttentionCall& call) {
  std::vector<Tensor> parts;
  for (const Tensor& part : qkv_NHW.split_with_sizes(heads_of(call, 1), 1))
    parts.push_back(part.unflatten(1, {call.layout->size, -1}).transpose(0, 1));
  return at::cat(parts, 2);
}

// The inverse.
Tensor join_heads(const Tensor& by_rank, const AttentionCall& call) {
  std::vector<Tensor> parts;
  for (const Tensor& part : by_rank.split_with_sizes(heads_of(call, call.layout->size), 2))
    parts.push_back(part.transpose(0, 1).flatten(1, 2));
  return at::cat(parts, 1);
}

// Saves the exchanged qkv (as large as the local one), the output of this rank's heads and its log-sum-exp.
struct AllToAllFn : torch::autograd::Function<AllToAllFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv_NHW, const AttentionCall& call) {
    const ContextLayout& layout = *call.layout;
    const Tensor qkv_RhW =
        to_positions(exchange(split_heads(qkv_NHW, call), *call.cp, "context.qkv"), layout);
    const auto parts = qkv_RhW.split_with_sizes(heads_of(call, layout.size), 1);
    const auto attended =
        attend_documents(parts[0], parts[1], parts[2], layout.whole_documents, call.kernels);
    keep_call(ctx, call);
    ctx->save_for_backward({qkv_RhW, attended.out_NHW, attended.lse_HN});
    const Tensor out = exchange(to_ranks(attended.out_NHW, layout), *call.cp, "context.out");
    return at::_unsafe_view(out.transpose(0, 1).contiguous(), {qkv_NHW.size(0), -1});
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto call = kept_call(ctx);
    const ContextLayout& layout = *call.layout;
    const auto heads = heads_of(call, layout.size);
    const Tensor dout_NPhW = grads[0].reshape({grads[0].size(0), layout.size, heads[0], saved[0].size(2)});
    const Tensor dout_RhW =
        to_positions(exchange(dout_NPhW.transpose(0, 1), *call.cp, "context.dout"), layout);
    const auto parts = saved[0].split_with_sizes(heads, 1);
    const auto d = attend_documents_backward(dout_RhW, parts[0], parts[1], parts[2], {saved[1], saved[2]},
                                             layout.whole_documents, call.kernels);
    const Tensor dqkv_RhW = at::cat({d.dq, d.dk, d.dv}, 1);
    return {join_heads(exchange(to_ranks(dqkv_RhW, layout), *call.cp, "context.dqkv"), call), Tensor()};
  }
};

}  // namespace

Tensor all_to_all_attention(const Tensor& qkv_NHW, const AttentionCall& call) {
  return AllToAllFn::apply(qkv_NHW, call);
}

}  // namespace hearth::context
