// Packed windows: attention never crosses a document's border, whatever the other documents hold.
#include "trainer/model/attention.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>

#include "base/error.h"
#include "tests/compare.h"
#include "tests/trainer/tiny_model.h"

using namespace hearth;
using hearth::testing::compare;
using hearth::testing::random_ids;
using hearth::testing::tiny_config;
using hearth::testing::TinyModel;
namespace bdata = boost::unit_test::data;

namespace {

// 600 first tokens mean that whole blocks of keys are hidden from the second document inside the attention
// kernel.
const auto kBorders = bdata::make({1, 17, 600});
const auto kDTypes = bdata::make({DType::F32, DType::BF16});
const AttentionTarget kTarget{at::kCPU, at::kFloat, {}};
constexpr int64_t kSecond = 40;  // tokens of the second document

at::Tensor logits(TinyModel& model, const at::Tensor& ids,
                  const std::vector<std::vector<int32_t>>& document_starts) {
  const at::NoGradGuard no_grad;
  const auto batch = static_cast<int64_t>(document_starts.size());
  ModelInput input{
      ids, make_attention_layout(document_starts, ids.numel() / batch, model.transformer.attention_target())};
  return model.transformer.logits(model.transformer.hidden_states(input));
}

at::Tensor window(int64_t border, uint64_t first_seed, uint64_t second_seed) {
  return at::cat({random_ids(border, 61, first_seed), random_ids(kSecond, 61, second_seed)});
}

}  // namespace

BOOST_TEST_DONT_PRINT_LOG_VALUE(DType)

BOOST_DATA_TEST_CASE(changing_a_document_leaves_the_other_bit_equal, kBorders* kDTypes, border, dtype) {
  TinyModel model(tiny_config(), dtype, {}, WithGradients::No);
  const std::vector<std::vector<int32_t>> starts{{0, border}};
  const at::Tensor base = logits(model, window(border, 1, 2), starts);
  const at::Tensor other_first = logits(model, window(border, 3, 2), starts);
  const at::Tensor other_second = logits(model, window(border, 1, 4), starts);
  BOOST_TEST(compare(base, base, 0).ok());  // finite everywhere
  BOOST_TEST(at::equal(other_first.narrow(0, border, kSecond), base.narrow(0, border, kSecond)));
  BOOST_TEST(at::equal(other_second.narrow(0, 0, border), base.narrow(0, 0, border)));
  BOOST_TEST(!at::equal(other_first.narrow(0, 0, border), base.narrow(0, 0, border)));
  BOOST_TEST(!at::equal(other_second.narrow(0, border, kSecond), base.narrow(0, border, kSecond)));
}

BOOST_DATA_TEST_CASE(without_the_border_the_first_document_is_seen, kDTypes, dtype) {
  TinyModel model(tiny_config(), dtype, {}, WithGradients::No);
  const at::Tensor a = logits(model, window(17, 1, 2), {{0}}), b = logits(model, window(17, 3, 2), {{0}});
  BOOST_TEST(!at::equal(a.narrow(0, 17, kSecond), b.narrow(0, 17, kSecond)));
}

// The other sequence of the batch is out of sight too, with and without borders.
BOOST_DATA_TEST_CASE(sequences_of_a_batch_do_not_meet, kDTypes, dtype) {
  TinyModel model(tiny_config(), dtype, {}, WithGradients::No);
  const at::Tensor first = window(17, 1, 2), second = window(17, 3, 4), other = window(17, 5, 6);
  const int64_t rows = first.numel();
  for (const auto& starts :
       {std::vector<std::vector<int32_t>>{{0}, {0}}, {{0, 17}, {0}}, {{0}, {0, 5, 30}}}) {
    const at::Tensor base = logits(model, at::cat({first, second}), starts);
    BOOST_TEST(at::equal(logits(model, at::cat({first, other}), starts).narrow(0, 0, rows),
                         base.narrow(0, 0, rows)));
    BOOST_TEST(at::equal(logits(model, at::cat({other, second}), starts).narrow(0, rows, rows),
                         base.narrow(0, rows, rows)));
  }
}

// RoPE depends on distances only, so a document in a window gets what it gets alone, up to rounding: an fp32
// angle of up to 640 radians is off by up to 640 x 2^-24 = 4e-5, and some of those meet in a logit.
BOOST_DATA_TEST_CASE(a_packed_document_is_what_it_is_alone, kBorders, border) {
  TinyModel model(tiny_config(), DType::F32, {}, WithGradients::No);
  const at::Tensor packed = logits(model, window(border, 1, 2), {{0, border}}).narrow(0, border, kSecond);
  const at::Tensor alone = logits(model, random_ids(kSecond, 61, 2), {{0}});
  const auto diff = compare(packed, alone, 2e-4 * alone.abs().max().item<double>());
  BOOST_TEST(diff.ok(), diff);
}

BOOST_AUTO_TEST_CASE(one_document_needs_no_mask) {
  const auto layout = make_attention_layout({{0}, {}}, 8, kTarget);
  BOOST_TEST(layout.documents == nullptr);
  BOOST_TEST(layout.batch == 2);
}

BOOST_AUTO_TEST_CASE(starts_that_make_no_sense_are_refused) {
  const std::vector<std::vector<int32_t>> outside{{0, 8}}, negative{{-1}}, backwards{{0, 5, 3}};
  for (const auto& starts : {outside, negative, backwards})
    BOOST_CHECK_THROW(make_attention_layout(starts, 8, kTarget), Error);
}

namespace {

AttentionRows rows_on(at::DeviceType device, at::ScalarType dtype, int64_t width = 64) {
  return {.device = device, .dtype = dtype, .head_width = width, .sequence = 4096, .deterministic = false};
}

}  // namespace

BOOST_AUTO_TEST_CASE(backends_are_chosen_by_what_they_can_run) {
  const auto chosen = [](AttentionRows rows) {
    return choose_attention_backend(AttentionBackend::Auto, rows);
  };
  const auto bf16 = rows_on(at::kCUDA, at::kBFloat16);
  AttentionRows repeatable = bf16, single = bf16;
  repeatable.deterministic = true;
  single.sequence = 1;
  BOOST_TEST((chosen(bf16) == AttentionBackend::Cudnn));
  BOOST_TEST((chosen(rows_on(at::kCUDA, at::kBFloat16, 128)) == AttentionBackend::Cudnn));
  BOOST_TEST((chosen(rows_on(at::kCUDA, at::kBFloat16, 96)) == AttentionBackend::Flash));
  BOOST_TEST((chosen(repeatable) == AttentionBackend::Flash));
  BOOST_TEST((chosen(single) == AttentionBackend::Flash));
  BOOST_TEST((chosen(rows_on(at::kCUDA, at::kBFloat16, 512)) == AttentionBackend::Aten));
  BOOST_TEST((chosen(rows_on(at::kCUDA, at::kFloat)) == AttentionBackend::Aten));
  BOOST_TEST((chosen(rows_on(at::kCPU, at::kBFloat16)) == AttentionBackend::Aten));
}

// Of sequences that ranks share: what a rank with whole ones would run, where shapes come back.
BOOST_AUTO_TEST_CASE(blocks_of_shared_sequences_attend_as_whole_ones_do) {
  const AttentionTarget target{.device = at::kCUDA, .dtype = at::kBFloat16, .heads = {4, 2, 64}};
  AttentionTarget flash = target, on_cpu = target;
  flash.setting = AttentionBackend::Flash;
  on_cpu.device = at::kCPU;
  const AttentionLayout training{.batch = 1, .sequence = 128, .recurs = true, .documents = nullptr};
  AttentionLayout once = training, two_rows = training;
  once.recurs = false;
  two_rows.sequence = 2;  // chunks of one
  using context::BlockKernels;
  BOOST_TEST((block_kernels(training, target) == BlockKernels::Cudnn));
  BOOST_TEST((block_kernels(once, target) == BlockKernels::Flash));
  BOOST_TEST((block_kernels(two_rows, target) == BlockKernels::Flash));
  BOOST_TEST((block_kernels(training, flash) == BlockKernels::Flash));
  BOOST_TEST((block_kernels(training, on_cpu) == BlockKernels::Flash));
}

BOOST_AUTO_TEST_CASE(a_backend_that_was_asked_for_is_used_or_refused) {
  const auto bf16 = rows_on(at::kCUDA, at::kBFloat16);
  AttentionRows repeatable = bf16;
  repeatable.deterministic = true;
  for (const auto setting : {AttentionBackend::Cudnn, AttentionBackend::Flash, AttentionBackend::Aten})
    BOOST_TEST((choose_attention_backend(setting, bf16) == setting));
  BOOST_CHECK_THROW(choose_attention_backend(AttentionBackend::Cudnn, repeatable), Error);
  BOOST_CHECK_THROW(choose_attention_backend(AttentionBackend::Cudnn, rows_on(at::kCPU, at::kBFloat16)),
                    Error);
  BOOST_CHECK_THROW(choose_attention_backend(AttentionBackend::Flash, rows_on(at::kCUDA, at::kFloat)), Error);
  BOOST_TEST((attention_backend_from_config("flash") == AttentionBackend::Flash));
  BOOST_CHECK_THROW(attention_backend_from_config("fa2"), Error);
}
