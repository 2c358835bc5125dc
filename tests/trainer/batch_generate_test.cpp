// Many sequences at once: the same tokens as one by one, with the student's distribution, and as many calls
// as said.
#include "trainer/batch_generate.h"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>

#include "tests/trainer/tiny_model.h"
#include "trainer/generate.h"

using namespace hearth;
using hearth::testing::random_ids;
using hearth::testing::tiny_config;
using hearth::testing::TinyModel;

namespace {

BatchPrompt prompt_of(int64_t length, int64_t max_new_tokens, uint64_t number) {
  const at::Tensor ids = random_ids(length, tiny_config().vocab_size, 100 + number);
  const auto* id = ids.const_data_ptr<int64_t>();
  return {.ids = {id, id + length}, .max_new_tokens = max_new_tokens, .first_draw = 1000 * number};
}

// Lengths of prompts and texts that make several groups of several rows.
std::vector<BatchPrompt> mixed_prompts() {
  std::vector<BatchPrompt> prompts;
  for (const auto& [length, more] :
       {std::pair{1, 1}, {1, 20}, {17, 3}, {5, 9}, {5, 1}, {30, 12}, {2, 40}, {9, 9}})
    prompts.push_back(prompt_of(length, more, prompts.size()));
  return prompts;
}

BatchGenerationOptions options_at(double temperature, int64_t tokens_per_group) {
  return {.temperature = temperature,
          .vocab = tiny_config().vocab_size,
          .eos_ids = {3, 11},
          .tokens_per_group = tokens_per_group};
}

const CounterRng kRng(/*seed=*/5, "batch_generate_test");

std::vector<std::vector<int32_t>> generated(InferenceModel& model, const std::vector<BatchPrompt>& prompts,
                                            const BatchGenerationOptions& options, int64_t more_calls = 0) {
  return generate_batch(model, prompts, options, kRng, generation_calls(prompts, options) + more_calls);
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_batch_gives_what_its_prompts_give_one_by_one) {
  TinyModel tiny(tiny_config());
  InferenceModel model(tiny.transformer);
  const auto prompts = mixed_prompts();
  for (const double temperature : {0.0, 0.7, 1.0}) {
    const auto one_by_one = generated(model, prompts, options_at(temperature, /*tokens_per_group=*/1));
    for (const int64_t tokens : {50, 120, 1 << 20}) {
      const auto together = generated(model, prompts, options_at(temperature, tokens), /*more_calls=*/3);
      for (size_t i = 0; i < prompts.size(); ++i) BOOST_TEST(together[i] == one_by_one[i]);
    }
  }
}

BOOST_AUTO_TEST_CASE(greedy_gives_what_generate_gives) {
  TinyModel tiny(tiny_config());
  InferenceModel model(tiny.transformer);
  const auto prompts = mixed_prompts();
  const auto options = options_at(0.0, 1 << 20);
  const auto texts = generated(model, prompts, options);
  size_t ended = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const Generation want = generate(
        model, prompts[i].ids, {.max_new_tokens = prompts[i].max_new_tokens, .eos_ids = options.eos_ids}, {});
    BOOST_TEST(texts[i] == want.ids);
    ended += want.finish == FinishReason::Stop ? 1 : 0;
  }
  BOOST_TEST(ended < prompts.size());
}

BOOST_AUTO_TEST_CASE(a_text_ends_at_eos) {
  TinyModel tiny(tiny_config());
  InferenceModel model(tiny.transformer);
  const std::vector<BatchPrompt> prompts{prompt_of(4, 12, 1), prompt_of(6, 12, 2)};
  auto options = options_at(1.0, 1 << 20);
  options.eos_ids.clear();
  const auto whole = generated(model, prompts, options);
  BOOST_TEST(whole[0].size() == 12);
  options.eos_ids = {whole[0][5]};
  const auto ended = generated(model, prompts, options);
  const auto first = std::find(whole[0].begin(), whole[0].end(), whole[0][5]);
  BOOST_TEST(ended[0] == std::vector<int32_t>(whole[0].begin(), first + 1));
}

BOOST_AUTO_TEST_CASE(at_temperature_1_tokens_have_the_softmax_distribution) {
  constexpr int64_t kDraws = 20000, kVocab = 8;
  TinyModel tiny(tiny_config());
  InferenceModel model(tiny.transformer);
  for (const double temperature : {1.0, 2.0}) {
    const auto one = prompt_of(3, 1, 0);
    std::vector<BatchPrompt> prompts(kDraws, one);
    for (size_t i = 0; i < prompts.size(); ++i) prompts[i].first_draw = i;
    auto options = options_at(temperature, 1 << 20);
    options.vocab = kVocab;
    std::vector<double> drawn(kVocab, 0.0);
    for (const auto& text : generated(model, prompts, options)) {
      BOOST_REQUIRE(text.size() == 1);
      BOOST_REQUIRE(text[0] < kVocab);
      ++drawn[static_cast<size_t>(text[0])];
    }
    const at::Tensor logits = model.logits({one.ids.begin(), one.ids.end()}, nullptr, /*last=*/1);
    const auto p = logits.view({-1}).narrow(0, 0, kVocab).to(at::kDouble).div(temperature).softmax(0);
    double chi_square = 0.0;
    for (int64_t i = 0; i < kVocab; ++i) {
      const double want = p[i].item<double>() * kDraws;
      BOOST_REQUIRE(want >= 5.0);  // where the statistic has its distribution
      chi_square += (drawn[static_cast<size_t>(i)] - want) * (drawn[static_cast<size_t>(i)] - want) / want;
    }
    // Seven degrees of freedom: a correct sampler exceeds 29.9 once in 10^4 seeds, and this seed is fixed.
    BOOST_TEST(chi_square <= 29.9);
    BOOST_TEST(chi_square > 0.0);
  }
}

BOOST_AUTO_TEST_CASE(logits_that_are_not_finite_give_some_id) {
  TinyModel tiny(tiny_config());
  tiny.parameters.at("model.norm.weight").weight.fill_(std::numeric_limits<float>::quiet_NaN());
  InferenceModel model(tiny.transformer);
  for (const double temperature : {0.0, 1.0})
    for (const auto& text : generated(model, mixed_prompts(), options_at(temperature, 1 << 20)))
      for (const int32_t id : text) BOOST_TEST((id >= 0 && id < tiny_config().vocab_size));
}

BOOST_AUTO_TEST_CASE(calls_are_counted_ahead) {
  // Group 1: prompts of 2 and 4 tokens, up to position 6; group 2: one of 5 tokens, up to 10.
  const std::vector<BatchPrompt> prompts{prompt_of(5, 5, 0), prompt_of(2, 3, 1), prompt_of(4, 2, 2)};
  BOOST_TEST(generation_calls(prompts, options_at(1.0, 12)) == (6 - 2) + (10 - 5));
  BOOST_TEST(generation_calls(prompts, options_at(1.0, 1000)) == 10 - 2);
  BOOST_TEST(generation_calls(prompts, options_at(1.0, 1)) == 5 + 3 + 2);
  BOOST_TEST(generation_calls({}, options_at(1.0, 12)) == 0);
  TinyModel tiny(tiny_config());
  InferenceModel model(tiny.transformer);
  BOOST_CHECK_THROW(generate_batch(model, prompts, options_at(1.0, 12), kRng, 8), Error);
  BOOST_TEST(generate_batch(model, {}, options_at(1.0, 12), kRng, 4).empty());
}
