// Gradients of the whole model: what is rebuilt in backward changes nothing, a tied table gets both its
// gradients, and every parameter reports as often as promised. (Equality with PyTorch's autograd:
// tests/parity.)
#include "trainer/model/transformer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <fmt/core.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>

#include "tests/compare.h"
#include "tests/trainer/tiny_model.h"

using namespace hearth;
using hearth::testing::compare;
using hearth::testing::random_ids;
using hearth::testing::tiny_config;
using hearth::testing::TinyModel;

namespace {

constexpr int64_t kBatch = 2, kSequence = 24;

// Forward and backward of a fixed micro-batch with borders and uncounted targets; gradients add up in
// main_grad.
double backward(TinyModel& model, uint64_t seed = 5) {
  const int64_t rows = kBatch * kSequence;
  ModelInput input{random_ids(rows, 61, seed),
                   make_attention_layout({{0, 9}, {0}}, kSequence, model.transformer.attention_target())};
  at::Tensor targets = random_ids(rows, 61, seed + 100);
  targets.narrow(0, 8, 3).fill_(-100);
  const LossResult loss = model.transformer.loss(input, targets, /*scale=*/1.0 / 45);
  loss.loss.backward();
  return loss.loss.item<double>();
}

}  // namespace

BOOST_AUTO_TEST_CASE(recompute_changes_no_bit_of_loss_and_gradients) {
  ModelConfig config = tiny_config();
  config.qk_norm = config.attention_bias = true;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    TinyModel base(config, dtype, {.norm = false, .swiglu = false});
    const double want = backward(base);
    BOOST_TEST(want > 0.0);
    for (const RecomputeChoice choice : {RecomputeChoice{true, false}, {false, true}, {true, true}}) {
      TinyModel model(config, dtype, choice);
      BOOST_TEST(backward(model) == want);
      for (const Parameter& p : base.parameters.parameters()) {
        BOOST_TEST(p.main_grad.abs().max().item<double>() > 0.0, p.spec.name);
        BOOST_TEST(at::equal(model.parameters.at(p.spec.name).main_grad, p.main_grad), p.spec.name);
      }
    }
  }
}

// Sums of fp32 terms in another order: 1e-6 of the largest entry is what correct formulations differ by.
BOOST_AUTO_TEST_CASE(a_tied_table_gets_the_gradients_of_lookup_and_head) {
  ModelConfig config = tiny_config();
  TinyModel untied(config);
  config.tie_word_embeddings = true;
  TinyModel tied(config);
  const Parameter &table = untied.parameters.at("model.embed_tokens.weight"),
                  &head = untied.parameters.at("lm_head.weight");
  head.weight.copy_(table.weight);
  BOOST_TEST(backward(tied) == backward(untied));
  BOOST_TEST(table.main_grad.abs().max().item<double>() > 0.0);
  const at::Tensor want = table.main_grad + head.main_grad;
  const auto diff = compare(tied.parameters.at("model.embed_tokens.weight").main_grad, want,
                            1e-6 * want.abs().max().item<double>());
  BOOST_TEST(diff.ok(), diff);
}

BOOST_AUTO_TEST_CASE(padding_rows_get_no_gradient) {
  TinyModel model(tiny_config());
  backward(model);
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight"}) {
    const at::Tensor padding = model.parameters.at(name).padded_main_grad.narrow(0, 61, kVocabPadding - 61);
    BOOST_TEST(padding.abs().max().item<double>() == 0.0, name);
  }
}

BOOST_AUTO_TEST_CASE(micro_batches_add_up) {
  TinyModel first(tiny_config()), second(tiny_config()), both(tiny_config());
  backward(first, 5);
  backward(second, 6);
  backward(both, 5);
  backward(both, 6);
  for (const Parameter& p : both.parameters.parameters()) {
    const at::Tensor want =
        first.parameters.at(p.spec.name).main_grad + second.parameters.at(p.spec.name).main_grad;
    const auto diff = compare(p.main_grad, want, 1e-6 * want.abs().max().item<double>());
    BOOST_TEST(diff.ok(), p.spec.name << ": " << diff);
  }
}

namespace {
struct Reports : ParameterEvents {
  std::function<void(int64_t)> on_ready;
  void gradient_ready(const std::vector<int64_t>& parameters) override {
    for (const int64_t index : parameters) on_ready(index);
  }
};
}  // namespace

BOOST_AUTO_TEST_CASE(every_parameter_reports_as_often_as_promised) {
  for (const bool is_tied : {false, true}) {
    ModelConfig config = tiny_config();
    config.tie_word_embeddings = is_tied;
    config.qk_norm = config.attention_bias = config.attention_output_bias = true;
    Reports events;
    TinyModel model(config, DType::F32, {}, WithGradients::Yes, &events);
    std::vector<int64_t> reports(model.parameters.parameters().size(), 0);
    events.on_ready = [&](int64_t index) { ++reports[static_cast<size_t>(index)]; };
    backward(model);
    for (size_t i = 0; i < reports.size(); ++i)
      BOOST_TEST(reports[i] == model.transformer.uses_per_micro(static_cast<int64_t>(i)),
                 model.parameters.parameters()[i].spec.name);
    BOOST_TEST(*std::max_element(reports.begin(), reports.end()) == (is_tied ? 2 : 1));
  }
}

// Told to overwrite whatever is there (NaN here), the first contributions give the gradients that zeros and
// additions give: vectors, which are always added to, start as zeros. Tied, so that the head's first chunk
// overwrites and the lookup adds.
BOOST_AUTO_TEST_CASE(first_contributions_overwrite_where_they_are_told_to) {
  struct Fresh : ParameterEvents {
    std::vector<bool> seen;
    const ParameterStore* store = nullptr;
    kernels::GradientWrite before_gradient(const std::vector<int64_t>& parameters) override {
      bool fresh = false;
      for (const int64_t index : parameters) {
        const auto i = static_cast<size_t>(index);
        fresh |= !seen[i] && store->parameters()[i].spec.shape.size() > 1;
        seen[i] = true;
      }
      return fresh ? kernels::GradientWrite::Overwrite : kernels::GradientWrite::Add;
    }
  };
  for (const bool is_tied : {false, true})
    for (const DType dtype : {DType::F32, DType::BF16}) {
      ModelConfig config = tiny_config();
      config.tie_word_embeddings = is_tied;
      config.qk_norm = config.attention_bias = config.attention_output_bias = true;
      TinyModel want(config, dtype);
      Fresh events;
      TinyModel model(config, dtype, {}, WithGradients::Yes, &events);
      events.store = &model.parameters;
      events.seen.resize(model.parameters.parameters().size());
      for (const Parameter& p : model.parameters.parameters())
        if (p.spec.shape.size() > 1) p.padded_main_grad.fill_(std::nan(""));
      for (const uint64_t seed : {5, 6}) {
        backward(want, seed);
        backward(model, seed);
      }
      for (const Parameter& p : want.parameters.parameters())
        BOOST_TEST(at::equal(model.parameters.at(p.spec.name).padded_main_grad, p.padded_main_grad),
                   p.spec.name);
    }
}

// A gradient that is reported may be reduced and changed at once: nothing may be added to it afterwards.
BOOST_AUTO_TEST_CASE(a_reported_gradient_is_final) {
  ModelConfig config = tiny_config();
  config.tie_word_embeddings = config.qk_norm = true;
  Reports events;
  TinyModel model(config, DType::F32, {}, WithGradients::Yes, &events);
  const auto& parameters = model.parameters.parameters();
  std::vector<at::Tensor> reported(parameters.size());
  events.on_ready = [&](int64_t index) {
    const auto i = static_cast<size_t>(index);
    reported[i] = parameters[i].main_grad.clone();  // the last report counts
  };
  backward(model);
  for (size_t i = 0; i < parameters.size(); ++i)
    BOOST_TEST(at::equal(reported[i], parameters[i].main_grad), parameters[i].spec.name);
}

// Where gradients travel, the matrices of layer 0 wait for the queue, behind the table; no bit changes. Where
// they do not, nothing waits.
BOOST_AUTO_TEST_CASE(the_first_layer_waits_for_the_table_whose_gradient_travels) {
  ModelConfig config = tiny_config();
  config.qk_norm = config.attention_bias = true;
  TinyModel want(config);
  backward(want);
  for (const bool travel : {false, true}) BOOST_TEST_CONTEXT("travel " << travel) {
      Reports events;
      TinyModel model(config, DType::F32, {}, WithGradients::Yes, &events, travel);
      std::vector<std::string> order;
      events.on_ready = [&](int64_t index) {
        order.push_back(model.parameters.parameters()[static_cast<size_t>(index)].spec.name);
      };
      WeightGradQueue queue;
      model.transformer.defer_first_layer(&queue);
      backward(model);
      model.transformer.defer_first_layer(nullptr);
      const auto place = [&](const std::string& name) {
        return std::find(order.begin(), order.end(), name) - order.begin();
      };
      const size_t before = order.size();
      BOOST_TEST((place("model.embed_tokens.weight") + 1 == std::ssize(order)));
      queue.run();
      BOOST_TEST((order.size() > before) == travel);
      const auto table = place("model.embed_tokens.weight");
      for (const char* matrix : {"mlp.down_proj", "mlp.up_proj", "self_attn.o_proj", "self_attn.q_proj"}) {
        BOOST_TEST((place(fmt::format("model.layers.0.{}.weight", matrix)) > table) == travel, matrix);
        BOOST_TEST(place(fmt::format("model.layers.1.{}.weight", matrix)) < table, matrix);
      }
      for (const Parameter& p : want.parameters.parameters())
        BOOST_TEST(at::equal(model.parameters.at(p.spec.name).main_grad, p.main_grad), p.spec.name);
    }
}
