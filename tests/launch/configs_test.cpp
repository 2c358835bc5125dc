// The experiments and presets that ship: all parse, and the presets are the published models.
#include <unistd.h>

#include <boost/test/unit_test.hpp>

#include "launch/config_parser.h"
#include "launch/run_config.h"
#include "trainer/model/model_config.h"

using namespace hearth;

namespace {
// Presets are named relative to the repository root.
struct InRepository {
  InRepository() { BOOST_REQUIRE(chdir(HEARTH_SOURCE_DIR) == 0); }
};
std::vector<std::string> yaml_files(FileSystem& fs, const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& name : fs.list(folder))
    if (name.ends_with(".yaml")) files.push_back(folder + "/" + name);
  return files;
}
}  // namespace

BOOST_TEST_GLOBAL_FIXTURE(InRepository);

BOOST_AUTO_TEST_CASE(every_experiment_parses_and_fits_one_two_and_four_replicas) {
  const auto fs = make_posix_file_system();
  const auto files = yaml_files(*fs, "configs");
  BOOST_TEST(files.size() >= 4u);
  for (const auto& file : files) {
    BOOST_TEST_CONTEXT(file) {
      const LoadedConfig loaded = load_experiment(*fs, file, {});
      const ParallelConfig& p = loaded.config.parallel;
      const auto copy = static_cast<int>(p.tensor_model_parallel_size * p.pipeline_model_parallel_size *
                                         p.context_parallel_size);
      for (const int replicas : {1, 2, 4}) BOOST_CHECK_NO_THROW(require_layout(loaded, replicas * copy));
      BOOST_TEST(loaded.config.model.vocab_size > 0);  // so that --dry-run works before any data exists
      BOOST_TEST(parameter_count(loaded.config.model) > 0);
    }
  }
}

BOOST_AUTO_TEST_CASE(presets_have_the_published_parameter_counts) {
  const auto fs = make_posix_file_system();
  const std::vector<std::pair<std::string, int64_t>> published = {
      {"llama-1b", 1'498'482'688},     {"llama-2-7b", 6'738'415'616},   {"llama-2-13b", 13'015'864'320},
      {"llama-2-70b", 68'976'648'192}, {"llama-3-8b", 8'030'261'248},   {"llama-3.1-8b", 8'030'261'248},
      {"qwen2.5-0.5b", 494'032'768},   {"qwen2.5-1.5b", 1'543'714'304}, {"qwen2.5-7b", 7'615'616'512},
      {"qwen3-0.6b", 596'049'920},     {"qwen3-8b", 8'190'735'360},     {"smollm2-135m", 134'515'008}};
  BOOST_TEST(yaml_files(*fs, "configs/models").size() == published.size());
  for (const auto& [name, count] : published) {
    BOOST_TEST_CONTEXT(name) {
      const std::string text = "model: {preset: configs/models/" + name +
                               ".yaml}\ndata: {train: [{path: a}]}\ntraining: {train_iters: 1}\n";
      const LoadedConfig loaded = parse_experiment(*fs, text, "test", {});
      BOOST_TEST(parameter_count(loaded.config.model) == count);
    }
  }
}
