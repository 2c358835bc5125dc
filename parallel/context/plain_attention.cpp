#include "parallel/context/plain_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "parallel/context/head_groups.h"

namespace hearth::context {
namespace {

using at::Tensor;

// The block in the dtype of the sums.
struct PlainBlock {
  Tensor q, k, v;  // [B x K, H/K, L, W], [B x K, 1, M, W] twice
  double scale;
  BlockMask mask;

  PlainBlock(const Tensor& q_BLHW, const Tensor& k_BMKW, const Tensor& v_BMKW, BlockMask block_mask)
      : scale(scale_of(q_BLHW)), mask(block_mask) {
    const auto dtype = q_BLHW.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    q = grouped(q_BLHW, k_BMKW.size(2)).to(dtype);
    k = grouped_keys(k_BMKW).to(dtype);
    v = grouped_keys(v_BMKW).to(dtype);
  }
  int64_t queries() const { return q.size(2); }
  // Keys that queries before `end` see.
  int64_t keys(int64_t end) const { return mask == BlockMask::Causal ? end : k.size(2); }
  int64_t queries_at_once(int64_t max_scores) const {
    return std::clamp<int64_t>(max_scores / (q.size(0) * q.size(1) * k.size(2)), 1, queries());
  }
  // Scaled scores of queries [begin, end): [B x K, H/K, end - begin, keys(end)].
  Tensor scores(int64_t begin, int64_t end) const {
    Tensor out =
        at::matmul(q.narrow(2, begin, end - begin), k.narrow(2, 0, keys(end)).transpose(2, 3)).mul_(scale);
    if (mask == BlockMask::Full) return out;
    const auto options = at::TensorOptions(q.device()).dtype(at::kLong);
    const Tensor later =
        at::arange(end, options).unsqueeze(0).gt(at::arange(begin, end, options).unsqueeze(1));
    return out.masked_fill_(later, -std::numeric_limits<double>::infinity());
  }
};

}  // namespace

AttendedBlock plain_attend(const Tensor& q, const Tensor& k, const Tensor& v, BlockMask mask,
                           int64_t max_scores) {
  const PlainBlock block(q, k, v, mask);
  const int64_t at_once = block.queries_at_once(max_scores), batch = q.size(0);
  Tensor out = at::empty(block.q.sizes(), block.q.options());
  Tensor lse = at::empty(block.q.sizes().slice(0, 3), block.q.options());
  for (int64_t begin = 0; begin < block.queries(); begin += at_once) {
    const int64_t end = std::min(begin + at_once, block.queries()), count = end - begin;
    const Tensor scores = block.scores(begin, end), row_lse = at::logsumexp(scores, {-1}, /*keepdim=*/true);
    lse.narrow(2, begin, count).copy_(row_lse.squeeze(-1));
    out.narrow(2, begin, count)
        .copy_(at::matmul(at::exp(scores - row_lse), block.v.narrow(2, 0, block.keys(end))));
  }
  return {ungrouped(out, batch).to(q.scalar_type()), ungrouped_lse(lse, batch)};
}

AttentionGrads plain_attend_backward(const Tensor& dout_BLHW, const Tensor& q, const Tensor& k,
                                     const Tensor& v, const AttendedBlock& attended, BlockMask mask,
                                     int64_t max_scores) {
  const PlainBlock block(q, k, v, mask);
  const int64_t at_once = block.queries_at_once(max_scores), batch = q.size(0), kv_heads = k.size(2);
  const Tensor dout = grouped(dout_BLHW, kv_heads).to(block.q.scalar_type());
  const Tensor out = grouped(attended.out_BLHW, kv_heads).to(block.q.scalar_type());
  const Tensor lse = grouped_lse(attended.lse_BHL, kv_heads).unsqueeze(-1);
  const Tensor correction = (dout * out).sum(-1, /*keepdim=*/true);
  Tensor dq = at::empty(block.q.sizes(), block.q.options());
  Tensor dk = at::zeros(block.k.sizes(), block.k.options()),
         dv = at::zeros(block.v.sizes(), block.v.options());
  for (int64_t begin = 0; begin < block.queries(); begin += at_once) {
    const int64_t end = std::min(begin + at_once, block.queries()), count = end - begin,
                  keys = block.keys(end);
    const auto part = [&](const Tensor& x) { return x.narrow(2, begin, count); };
    const Tensor p = at::exp(block.scores(begin, end) - part(lse));
    const Tensor dp = at::matmul(part(dout), block.v.narrow(2, 0, keys).transpose(2, 3));
    const Tensor ds = (p * (dp - part(correction))).mul_(block.scale);
    part(dq).copy_(at::matmul(ds, block.k.narrow(2, 0, keys)));
    dk.narrow(2, 0, keys).add_(at::matmul(ds.transpose(2, 3), part(block.q)).sum(1, true));
    dv.narrow(2, 0, keys).add_(at::matmul(p.transpose(2, 3), part(dout)).sum(1, true));
  }
  const auto dtype = q.scalar_type();
  return {ungrouped(dq, batch).to(dtype), ungrouped_keys(dk.squeeze(1), batch).to(dtype),
          ungrouped_keys(dv.squeeze(1), batch).to(dtype)};
}

}  // namespace hearth::context
