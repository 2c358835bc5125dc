// import and export under mpirun: the ranks split the work, and fail together.
#include <boost/test/unit_test.hpp>
#include <nlohmann/json.hpp>

#include "tests/parallel/mpi_fixture.h"
#include "tests/trainer/interchange/interchange_test_support.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/interchange/export_model.h"
#include "trainer/interchange/import_model.h"

using namespace hearth;
using namespace hearth::testing;

namespace {

ControlPlane& control() {
  return *test::job().control;
}

// A folder that all ranks share; rank 0 owns it.
struct SharedFolder {
  std::unique_ptr<TempFolder> own = control().rank() == 0 ? std::make_unique<TempFolder>() : nullptr;
  std::string path = control().broadcast(own ? own->path() : "", "test.folder");
  ~SharedFolder() { control().barrier("test.folder.done"); }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
};

const nlohmann::json kConfig = {{"architectures", {"Qwen3ForCausalLM"}},
                                {"model_type", "qwen3"},
                                {"vocab_size", 37},
                                {"hidden_size", 24},
                                {"intermediate_size", 40},
                                {"num_hidden_layers", 5},
                                {"num_attention_heads", 3},
                                {"num_key_value_heads", 1},
                                {"head_dim", 10}};

void write_model(const std::string& folder) {
  fs().create_directories(folder);
  write_file(folder + "/config.json", kConfig.dump());
  std::vector<TensorInfo> tensors;
  for (const ParameterSpec& spec : parameter_specs(parse_hf_config(kConfig.dump(), "test").model))
    tensors.push_back({spec.name, DType::BF16, spec.shape});
  SafetensorsWriter writer(fs(), folder + "/model.safetensors", CreateMode::Truncate, tensors);
  uint16_t next = 0;
  for (const TensorInfo& info : tensors) {
    std::vector<uint16_t> values(static_cast<size_t>(info.numel()));
    for (uint16_t& value : values) value = float_to_bf16(static_cast<float>(next++) / 1000.0f);
    writer.append(std::as_bytes(std::span(values)));
  }
  writer.sync();
  writer.close();
}

}  // namespace

BOOST_AUTO_TEST_CASE(ranks_split_import_and_export) {
  const SharedFolder folder;
  Log log(Log::Options{.rank = control().rank(), .level = LogLevel::Error});
  const std::string source = folder / "source", checkpoint = folder / "ckpt";
  if (control().rank() == 0) write_model(source);
  control().barrier("test.written");
  import_model(fs(), control(), log, open_model(fs(), control(), log, source),
               {.output = checkpoint, .dtype = {}, .progress = {}});
  ExportOptions options;
  options.output = folder / "out";
  options.max_shard_bytes = 5000;  // many shards, so that every rank has some
  export_model(fs(), control(), open_model(fs(), control(), log, checkpoint), options);
  const ModelBundle a = open_model(fs(), source), b = open_model(fs(), options.output);
  BOOST_TEST((a.config == b.config));
  for (const TensorInfo& info : a.tensors->tensors())
    BOOST_TEST((read_stored(*a.tensors, info.name) == read_stored(*b.tensors, info.name)), info.name);
  BOOST_TEST(fs().exists(options.output + "/model.safetensors.index.json"));
}

BOOST_AUTO_TEST_CASE(one_ranks_trouble_is_everybodys_error_and_leaves_nothing) {
  const SharedFolder folder;
  Log log(Log::Options{.rank = control().rank(), .level = LogLevel::Error});
  if (control().rank() == 0) write_model(folder / "source");
  control().barrier("test.written");
  const ModelBundle model = open_model(fs(), control(), log, folder / "source");
  ExportOptions options;
  options.output = folder / "out";
  options.max_shard_bytes = 5000;
  const int bad = control().world_size() - 1;
  options.progress = [&](int64_t, int64_t) {
    if (control().rank() == bad) throw Error(ErrorKind::NoSpace, "disk full");
  };
  check_error(ErrorKind::NoSpace, "disk full", [&] { export_model(fs(), control(), model, options); });
  control().barrier("test.failed");
  BOOST_TEST(!fs().exists(options.output));
  BOOST_TEST(!fs().exists(options.output + ".partial"));
}
