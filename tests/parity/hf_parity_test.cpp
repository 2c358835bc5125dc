// Show rows 2 and 3: for every model that make_models.py wrote (argument: its folder), Hearth's fp32 logits,
// loss, gradients of every parameter and greedy tokens against those of transformers and PyTorch's autograd.
// Bounds of the issue: logits 1e-5, gradients 2e-5 of each tensor's largest entry; greedy tokens identical.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <boost/test/unit_test.hpp>

#include "tests/compare.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/generate.h"
#include "trainer/loaded_model.h"

using namespace hearth;
using hearth::testing::compare;

namespace {

at::Tensor read(const SafetensorsFile& file, const std::string& name, DType dtype) {
  const SafetensorsEntry* entry = file.find(name);
  BOOST_REQUIRE_MESSAGE(entry != nullptr, name << " is missing from " << file.path());
  at::Tensor out = at::empty(entry->info.shape, dtype == DType::F32 ? at::kFloat : at::kLong);
  file.read_elements(*entry, 0, out.numel(), dtype, out.data_ptr());
  return out;
}

void require_close(const at::Tensor& got, const at::Tensor& want, double relative, const std::string& what) {
  const auto diff = compare(got, want, relative * want.abs().max().item<double>());
  BOOST_CHECK_MESSAGE(diff.ok(), what << ": " << diff);
}

// The folder of models: the program's own argument, after `--`.
std::string models_folder() {
  const auto& suite = boost::unit_test::framework::master_test_suite();
  BOOST_REQUIRE_MESSAGE(suite.argc == 2, "usage: hf_parity_test -- FOLDER (made by make_models.py)");
  return suite.argv[1];
}

struct Fixture {
  std::unique_ptr<FileSystem> fs = make_posix_file_system();
  ModelBundle bundle;
  ParameterStore parameters;
  Transformer model;
  SafetensorsFile reference;
  at::Tensor ids;

  Fixture(const std::string& folder, const std::string& name)
      : bundle(open_model(*fs, folder + "/" + name)),
        parameters(bundle.config, DType::F32, at::kCPU, WithGradients::Yes, 1, 1 << 16),
        model(bundle.config, parameters, RecomputeChoice{}),
        reference(*fs, folder + "/" + name + ".reference.safetensors"),
        ids(read(reference, "input_ids", DType::I64)) {
    parameters.load(*bundle.tensors);
  }
  ModelInput input() const { return {ids.view({-1}), {.batch = ids.size(0), .sequence = ids.size(1)}}; }
};

void check_logits(Fixture& f) {
  const at::NoGradGuard no_grad;
  const at::Tensor logits = f.model.logits(f.model.hidden_states(f.input()));
  const at::Tensor want = read(f.reference, "logits", DType::F32);
  require_close(logits.reshape(want.sizes()), want, 1e-5, "logits");
}

void check_gradients(Fixture& f) {
  at::Tensor targets = at::full(f.ids.sizes(), -100, at::kLong);
  targets.narrow(1, 0, f.ids.size(1) - 1).copy_(f.ids.narrow(1, 1, f.ids.size(1) - 1));
  const int64_t valid = f.ids.size(0) * (f.ids.size(1) - 1);
  const LossResult loss = f.model.loss(f.input(), targets.view({-1}), 1.0 / static_cast<double>(valid));
  loss.loss.backward();
  require_close(loss.loss.detach().view({1}), read(f.reference, "loss", DType::F32), 1e-6, "loss");
  for (const Parameter& p : f.parameters.parameters())
    require_close(p.main_grad, read(f.reference, "grad." + p.spec.name, DType::F32), 2e-5,
                  "gradient of " + p.spec.name);
}

void check_greedy(Fixture& f) {
  const at::Tensor prompt = read(f.reference, "prompt", DType::I64),
                   want = read(f.reference, "greedy", DType::I64);
  const std::vector<int32_t> ids(prompt.data_ptr<int64_t>(), prompt.data_ptr<int64_t>() + prompt.numel());
  GenerationOptions options;
  options.max_new_tokens = want.numel();
  InferenceModel model(f.model);
  const Generation got = generate(model, ids, options, {});
  BOOST_TEST(
      got.ids == std::vector<int32_t>(want.data_ptr<int64_t>(), want.data_ptr<int64_t>() + want.numel()),
      boost::test_tools::per_element());
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_family_equals_transformers) {
  const std::string folder = models_folder(), suffix = ".reference.safetensors";
  int models = 0;
  for (const std::string& file : make_posix_file_system()->list(folder)) {
    if (!file.ends_with(suffix)) continue;
    const std::string name = file.substr(0, file.size() - suffix.size());
    BOOST_TEST_CONTEXT("model " << name) {
      Fixture f(folder, name);
      check_logits(f);
      check_gradients(f);
      check_greedy(f);
    }
    ++models;
  }
  BOOST_TEST(models >= 7);  // one a family at least: an empty folder must not pass
}
