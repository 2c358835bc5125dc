#include "parallel/context/block_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace hearth::context {
namespace {

using at::Tensor;

// Elements of one score matrix of the plain kernel: 64 MB in fp32; the queries are cut to stay below.
constexpr int64_t kPlainScores = int64_t{1} << 24;

enum class Kernel { CpuFlash, CudaFlash, Plain };

bool is_half(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16;
}

Kernel kernel_for(const Tensor& q) {
  if (q.is_cpu()) return Kernel::CpuFlash;
  const int64_t width = q.size(-1);  // FlashAttention-2 takes multiples of 8 up to 256
  return is_half(q.scalar_type()) && width % 8 == 0 && width <= 256 ? Kernel::CudaFlash : Kernel::Plain;
}

double scale_of(const Tensor& q) {
  return 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
}

// [B, L, H, W] -> [B x K, H/K, L, W]: the heads that share a key/value head are the heads of one batch entry.
Tensor grouped(const Tensor& x_BLHW, int64_t kv_heads) {
  return x_BLHW.unflatten(2, {kv_heads, x_BLHW.size(2) / kv_heads}).permute({0, 2, 3, 1, 4}).flatten(0, 1);
}
Tensor ungrouped(const Tensor& x, int64_t batch) {
  return x.unflatten(0, {batch, x.size(0) / batch}).permute({0, 3, 1, 2, 4}).flatten(2, 3);
}
Tensor grouped_lse(const Tensor& lse_BHL, int64_t kv_heads) {
  return lse_BHL.unflatten(1, {kv_heads, lse_BHL.size(1) / kv_heads}).flatten(0, 1);
}
Tensor ungrouped_lse(const Tensor& lse, int64_t batch) {
  return lse.unflatten(0, {batch, lse.size(0) / batch}).flatten(1, 2);
}
// [B, M, K, W] -> [B x K, 1, M, W].
Tensor grouped_keys(const Tensor& x_BMKW) {
  return x_BMKW.transpose(1, 2).flatten(0, 1).unsqueeze(1);
}
Tensor ungrouped_keys(const Tensor& x, int64_t batch) {
  return x.unflatten(0, {batch, x.size(0) / batch}).transpose(1, 2);
}

// ---- CPU: LibTorch's blocked kernel, keys shared by stride 0 ----

Tensor shared_keys(const Tensor& x_BMKW, int64_t queries_per_key) {
  return grouped_keys(x_BMKW).expand({-1, queries_per_key, -1, -1});
}

AttendedBlock attend_cpu(const Tensor& q, const Tensor& k, const Tensor& v, BlockMask mask) {
  const int64_t batch = q.size(0), kv_heads = k.size(2), share = q.size(2) / kv_heads;
  const auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
      grouped(q, kv_heads), shared_keys(k, share), shared_keys(v, share), /*dropout_p=*/0.0,
      mask == BlockMask::Causal);
  return {ungrouped(out, batch), ungrouped_lse(lse, batch)};
}

AttentionGrads attend_cpu_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const AttendedBlock& attended, BlockMask mask) {
  const int64_t batch = q.size(0), kv_heads = k.size(2), share = q.size(2) / kv_heads;
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      grouped(dout, kv_heads), grouped(q, kv_heads), shared_keys(k, share), shared_keys(v, share),
      grouped(attended.out_BLHW, kv_heads), grouped_lse(attended.lse_BHL, kv_heads), /*dropout_p=*/0.0,
      mask == BlockMask::Causal);
  return {ungrouped(dq, batch), ungrouped_keys(dk.sum(1), batch), ungrouped_keys(dv.sum(1), batch)};
}

// ---- CUDA, half precision: FlashAttention-2 ----

AttendedBlock attend_cuda(const Tensor& q, const Tensor& k, const Tensor& v, BlockMask mask) {
  const auto result = at::_flash_attention_forward(q, k, v, std::nullopt, std::nullopt, q.size(1), k.size(1),
                                                   /*dropout_p=*/0.0, mask == BlockMask::Causal,
                                                   /*return_debug_mask=*/false, scale_of(q));
  return {std::get<0>(result), std::get<1>(result)};
}

// The kernel reads the log-sum-exp as [B, H, L] without strides.
AttentionGrads attend_cuda_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttendedBlock& attended, BlockMask mask) {
  const Tensor none;
  const auto [dq, dk, dv] =
      at::_flash_attention_backward(dout, q, k, v, attended.out_BLHW, attended.lse_BHL.contiguous(), none,
                                    none, q.size(1), k.size(1), /*dropout_p=*/0.0, mask == BlockMask::Causal,
                                    /*rng_state=*/none, /*unused=*/none, scale_of(q));
  return {dq, dk, dv};
}

// Longest document as the kernel is told it, an upper bound. Not 1: the kernel then takes a path for
// decoding, which with shared key/value heads returns the log-sum-exp in another order.
int64_t longest_for_kernel(const PackedDocuments& documents) {
  return std::max<int64_t>(documents.longest, 2);
}

AttendedRows attend_packed_cuda(const Tensor& q, const Tensor& k, const Tensor& v,
                                const PackedDocuments& documents) {
  const int64_t longest = longest_for_kernel(documents);
  const auto result =
      at::_flash_attention_forward(q, k, v, documents.cu_seqlens, documents.cu_seqlens, longest, longest,
                                   /*dropout_p=*/0.0, /*is_causal=*/true,
                                   /*return_debug_mask=*/false, scale_of(q));
  return {std::get<0>(result).contiguous(), std::get<1>(result)};
}

AttentionGrads attend_packed_cuda_backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                           const Tensor& v, const AttendedRows& attended,
                                           const PackedDocuments& documents) {
  const Tensor none;
  const int64_t longest = longest_for_kernel(documents);
  const auto [dq, dk, dv] = at::_flash_attention_backward(
      dout, q, k, v, attended.out_NHW, attended.lse_HN, documents.cu_seqlens, documents.cu_seqlens, longest,
      longest,
      /*dropout_p=*/0.0, /*is_causal=*/true, /*rng_state=*/none, /*unused=*/none, scale_of(q));
  return {dq, dk, dv};
}

// ---- Anywhere else: matrix products, some queries at a time ----

// Queries, keys and values as matrices [B x K, rows, W] in the dtype of the sums; the H/K heads of a group
// are rows.
struct PlainBlock {
  Tensor q, k, v;  // q: [B x K, H/K, L, W]
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
  int64_t queries_at_once() const {
    return std::clamp<int64_t>(kPlainScores / (q.size(0) * q.size(1) * k.size(2)), 1, queries());
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

AttendedBlock attend_plain(const Tensor& q, const Tensor& k, const Tensor& v, BlockMask mask) {
  const PlainBlock block(q, k, v, mask);
  const int64_t at_once = block.queries_at_once(), batch = q.size(0);
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

AttentionGrads attend_plain_backward(const Tensor& dout_BLHW, const Tensor& q, const Tensor& k,
                                     const Tensor& v, const AttendedBlock& attended, BlockMask mask) {
  const PlainBlock block(q, k, v, mask);
  const int64_t at_once = block.queries_at_once(), batch = q.size(0), kv_heads = k.size(2);
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

}  // namespace

AttendedBlock attend(const Tensor& q_BLHW, const Tensor& k_BMKW, const Tensor& v_BMKW, BlockMask mask) {
  switch (kernel_for(q_BLHW)) {
    case Kernel::CpuFlash:
      return attend_cpu(q_BLHW, k_BMKW, v_BMKW, mask);
    case Kernel::CudaFlash:
      return attend_cuda(q_BLHW, k_BMKW, v_BMKW, mask);
    default:
      return attend_plain(q_BLHW, k_BMKW, v_BMKW, mask);
  }
}

AttentionGrads attend_backward(const Tensor& dout_BLHW, const Tensor& q_BLHW, const Tensor& k_BMKW,
                               const Tensor& v_BMKW, const AttendedBlock& attended, BlockMask mask) {
  switch (kernel_for(q_BLHW)) {
    case Kernel::CpuFlash:
      return attend_cpu_backward(dout_BLHW, q_BLHW, k_BMKW, v_BMKW, attended, mask);
    case Kernel::CudaFlash:
      return attend_cuda_backward(dout_BLHW, q_BLHW, k_BMKW, v_BMKW, attended, mask);
    default:
      return attend_plain_backward(dout_BLHW, q_BLHW, k_BMKW, v_BMKW, attended, mask);
  }
}

PackedDocuments make_packed_documents(std::vector<RowRange> ranges, int64_t batch, int64_t rows,
                                      at::Device device, at::ScalarType dtype) {
  PackedDocuments documents{.batch = batch, .rows = rows};
  if (static_cast<int64_t>(ranges.size()) == batch) return documents;
  documents.ranges = std::move(ranges);
  std::vector<int32_t> starts;
  for (const RowRange& range : documents.ranges) {
    starts.push_back(checked_cast<int32_t>(range.begin));
    documents.longest = std::max(documents.longest, range.count);
  }
  starts.push_back(checked_cast<int32_t>(batch * rows));
  if (device.is_cuda() && is_half(dtype)) documents.cu_seqlens = at::tensor(starts, at::kInt).to(device);
  return documents;
}

AttendedRows attend_documents(const Tensor& q_NHW, const Tensor& k_NKW, const Tensor& v_NKW,
                              const PackedDocuments& documents) {
  const int64_t rows = q_NHW.size(0), heads = q_NHW.size(1);
  if (documents.ranges.empty()) {
    const auto whole = [&](const Tensor& x) { return x.unflatten(0, {documents.batch, documents.rows}); };
    const auto block = attend(whole(q_NHW), whole(k_NKW), whole(v_NKW), BlockMask::Causal);
    return {block.out_BLHW.flatten(0, 1).contiguous(),
            block.lse_BHL.transpose(0, 1).reshape({heads, rows}).contiguous()};
  }
  if (documents.cu_seqlens.defined() && kernel_for(q_NHW) == Kernel::CudaFlash)
    return attend_packed_cuda(q_NHW, k_NKW, v_NKW, documents);
  const auto sum_dtype = q_NHW.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  AttendedRows all{at::empty(q_NHW.sizes(), q_NHW.options()),
                   at::empty({heads, rows}, q_NHW.options().dtype(sum_dtype))};
  for (const RowRange& range : documents.ranges) {
    const auto part = [&](const Tensor& x) { return x.narrow(0, range.begin, range.count).unsqueeze(0); };
    const auto block = attend(part(q_NHW), part(k_NKW), part(v_NKW), BlockMask::Causal);
    part(all.out_NHW).copy_(block.out_BLHW);
    all.lse_HN.narrow(1, range.begin, range.count).copy_(block.lse_BHL[0]);
  }
  return all;
}

AttentionGrads attend_documents_backward(const Tensor& dout_NHW, const Tensor& q_NHW, const Tensor& k_NKW,
                                         const Tensor& v_NKW, const AttendedRows& attended,
                                         const PackedDocuments& documents) {
  if (documents.ranges.empty()) {
    const auto whole = [&](const Tensor& x) { return x.unflatten(0, {documents.batch, documents.rows}); };
    const Tensor lse = attended.lse_HN.unflatten(1, {documents.batch, documents.rows}).transpose(0, 1);
    const auto grads = attend_backward(whole(dout_NHW), whole(q_NHW), whole(k_NKW), whole(v_NKW),
                                       {whole(attended.out_NHW), lse}, BlockMask::Causal);
    return {grads.dq.flatten(0, 1), grads.dk.flatten(0, 1), grads.dv.flatten(0, 1)};
  }
  if (documents.cu_seqlens.defined() && kernel_for(q_NHW) == Kernel::CudaFlash)
    return attend_packed_cuda_backward(dout_NHW, q_NHW, k_NKW, v_NKW, attended, documents);
  const auto like = [](const Tensor& x) { return at::empty(x.sizes(), x.options()); };
  AttentionGrads all{like(q_NHW), like(k_NKW), like(v_NKW)};
  for (const RowRange& range : documents.ranges) {
    const auto part = [&](const Tensor& x) { return x.narrow(0, range.begin, range.count).unsqueeze(0); };
    const Tensor lse = attended.lse_HN.narrow(1, range.begin, range.count).unsqueeze(0);
    const auto grads = attend_backward(part(dout_NHW), part(q_NHW), part(k_NKW), part(v_NKW),
                                       {part(attended.out_NHW), lse}, BlockMask::Causal);
    part(all.dq).copy_(grads.dq);
    part(all.dk).copy_(grads.dk);
    part(all.dv).copy_(grads.dv);
  }
  return all;
}

}  // namespace hearth::context
