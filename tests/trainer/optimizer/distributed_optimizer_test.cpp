// AdamW over the arenas against the formula of torch.optim.AdamW written out in fp64, on one rank. (Several
// ranks and both stages give one curve: tests/integration/layouts.py.)
#include "trainer/optimizer/distributed_optimizer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros_like.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/rng.h"
#include "parallel/single_comm.h"
#include "tests/compare.h"
#include "tests/trainer/tiny_model.h"

using namespace hearth;
using hearth::testing::compare;
using hearth::testing::tiny_config;

namespace {

constexpr double kLr = 0.01, kScale = 0.25;
constexpr uint64_t kSeed = 7;

OptimizerConfig optimizer_config() {
  OptimizerConfig c;
  c.weight_decay = 0.3;
  c.adam_beta1 = 0.8;
  c.adam_beta2 = 0.9;
  c.adam_eps = 1e-6;
  return c;
}

struct Bench {
  ParameterStore store;
  std::unique_ptr<Comm> comm = make_single_comm("dp");
  DistributedOptimizer optimizer;
  Bench(DType dtype, int64_t zero_stage, DType grads_dtype = DType::F32)
      : store(parameter_shards(config(), ModelPartition::whole(config())),
              {.dtype = dtype,
               .grads_dtype = grads_dtype,
               .device = at::kCPU,
               .gradients = WithGradients::Yes,
               .bucket_elements = 3000,
               .weights = DistributedOptimizer::weight_memory(zero_stage),
               .grads = DistributedOptimizer::grad_memory(zero_stage)}),
        optimizer(optimizer_config(), initialized(store), {.data_parallel = *comm}, zero_stage) {
    optimizer.load_masters([&](int64_t i, int64_t begin, int64_t end, float* out) {
      store.initial_values(i, kSeed, begin, end, out);
    });
  }
  static ModelConfig config() {
    ModelConfig c = tiny_config();
    c.attention_bias = c.qk_norm = true;  // 1-D parameters of every kind
    return c;
  }
  static ParameterStore& initialized(ParameterStore& store) {
    store.initialize(kSeed);
    return store;
  }
  // One step of gradients drawn for (update, name).
  void step(uint64_t update) {
    const size_t count = store.parameters().size();
    optimizer.begin_step(std::vector<int64_t>(count, 1), /*micro_batches=*/1);
    for (size_t i = count; i-- > 0;) {
      contribute(static_cast<int64_t>(i), update);
      optimizer.gradient_ready({static_cast<int64_t>(i)});
    }
    optimizer.finish_gradients();
    optimizer.step(kLr, kScale);
  }
  // What a backward pass does for a parameter.
  void contribute(int64_t index, uint64_t update) {
    Parameter& p = store.parameters()[static_cast<size_t>(index)];
    const bool overwrite = optimizer.before_gradient({index}) == kernels::GradientWrite::Overwrite;
    if (overwrite) p.padded_main_grad.zero_();
    p.main_grad.add_(gradient(p, update));
  }
  // After a step, by parameter.
  std::map<std::string, at::Tensor> gradients() {
    std::map<std::string, at::Tensor> whole;
    for (const StateSlice& slice : optimizer.gradient_slices()) {
      auto& tensor = whole[slice.name];
      if (!tensor.defined()) tensor = at::empty(slice.shape, slice.values.options()).fill_(std::nan(""));
      tensor.view({-1}).narrow(0, slice.begin, slice.end - slice.begin).copy_(slice.values);
    }
    return whole;
  }
  static at::Tensor gradient(const Parameter& p, uint64_t update) {
    const CounterRng rng(update, p.spec.name);
    at::Tensor out = at::empty(p.spec.shape, at::kFloat);
    for (int64_t k = 0; k < out.numel(); ++k)
      out.data_ptr<float>()[k] = static_cast<float>(rng.normal(static_cast<uint64_t>(k)));
    return out;
  }
  // Pieces of a state tensor, by name, joined into whole tensors.
  std::map<std::string, at::Tensor> state() {
    std::map<std::string, at::Tensor> whole;
    for (const StateSlice& slice : optimizer.state_slices()) {
      auto& tensor = whole[slice.name];
      if (!tensor.defined()) tensor = at::empty(slice.shape, slice.values.options()).fill_(std::nan(""));
      tensor.view({-1}).narrow(0, slice.begin, slice.end - slice.begin).copy_(slice.values);
    }
    return whole;
  }
};

// The formula, in fp64. Returns the parameter after `updates` steps from its initial value.
struct Reference {
  at::Tensor p, m, v;
};
Reference torch_adamw(const ParameterStore& store, size_t index, uint64_t updates) {
  const OptimizerConfig c = optimizer_config();
  const Parameter& parameter = store.parameters()[index];
  at::Tensor start = at::empty(parameter.spec.shape, at::kFloat);
  store.initial_values(static_cast<int64_t>(index), kSeed, 0, start.numel(), start.data_ptr<float>());
  Reference r{start.to(at::kDouble), at::zeros_like(start, at::kDouble), at::zeros_like(start, at::kDouble)};
  for (uint64_t t = 1; t <= updates; ++t) {
    const at::Tensor g = Bench::gradient(parameter, t).to(at::kDouble) * kScale;
    if (parameter.spec.shape.size() > 1) r.p = r.p * (1 - kLr * c.weight_decay);
    r.m = c.adam_beta1 * r.m + (1 - c.adam_beta1) * g;
    r.v = c.adam_beta2 * r.v + (1 - c.adam_beta2) * g * g;
    const at::Tensor m_hat = r.m / (1 - std::pow(c.adam_beta1, t)),
                     v_hat = r.v / (1 - std::pow(c.adam_beta2, t));
    r.p = r.p - kLr * m_hat / (v_hat.sqrt() + c.adam_eps);
  }
  return r;
}

// fp32 rounding of an update: half an ulp for each of decay, step and sum of p, and a few of the step of
// about kLr.
double tolerance(const at::Tensor& p, uint64_t updates) {
  constexpr double kUlp = 0x1.0p-23;
  return static_cast<double>(updates) * kUlp * (2 * p.abs().max().item<double>() + 16 * kLr);
}

}  // namespace

BOOST_AUTO_TEST_CASE(one_step_and_three_are_torch_s_formula) {
  for (const int64_t zero_stage : {0, 1})
    for (const uint64_t updates : {1, 3}) {
      Bench bench(DType::F32, zero_stage);
      BOOST_TEST(bench.store.plan().buckets.size() > 2u);
      for (uint64_t t = 1; t <= updates; ++t) bench.step(t);
      BOOST_TEST(bench.optimizer.num_updates() == static_cast<int64_t>(updates));
      for (size_t i = 0; i < bench.store.parameters().size(); ++i) {
        const Parameter& p = bench.store.parameters()[i];
        const at::Tensor want = torch_adamw(bench.store, i, updates).p;
        const auto diff = compare(p.weight, want, tolerance(want, updates));
        BOOST_TEST(diff.ok(),
                   p.spec.name << ", stage " << zero_stage << ", " << updates << " updates: " << diff);
      }
    }
}

BOOST_AUTO_TEST_CASE(moments_are_in_the_state_under_the_parameter_s_name) {
  Bench bench(DType::F32, 1);
  for (uint64_t t = 1; t <= 2; ++t) bench.step(t);
  const auto state = bench.state();
  BOOST_TEST(state.size() == 3 * bench.store.parameters().size());  // fp32: the parameters are the masters
  for (size_t i = 0; i < bench.store.parameters().size(); ++i) {
    const std::string& name = bench.store.parameters()[i].spec.name;
    const Reference want = torch_adamw(bench.store, i, 2);
    BOOST_TEST(at::equal(state.at(name), bench.store.parameters()[i].weight), name);
    const auto m = compare(state.at("optimizer.exp_avg." + name), want.m,
                           4 * 0x1.0p-23 * want.m.abs().max().item<double>());
    const auto v = compare(state.at("optimizer.exp_avg_sq." + name), want.v,
                           4 * 0x1.0p-23 * want.v.abs().max().item<double>());
    BOOST_TEST(m.ok(), name << ": " << m);
    BOOST_TEST(v.ok(), name << ": " << v);
  }
}

BOOST_AUTO_TEST_CASE(bf16_parameters_are_the_rounded_fp32_masters) {
  Bench half(DType::BF16, 1), full(DType::F32, 1);
  for (uint64_t t = 1; t <= 3; ++t) {
    half.step(t);
    full.step(t);
  }
  const auto state = half.state();
  BOOST_TEST(state.size() == 4 * half.store.parameters().size());
  for (const Parameter& p : half.store.parameters()) {
    const at::Tensor& master = state.at("optimizer.main_params." + p.spec.name);
    BOOST_TEST(at::equal(master, full.store.at(p.spec.name).weight), p.spec.name);
    BOOST_TEST(at::equal(p.weight, master.to(at::kBFloat16)), p.spec.name);
  }
}

BOOST_AUTO_TEST_CASE(the_squared_norm_counts_every_gradient_once) {
  Bench bench(DType::F32, 1);
  bench.step(1);  // gradients stay until the next begin_step
  double want = 0.0;
  for (const Parameter& p : bench.store.parameters())
    want += Bench::gradient(p, 1).to(at::kDouble).square().sum().item<double>();
  const double got = bench.optimizer.local_sum_of_squares().item<double>();
  BOOST_TEST(std::abs(got - want) <= 1e-12 * want);
}

// A step whose sums are NaN leaves nothing to the next one, in which two micro-batches contribute to the
// first parameter of every bucket and nothing to the others: what was there is overwritten, or cleared.
BOOST_AUTO_TEST_CASE(sums_begin_anew_in_every_step) {
  for (const int64_t zero_stage : {0, 1, 2, 3})
    for (const DType grads_dtype : {DType::F32, DType::BF16}) {
      Bench bench(DType::BF16, zero_stage, grads_dtype);
      const auto count = static_cast<int64_t>(bench.store.parameters().size());
      std::vector<int64_t> uses(static_cast<size_t>(count), 1);
      bench.optimizer.begin_step(uses, /*micro_batches=*/1);
      for (int64_t i = count; i-- > 0;) {
        bench.contribute(i, 1);
        bench.store.parameters()[static_cast<size_t>(i)].padded_main_grad.fill_(std::nan(""));
        bench.optimizer.gradient_ready({i});
      }
      bench.optimizer.finish_gradients();
      BOOST_TEST(!std::isfinite(bench.optimizer.local_sum_of_squares().item<double>()));

      const auto is_used = [&](int64_t i) {
        const BucketPlan& plan = bench.store.plan();
        const int64_t bucket = plan.places[static_cast<size_t>(i)].bucket;
        return plan.buckets[static_cast<size_t>(bucket)].parameters.front() == i;
      };
      for (int64_t i = 0; i < count; ++i) uses[static_cast<size_t>(i)] = is_used(i) ? 1 : 0;
      bench.optimizer.begin_step(uses, /*micro_batches=*/2);
      for (uint64_t micro = 2; micro <= 3; ++micro)
        for (int64_t i = count; i-- > 0;) {
          if (!is_used(i)) continue;
          bench.contribute(i, micro);
          bench.optimizer.gradient_ready({i});
        }
      bench.optimizer.finish_gradients();
      const auto gradients = bench.gradients();
      double squares = 0;
      for (int64_t i = 0; i < count; ++i) {
        const Parameter& p = bench.store.parameters()[static_cast<size_t>(i)];
        const at::Tensor first = Bench::gradient(p, 2), second = Bench::gradient(p, 3);
        const at::Tensor want = is_used(i) ? first + second : at::zeros_like(first);
        // Both terms and their sum are rounded, to half an ulp each.
        const double half_ulp = grads_dtype == DType::F32 ? 0x1p-24 : 0x1p-8;
        const double largest = first.abs().max().item<double>() + second.abs().max().item<double>();
        const auto diff = compare(gradients.at(p.spec.name), want, 2 * half_ulp * largest);
        BOOST_TEST(diff.ok(), p.spec.name << ", stage " << zero_stage << ": " << diff);
        squares += gradients.at(p.spec.name).to(at::kDouble).square().sum().item<double>();
      }
      const double got = bench.optimizer.local_sum_of_squares().item<double>();
      BOOST_TEST(std::abs(got - squares) <= 1e-12 * squares);
    }
}

// Matrices are overwritten by their first contribution and added to by the others; vectors are always added
// to, and do not change the answer of the matrices beside them.
BOOST_AUTO_TEST_CASE(the_first_contribution_is_told_to_overwrite) {
  using kernels::GradientWrite;
  for (const int64_t zero_stage : {0, 2}) {
    Bench bench(DType::F32, zero_stage);
    const std::string p = "model.layers.1.self_attn.";
    std::vector<int64_t> qkv;
    for (const char* kind : {"weight", "bias"})
      for (const char* name : {"q_proj.", "k_proj.", "v_proj."})
        qkv.push_back(bench.store.index(p + name + kind));
    const std::vector<int64_t> norm{bench.store.index("model.norm.weight")};
    for (int step = 0; step < 2; ++step) {
      bench.optimizer.begin_step(std::vector<int64_t>(bench.store.parameters().size(), 1), 1);
      BOOST_TEST((bench.optimizer.before_gradient(qkv) == GradientWrite::Overwrite));
      BOOST_TEST((bench.optimizer.before_gradient(qkv) == GradientWrite::Add));
      BOOST_TEST((bench.optimizer.before_gradient(norm) == GradientWrite::Add));
      BOOST_TEST(bench.store.at("model.norm.weight").main_grad.eq(0).all().item<bool>());
      if (zero_stage == 2) break;  // whole buckets would stay
    }
  }
}

// A group of which one matrix already has a sum: the others are cleared, and all are added to.
BOOST_AUTO_TEST_CASE(a_group_with_one_sum_is_added_to) {
  Bench bench(DType::F32, 0);
  const std::string p = "model.layers.0.mlp.";
  const int64_t gate = bench.store.index(p + "gate_proj.weight"),
                up = bench.store.index(p + "up_proj.weight");
  for (const int64_t i : {gate, up}) bench.store.parameters()[static_cast<size_t>(i)].main_grad.fill_(7.0);
  bench.optimizer.begin_step(std::vector<int64_t>(bench.store.parameters().size(), 1), 1);
  BOOST_TEST((bench.optimizer.before_gradient({gate}) == kernels::GradientWrite::Overwrite));
  BOOST_TEST((bench.optimizer.before_gradient({gate, up}) == kernels::GradientWrite::Add));
  BOOST_TEST(bench.store.at(p + "up_proj.weight").main_grad.eq(0).all().item<bool>());
  BOOST_TEST(bench.store.at(p + "gate_proj.weight").main_grad.eq(7.0).all().item<bool>());
}

BOOST_AUTO_TEST_CASE(padding_rows_stay_zero) {
  Bench bench(DType::F32, 1);
  for (uint64_t t = 1; t <= 3; ++t) bench.step(t);
  const at::Tensor padding = bench.store.at("lm_head.weight").padded_weight.narrow(0, 61, kVocabPadding - 61);
  BOOST_TEST(padding.abs().max().item<double>() == 0.0);
}

BOOST_AUTO_TEST_CASE(masters_that_are_not_finite_are_seen) {
  Bench bench(DType::F32, 0);
  BOOST_TEST(bench.optimizer.masters_are_finite());
  bench.store.at("model.norm.weight").weight[3].fill_(std::nan(""));
  BOOST_TEST(!bench.optimizer.masters_are_finite());
}

BOOST_AUTO_TEST_CASE(wrong_use_is_refused) {
  Bench bench(DType::F32, 0);
  const std::vector<int64_t> one_each(bench.store.parameters().size(), 1);
  bench.optimizer.begin_step(one_each, /*micro_batches=*/1);
  const auto report_too_often = [&] {
    for (size_t i = 0; i <= one_each.size(); ++i) bench.optimizer.gradient_ready({0});
  };
  BOOST_CHECK_THROW(report_too_often(), Error);
  BOOST_CHECK_THROW(bench.optimizer.finish_gradients(), Error);  // others never reported
  BOOST_CHECK_THROW(DistributedOptimizer(optimizer_config(), bench.store, {.data_parallel = *bench.comm}, 2),
                    Error);
  ParameterStore two_ranks(Bench::config(), DType::F32, at::kCPU, WithGradients::Yes, 2, 3000);
  BOOST_CHECK_THROW(DistributedOptimizer(optimizer_config(), two_ranks, {.data_parallel = *bench.comm}, 1),
                    Error);
}
