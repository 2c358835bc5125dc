// NF4 against its fp64 reference and against what bitsandbytes makes of the same weights (nf4_golden.h).
// Sizes straddle one CUDA block (2048 values), one group of scales (256 blocks) and one task of the CPU
// (256).
#include "kernels/reference/nf4.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstring>

#include "kernels/nf4_op.h"
#include "tests/kernels/kernel_test_support.h"
#include "tests/kernels/nf4_golden.h"

namespace hearth {
namespace {

using namespace kernels;
using namespace testing;
namespace bdata = boost::unit_test::data;

at::Tensor random_weights(int64_t blocks, uint64_t seed) {
  return random_tensor({blocks * kNf4Block}, at::kFloat, seed, 0.02).cpu();
}

std::vector<int> unpacked(const at::Tensor& codes) {
  std::vector<int> out;
  for (const int byte : values<int>(codes)) out.insert(out.end(), {byte >> 4, byte & 15});
  return out;
}

// A whole tensor as its own part, on the device under test.
Nf4Part quantized(const at::Tensor& weights) {
  const Nf4Values blocks = nf4_quantize_op(weights);
  const Nf4Scales scales = nf4_quantize_scales_op(blocks.absmax_B);
  const at::Device device = device_under_test();
  return {blocks.codes.to(device),
          scales.codes_B.to(device),
          scales.groups_G.to(device),
          nf4_dynamic_map().to(device),
          scales.mean,
          {.first = 0, .run = blocks.absmax_B.numel(), .stride = 0}};
}

at::Tensor dequantized(const Nf4Part& part, at::ScalarType dtype, KernelPath path = KernelPath::Fused) {
  at::Tensor out = at::empty({part.scales_B.numel() * kNf4Block}, part.groups_G.options().dtype(dtype));
  nf4_dequantize_op(part, out, path);
  return out;
}

std::vector<double> block_scales(const Nf4Part& part) {
  const auto codes = values<int>(part.scales_B);
  const auto groups = values<double>(part.groups_G), map = values<double>(part.dynamic_map);
  std::vector<double> out;
  for (size_t b = 0; b < codes.size(); ++b) {
    const auto block = static_cast<int64_t>(b);
    const int64_t at = part.place.first + block / part.place.run * part.place.stride + block % part.place.run;
    out.push_back(map[static_cast<size_t>(codes[b])] * groups[static_cast<size_t>(at / kNf4Group)] +
                  static_cast<double>(part.mean));
  }
  return out;
}

uint64_t fnv(const at::Tensor& tensor) {
  const at::Tensor host = tensor.cpu().contiguous();
  const auto* bytes = static_cast<const uint8_t*>(host.const_data_ptr());
  uint64_t digest = 0xcbf29ce484222325ULL;
  for (size_t i = 0; i < host.nbytes(); ++i) digest = (digest ^ bytes[i]) * 0x100000001b3ULL;
  return digest;
}

BOOST_AUTO_TEST_CASE(codes_scales_and_values_are_those_of_bitsandbytes) {
  at::Tensor weights = at::empty({kGoldenBlocks * kNf4Block}, at::kFloat);
  for (int64_t i = 0; i < weights.numel(); ++i) {
    const uint64_t hashed = static_cast<uint64_t>(i) * 2654435761ULL & 0xffffffffULL;
    const auto centred = static_cast<float>(static_cast<int64_t>(hashed >> 8) - (int64_t{1} << 23));
    weights.data_ptr<float>()[i] = centred * 0x1p-28f * static_cast<float>(1 + i / kNf4Block % 37);
  }
  const Nf4Part part = quantized(weights);
  BOOST_TEST(fnv(part.dynamic_map) == kGoldenMap);
  BOOST_TEST(fnv(part.codes) == kGoldenCodes);
  BOOST_TEST(part.mean == kGoldenMean);
  BOOST_TEST(
      values<float>(part.groups_G) == std::vector<float>(std::begin(kGoldenGroups), std::end(kGoldenGroups)),
      boost::test_tools::per_element());
  BOOST_TEST(fnv(part.scales_B) == kGoldenScales);
  BOOST_TEST(fnv(dequantized(part, at::kFloat)) == kGoldenValues);
}

BOOST_DATA_TEST_CASE(codes_are_the_nearest, bdata::make({1, 2, 255, 256, 257}), blocks) {
  const at::Tensor weights = random_weights(blocks, 71);
  const Nf4Values got = nf4_quantize_op(weights);
  const auto want = reference::nf4_quantize(values<double>(weights));
  const auto codes = unpacked(got.codes);
  // Two roundings to fp32 move a value by 2^-23 of its block's scale: only a tie that close may go either
  // way.
  int64_t wrong = 0, close = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    wrong += codes[i] != want.codes[i] && want.margin[i] > 0x1p-21 ? 1 : 0;
    close += want.margin[i] <= 0x1p-21 ? 1 : 0;
  }
  BOOST_TEST(wrong == 0);
  BOOST_TEST(close <= blocks / 64 + 1);
  BOOST_TEST(compare(got.absmax_B, tensor_of(want.absmax, {blocks}), 0).ok());
}

BOOST_DATA_TEST_CASE(values_come_back, bdata::make({1, 31, 32, 33, 255, 256, 257, 513}), blocks) {
  const at::Tensor weights = random_weights(blocks, 72);
  const Nf4Part part = quantized(weights);
  const auto codes = unpacked(part.codes);
  const auto scales = block_scales(part);
  const auto want = reference::nf4_dequantize<double>(codes, scales);
  for_each_dtype([&]<class T>(at::ScalarType dtype) {
    const at::Tensor got = dequantized(part, dtype);
    // The scale is rounded twice, the value once more.
    check_close("values", got, reference::nf4_dequantize<T>(codes, scales), want, 0x1p-22 * 0.1);
    BOOST_TEST(bit_equal(got, dequantized(part, dtype, KernelPath::Plain)));
  });
  // Levels are at most 0.304 of a block's scale apart, and a scale moves by half a step of the map, 1/128 of
  // the largest deviation in its group, itself below the largest scale.
  const double most = weights.abs().max().item<double>();
  BOOST_TEST(compare(dequantized(part, at::kFloat), weights, (0.304 / 2 + 1.0 / 128) * most).ok());
}

// Rows [*, 4 blocks] of a matrix of 10 blocks a row, from its fourth block on; and a run of blocks.
BOOST_AUTO_TEST_CASE(a_part_has_the_values_of_the_whole) {
  constexpr int64_t kRows = 100, kRow = 10, kFirst = 3, kRun = 4;
  const Nf4Part whole = quantized(random_weights(kRows * kRow, 73));
  const at::Tensor all = dequantized(whole, at::kBFloat16).view({kRows, kRow, kNf4Block});
  const at::Tensor bytes = whole.codes.view({kRows, kRow, -1}), scales = whole.scales_B.view({kRows, kRow});
  Nf4Part columns = whole;
  columns.codes = bytes.narrow(1, kFirst, kRun).contiguous().view({-1});
  columns.scales_B = scales.narrow(1, kFirst, kRun).contiguous().view({-1});
  columns.place = {.first = kFirst, .run = kRun, .stride = kRow};
  Nf4Part rows = whole;
  rows.codes = bytes.narrow(0, 51, 49).contiguous().view({-1});
  rows.scales_B = scales.narrow(0, 51, 49).contiguous().view({-1});
  rows.place = {.first = 51 * kRow, .run = 49 * kRow, .stride = 0};
  for (const KernelPath path : {KernelPath::Fused, KernelPath::Plain}) {
    BOOST_TEST(bit_equal(dequantized(columns, at::kBFloat16, path),
                         all.narrow(1, kFirst, kRun).contiguous().view({-1})));
    BOOST_TEST(
        bit_equal(dequantized(rows, at::kBFloat16, path), all.narrow(0, 51, 49).contiguous().view({-1})));
  }
}

BOOST_AUTO_TEST_CASE(zeros_stay_zero) {
  const Nf4Part part = quantized(at::zeros({2 * kNf4Block}, at::kFloat));
  BOOST_TEST(dequantized(part, at::kFloat).abs().max().item<double>() == 0.0);
}

BOOST_AUTO_TEST_CASE(what_is_wrong_is_refused) {
  at::Tensor weights = random_weights(2, 74);
  BOOST_CHECK_THROW(nf4_quantize_op(weights.narrow(0, 0, 100)), Error);
  BOOST_CHECK_THROW(nf4_quantize_op(weights.to(at::kBFloat16)), Error);
  Nf4Part part = quantized(weights);
  for (const float bad : {std::nanf(""), INFINITY}) {
    weights.data_ptr<float>()[70] = bad;
    BOOST_CHECK_THROW(nf4_quantize_op(weights), Error);
  }
  part.place.first = kNf4Group;  // beyond the tensor
  BOOST_CHECK_THROW(dequantized(part, at::kFloat), Error);
  part.place.first = 0;
  BOOST_CHECK_THROW(dequantized(part, at::kHalf), Error);
  part.scales_B = part.scales_B.narrow(0, 0, 1);
  at::Tensor out = at::empty({2 * kNf4Block}, part.groups_G.options());
  BOOST_CHECK_THROW(nf4_dequantize_op(part, out), Error);
}

}  // namespace
}  // namespace hearth
