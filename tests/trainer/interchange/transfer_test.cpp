// import and export: round trips against transformers, and every reason not to publish.
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/trainer/interchange/interchange_test_support.h"
#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/interchange/export_model.h"
#include "trainer/interchange/import_model.h"
#include "trainer/model/model_config_json.h"

using namespace hearth;
using namespace hearth::testing;
using nlohmann::json;

namespace {

struct Made {
  TempFolder folder;
  Made() { run_python(script("parity/make_models.py") + " " + folder.path() + " > /dev/null"); }
};
std::string model_folder(const std::string& name) {
  static const Made made;
  return made.folder / name;
}

// One rank and a log, as a command has them.
struct Bench {
  TempFolder folder;
  std::unique_ptr<ControlPlane> control = make_single_control_plane();
  Log log{Log::Options{.level = LogLevel::Error}};
  std::vector<std::string> warnings;

  std::string import(const std::string& source, std::optional<DType> dtype = std::nullopt) {
    const std::string output = folder / ("ckpt" + std::to_string(count_++));
    const ModelBundle model = open_model(fs(), source, AcceptGguf::Yes);
    import_model(fs(), *control, log, model, {.output = output, .dtype = dtype, .progress = {}});
    return output;
  }
  ExportOptions options(const std::string& name) {
    ExportOptions out;
    out.output = folder / name;
    out.warn = [this](const std::string& text) { warnings.push_back(text); };
    return out;
  }
  void export_to(const std::string& model, const ExportOptions& options) {
    export_model(fs(), *control, open_model(fs(), model), options);
  }
  void refuse(ErrorKind kind, const std::string& mention, const std::string& model,
              const ExportOptions& options) {
    check_error(kind, mention, [&] { export_to(model, options); });
    BOOST_TEST(!fs().exists(options.output + ".partial"));
  }

 private:
  int count_ = 0;
};

// Not a model, but a function of every weight and of the configuration: enough to notice a difference.
std::vector<float> fingerprint(const ModelConfig& config, const TensorSource& tensors,
                               const std::vector<int32_t>& ids) {
  std::vector<float> out(ids.begin(), ids.end());
  for (const TensorInfo& info : tensors.tensors()) {
    double sum = config.rope_theta;
    for (const float value : read_fp32(tensors, info.name)) sum += std::abs(value);
    out.push_back(static_cast<float>(sum));
  }
  return out;
}

void check_same_tensors(const std::string& a, const std::string& b) {
  const ModelBundle left = open_model(fs(), a), right = open_model(fs(), b);
  BOOST_TEST((left.tensors->tensors() == right.tensors->tensors()), a);
  for (const TensorInfo& info : left.tensors->tensors())
    BOOST_TEST((read_stored(*left.tensors, info.name) == read_stored(*right.tensors, info.name)),
               a << " " << info.name);
}

}  // namespace

BOOST_AUTO_TEST_CASE(hf_to_checkpoint_to_hf_is_bit_equal_and_transformers_agrees) {
  Bench bench;
  std::string pairs;
  for (const std::string name : {"llama", "llama_bias", "llama3", "llama3_v4", "qwen2", "qwen2_v4", "qwen3",
                                 "qwen3_bf16", "mistral", "smollm", "llama_sharded"}) {
    const std::string source = model_folder(name), checkpoint = bench.import(source);
    ExportOptions options = bench.options(name);
    options.logits = fingerprint;
    bench.export_to(checkpoint, options);
    check_same_tensors(source, checkpoint);
    check_same_tensors(source, options.output);
    const ModelBundle model = open_model(fs(), checkpoint);
    BOOST_TEST((model.kind == ModelKind::Checkpoint));
    BOOST_TEST(bool(model.tokenizer) == fs().exists(source + "/tokenizer.json"));
    pairs += source + " " + options.output + "\n";
  }
  write_file(bench.folder / "pairs", pairs);
  run_python(script("trainer/interchange/check_export.py") + " < " + (bench.folder / "pairs"));
}

BOOST_AUTO_TEST_CASE(other_types_and_shards_load_in_transformers) {
  Bench bench;
  std::string pairs;
  for (const DType dtype : {DType::BF16, DType::F16, DType::F32}) {
    ExportOptions options = bench.options(std::string(config_name(dtype)));
    options.dtype = dtype;
    options.max_shard_bytes = 200'000;
    options.logits = fingerprint;
    bench.export_to(model_folder("smollm"), options);
    BOOST_TEST(fs().exists(options.output + "/model.safetensors.index.json"));
    BOOST_TEST((open_model(fs(), options.output).stored_dtype == dtype));
    pairs += model_folder("smollm") + " " + options.output + " rounded\n";
  }
  const std::string half = bench.import(model_folder("llama"), DType::BF16);
  BOOST_TEST((open_model(fs(), half).stored_dtype == DType::BF16));
  ExportOptions options = bench.options("half");
  bench.export_to(half, options);
  pairs += model_folder("llama") + " " + options.output + " rounded\n";
  write_file(bench.folder / "pairs", pairs);
  run_python(script("trainer/interchange/check_export.py") + " < " + (bench.folder / "pairs"));
}

BOOST_AUTO_TEST_CASE(pickled_weights_are_read_without_running_them) {
  check_same_tensors(model_folder("llama_bin"), model_folder("llama"));
}

BOOST_AUTO_TEST_CASE(rows_that_hearth_added_to_the_vocabulary_are_cut) {
  Bench bench;
  const ModelBundle source = open_model(fs(), model_folder("llama"));
  std::vector<TensorPiece> pieces;
  for (const TensorInfo& info : source.tensors->tensors()) {
    pieces.push_back(TensorPiece::whole(info.name, info.dtype, info.shape));
    if (info.shape[0] == source.config.vocab_size)
      pieces.back() = TensorPiece::whole(info.name, info.dtype, {info.shape[0] + 11, info.shape[1]});
  }
  pieces.push_back(TensorPiece::whole("optimizer.exp_avg.model.norm.weight", DType::F32, {96}));
  const PieceReader read = [&](const TensorPiece& piece, int64_t first, int64_t count, void* out) {
    std::vector<float> values(
        static_cast<size_t>(piece.box.extent[0] * (piece.box.extent.size() > 1 ? piece.box.extent[1] : 1)),
        9.0f);
    if (source.tensors->contains(piece.name))
      source.tensors->read_elements(piece.name, 0, source.tensors->info(piece.name).numel(), DType::F32,
                                    values.data());
    std::memcpy(out, values.data() + first, static_cast<size_t>(count) * 4);
  };
  const json state = {{"step", 7}, {"model", model_config_to_json(source.config)}};
  const std::string padded = bench.folder / "padded";
  save_checkpoint(fs(), *bench.control, bench.log, padded, {.step = 7, .mesh = "test"}, pieces, read,
                  state.dump());
  const ExportOptions options = bench.options("cut");
  bench.export_to(padded, options);
  check_same_tensors(model_folder("llama"), options.output);
  BOOST_TEST(open_model(fs(), options.output).config.vocab_size == 517);
}

BOOST_AUTO_TEST_CASE(an_existing_folder_is_not_touched_unless_asked) {
  Bench bench;
  const std::string source = model_folder("qwen3");
  ExportOptions options = bench.options("out");
  fs().create_directories(options.output);
  bench.export_to(source, options);  // empty: fine
  bench.refuse(ErrorKind::Usage, "--overwrite", source, options);
  options.if_exists = IfOutputExists::Replace;
  bench.export_to(model_folder("llama"), options);
  BOOST_TEST(open_model(fs(), options.output).config.family == "llama");
  BOOST_TEST((fs().list(bench.folder.path()) == std::vector<std::string>{"out"}));
  ExportOptions precious = bench.options("precious");
  precious.if_exists = IfOutputExists::Replace;
  fs().create_directories(precious.output);
  write_file(precious.output + "/thesis.tex", "x");
  bench.refuse(ErrorKind::Usage, "precious", source, precious);
  BOOST_TEST(fs().exists(precious.output + "/thesis.tex"));
  check_error(ErrorKind::Usage, "exists already", [&] {
    import_model(fs(), *bench.control, bench.log, open_model(fs(), source),
                 {.output = options.output, .dtype = {}, .progress = {}});
  });
}

BOOST_AUTO_TEST_CASE(nothing_is_published_when_logits_differ) {
  Bench bench;
  ExportOptions options = bench.options("out");
  for (const float wrong : {0.5f, NAN, INFINITY}) {
    int calls = 0;
    options.logits = [&](const ModelConfig&, const TensorSource&, const std::vector<int32_t>&) {
      return std::vector<float>{1.0f, ++calls == 2 ? wrong : 0.0f};
    };
    bench.refuse(ErrorKind::Corrupt, "logits", model_folder("qwen3"), options);
    BOOST_TEST(calls == 2);
    BOOST_TEST(!fs().exists(options.output));
  }
}

BOOST_AUTO_TEST_CASE(values_that_are_not_finite_are_not_exported_or_imported) {
  Bench bench;
  const std::string copy = bench.folder / "copy";
  run_python(
      "-c \"import shutil, sys, torch; from safetensors.torch import load_file, save_file; "
      "shutil.copytree(sys.argv[1], sys.argv[2]); f = sys.argv[2] + '/model.safetensors'; w = load_file(f); "
      "w['model.layers.1.mlp.up_proj.weight'][3, 5] = 7e4; save_file(w, f, metadata={'format': 'pt'})\" " +
      model_folder("qwen3") + " " + copy);
  ExportOptions options = bench.options("out");
  options.dtype = DType::F16;  // 7e4 is beyond fp16
  bench.refuse(ErrorKind::Numeric, "model.layers.1.mlp.up_proj.weight", copy, options);
  check_error(ErrorKind::Numeric, "up_proj", [&] { bench.import(copy, DType::F16); });
  options.dtype = DType::BF16;
  bench.export_to(copy, options);
}

BOOST_AUTO_TEST_CASE(end_of_sequence_ids_must_agree_and_lists_are_kept) {
  Bench bench;
  const std::string copy = bench.folder / "copy";
  run_python("-c \"import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])\" " + model_folder("llama") +
             " " + copy);
  BOOST_TEST((open_model(fs(), copy).ids.eos == std::vector<int64_t>{2, 3}));
  for (const char* file : {"/config.json", "/generation_config.json"}) {
    json config = json::parse(fs().read_text(copy + file));
    config["eos_token_id"] = {1, 3};  // the tokenizer says <|im_end|> = 2
    write_file(copy + file, config.dump());
  }
  bench.refuse(ErrorKind::BadInput, "<|im_end|>", copy, bench.options("out"));
  json settings = json::parse(fs().read_text(copy + "/tokenizer_config.json"));
  settings["eos_token"] = "<|im_start|>";
  write_file(copy + "/tokenizer_config.json", settings.dump());
  bench.export_to(copy, bench.options("out"));
  BOOST_TEST(json::parse(fs().read_text(bench.folder / "out/generation_config.json"))["eos_token_id"] ==
             json({1, 3}));
}

BOOST_AUTO_TEST_CASE(a_tokenizer_larger_than_the_embedding_is_refused) {
  Bench bench;
  const std::string copy = bench.folder / "copy";
  run_python(
      "-c \"import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2]); "
      "shutil.copy(sys.argv[3] + '/tokenizer.json', sys.argv[2])\" " +
      model_folder("mistral") + " " + copy + " " + model_folder("llama"));
  BOOST_TEST(open_model(fs(), copy).tokenizer->vocab_size() == 380);  // of 389 rows
  json tokenizer = json::parse(fs().read_text(copy + "/tokenizer.json"));
  for (int id = 380; id < 390; ++id) {
    json added = tokenizer["added_tokens"][0];
    added["id"] = id;
    added["content"] = "<|added " + std::to_string(id) + "|>";
    tokenizer["added_tokens"].push_back(added);
  }
  write_file(copy + "/tokenizer.json", tokenizer.dump());
  check_error(ErrorKind::BadInput, "389 rows", [&] { open_model(fs(), copy); });
}

BOOST_AUTO_TEST_CASE(a_qwen2_with_a_foreign_tokenizer_is_warned_about) {
  Bench bench;
  const std::string copy = bench.folder / "copy";
  run_python(
      "-c \"import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2]); "
      "[shutil.copy(sys.argv[3] + '/' + f, sys.argv[2]) for f in ('tokenizer.json', "
      "'tokenizer_config.json')]\" " +
      model_folder("qwen2") + " " + copy + " " + model_folder("llama"));
  bench.export_to(copy, bench.options("out"));
  BOOST_REQUIRE_EQUAL(bench.warnings.size(), 1u);
  BOOST_TEST(bench.warnings[0].find("Qwen") != std::string::npos);
}
