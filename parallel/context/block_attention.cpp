#include "parallel/context/block_attention.h"

#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/attention_op.h"
#include "parallel/context/head_groups.h"
#include "parallel/context/plain_attention.h"
#include "parallel/tensor/upload.h"

namespace hearth::context {
namespace {

using at::Tensor;

enum class Kernel { CpuFlash, CudaFlash, Cudnn, Plain };

bool is_half(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16;
}

Kernel kernel_for(const Tensor& q, BlockKernels kernels = BlockKernels::Flash, int64_t keys = 1) {
  if (q.is_cpu()) return Kernel::CpuFlash;
  const int64_t width = q.size(-1);  // FlashAttention-2 takes multiples of 8 up to 256
  if (kernels == BlockKernels::Cudnn &&
      kernels::attention_is_fused(q.scalar_type(), width, std::min(q.size(1), keys)))
    return Kernel::Cudnn;
  return is_half(q.scalar_type()) && width % 8 == 0 && width <= 256 ? Kernel::CudaFlash : Kernel::Plain;
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

// ---- CUDA, bf16: cuDNN, which wants heads before rows ----

Tensor heads_first(const Tensor& x_BLHW) {
  return x_BLHW.transpose(1, 2);
}

AttendedBlock attend_cudnn(const Tensor& q, const Tensor& k, const Tensor& v, BlockMask mask) {
  const auto result = at::_scaled_dot_product_cudnn_attention(
      heads_first(q), heads_first(k), heads_first(v), /*attn_bias=*/std::nullopt,
      /*compute_log_sumexp=*/true, /*dropout_p=*/0.0, mask == BlockMask::Causal, /*return_debug_mask=*/false,
      scale_of(q));
  return {std::get<0>(result).transpose(1, 2), std::get<1>(result).squeeze(-1)};
}

AttentionGrads attend_cudnn_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                     const AttendedBlock& attended, BlockMask mask) {
  const Tensor none, no_dropout = at::empty({}, q.options().dtype(at::kLong));  // not read
  const auto [dq, dk, dv] = at::_scaled_dot_product_cudnn_attention_backward(
      heads_first(dout), heads_first(q), heads_first(k), heads_first(v), heads_first(attended.out_BLHW),
      attended.lse_BHL.contiguous().unsqueeze(-1), no_dropout, no_dropout, /*attn_bias=*/none,
      /*cum_seq_q=*/none, /*cum_seq_k=*/none, q.size(1), k.size(1), /*dropout_p=*/0.0,
      mask == BlockMask::Causal, scale_of(q));
  return {dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)};
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

}  // namespace

AttendedBlock attend(const Tensor& q_BLHW, const Tensor& k_BMKW, const Tensor& v_BMKW, BlockMask mask,
                     BlockKernels kernels) {
  switch (kernel_for(q_BLHW, kernels, k_BMKW.size(1))) {
    case Kernel::CpuFlash:
      return attend_cpu(q_BLHW, k_BMKW, v_BMKW, mask);
    case Kernel::CudaFlash:
      return attend_cuda(q_BLHW, k_BMKW, v_BMKW, mask);
    case Kernel::Cudnn:
      return attend_cudnn(q_BLHW, k_BMKW, v_BMKW, mask);
    default:
      return plain_attend(q_BLHW, k_BMKW, v_BMKW, mask);
  }
}

AttentionGrads attend_backward(const Tensor& dout_BLHW, const Tensor& q_BLHW, const Tensor& k_BMKW,
                               const Tensor& v_BMKW, const AttendedBlock& attended, BlockMask mask,
                               BlockKernels kernels) {
  switch (kernel_for(q_BLHW, kernels, k_BMKW.size(1))) {
    case Kernel::CpuFlash:
      return attend_cpu_backward(dout_BLHW, q_BLHW, k_BMKW, v_BMKW, attended, mask);
    case Kernel::CudaFlash:
      return attend_cuda_backward(dout_BLHW, q_BLHW, k_BMKW, v_BMKW, attended, mask);
    case Kernel::Cudnn:
      return attend_cudnn_backward(dout_BLHW, q_BLHW, k_BMKW, v_BMKW, attended, mask);
    default:
      return plain_attend_backward(dout_BLHW, q_BLHW, k_BMKW, v_BMKW, attended, mask);
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
  if (device.is_cuda() && is_half(dtype)) documents.cu_seqlens = upload(starts, device);
  return documents;
}

AttendedRows attend_documents(const Tensor& q_NHW, const Tensor& k_NKW, const Tensor& v_NKW,
                              const PackedDocuments& documents, BlockKernels kernels) {
  const int64_t rows = q_NHW.size(0), heads = q_NHW.size(1);
  if (documents.ranges.empty()) {
    const auto whole = [&](const Tensor& x) { return x.unflatten(0, {documents.batch, documents.rows}); };
    const auto block = attend(whole(q_NHW), whole(k_NKW), whole(v_NKW), BlockMask::Causal, kernels);
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
                                         const PackedDocuments& documents, BlockKernels kernels) {
  if (documents.ranges.empty()) {
    const auto whole = [&](const Tensor& x) { return x.unflatten(0, {documents.batch, documents.rows}); };
    const Tensor lse = attended.lse_HN.unflatten(1, {documents.batch, documents.rows}).transpose(0, 1);
    const auto grads = attend_backward(whole(dout_NHW), whole(q_NHW), whole(k_NKW), whole(v_NKW),
                                       {whole(attended.out_NHW), lse}, BlockMask::Causal, kernels);
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
