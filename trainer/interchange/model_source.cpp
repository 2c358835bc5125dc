#include "trainer/interchange/model_source.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/strict_json.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/find_checkpoint.h"
#include "trainer/interchange/gguf_model.h"
#include "trainer/interchange/lora_model.h"
#include "trainer/interchange/parameter_source.h"
#include "trainer/model/model_config_json.h"

namespace hearth {
namespace {

constexpr const char* kGenerationConfig = "generation_config.json";
constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;

// Tokenizer::from_files knows these; the others only travel.
bool is_tokenizer_file(std::string_view name) {
  return name == "tokenizer.json" || name == "tokenizer.model" || name == "tokenizer_config.json" ||
         name == "special_tokens_map.json" || name == "chat_template.jinja" || name == kGenerationConfig;
}

void add_missing(SpecialTokenIds& ids, const SpecialTokenIds& more) {
  for (const int64_t id : more.eos)
    if (std::find(ids.eos.begin(), ids.eos.end(), id) == ids.eos.end()) ids.eos.push_back(id);
  if (!ids.bos) ids.bos = more.bos;
  if (!ids.pad) ids.pad = more.pad;
}

SpecialTokenIds ids_of(const Tokenizer& tokenizer) {
  SpecialTokenIds ids;
  if (const auto eos = tokenizer.eos_id()) ids.eos.push_back(*eos);
  if (const auto bos = tokenizer.bos_id()) ids.bos = *bos;
  if (const auto pad = tokenizer.pad_id()) ids.pad = *pad;
  return ids;
}

void check_ids(const SpecialTokenIds& ids, const ModelConfig& config, const std::string& origin) {
  const auto check = [&](std::optional<int64_t> id, const char* what) {
    HEARTH_CHECK(!id || *id < config.vocab_size, BadInput, "{}: {} is {}, but the vocabulary has {} entries",
                 origin, what, *id, config.vocab_size);
  };
  for (const int64_t id : ids.eos) check(id, "eos_token_id");
  check(ids.bos, "bos_token_id");
  check(ids.pad, "pad_token_id");
}

// The last step of opening, the same for every kind: tokenizer, ids, chat template.
void attach_tokenizer(ModelBundle& model) {
  if (const std::string* text = find_text(model.companion_files, kGenerationConfig))
    add_missing(model.ids, parse_generation_ids(*text, model.origin + ": " + kGenerationConfig));
  check_ids(model.ids, model.config, model.origin);
  if (!find_text(model.companion_files, "tokenizer.json") &&
      !find_text(model.companion_files, "tokenizer.model"))
    return;
  TokenizerFiles files;
  for (const auto& file : model.companion_files)
    if (is_tokenizer_file(file.first)) files.push_back(file);
  model.tokenizer = Tokenizer::from_files(std::move(files), model.origin);
  HEARTH_CHECK(model.tokenizer->vocab_size() <= model.config.vocab_size, BadInput,
               "{}: the tokenizer has {} entries, the embedding only {} rows; they do not belong together",
               model.origin, model.tokenizer->vocab_size(), model.config.vocab_size);
  model.chat_template = model.tokenizer->chat_template();
  // A list in the model's own files is complete; the tokenizer's EOS only fills a gap (export compares them).
  SpecialTokenIds own = ids_of(*model.tokenizer);
  if (!model.ids.eos.empty()) own.eos.clear();
  add_missing(model.ids, own);
}

ModelBundle open_any(FileSystem& fs, ControlPlane& control, Log& log, const std::string& path,
                     AcceptGguf gguf);

// Turns a base into the model that its adapters make of it; what belongs to the adapters' own files is kept.
ModelBundle with_adapters(ModelBundle base, std::shared_ptr<const TensorSource> adapters,
                          const LoraShape& lora, const std::string& base_model, const std::string& origin) {
  base.base = std::move(base.tensors);
  base.tensors = merged_source(base.base, adapters, lora);
  base.adapters = std::move(adapters);
  base.lora = lora;
  base.base_model = base_model;
  base.origin = origin + " on " + base.origin;
  return base;
}

// A checkpoint of adapters: state.json says what they are and where the base lies.
ModelBundle from_adapter_checkpoint(FileSystem& fs, ControlPlane& control, Log& log,
                                    std::unique_ptr<CheckpointReader> reader, const nlohmann::json& section,
                                    const std::string& origin) {
  const LoraShape lora{.rank = section.value("rank", int64_t{0}),
                       .alpha = section.value("alpha", 0.0),
                       .rslora = section.value("rslora", false),
                       .target_modules = section.value("target_modules", std::vector<std::string>{})};
  const std::string base_model = section.value("base_model", "");
  HEARTH_CHECK(lora.rank > 0 && lora.alpha > 0 && !base_model.empty(), BadInput,
               "{}: section lora is not complete", origin);
  HEARTH_CHECK(
      fs.exists(base_model), BadInput,
      "{} holds adapters on {}, which is not there; bring it back, or run from the folder in which the "
      "training ran",
      reader->directory(), base_model);
  NamedTexts companions;
  for (const std::string& name : reader->tokenizer_files())
    companions.emplace_back(name, reader->read_file("tokenizer/" + name));
  const int64_t step = reader->step();
  const std::string directory = reader->directory();
  ModelBundle model = with_adapters(open_any(fs, control, log, base_model, AcceptGguf::No),
                                    std::shared_ptr<const TensorSource>(std::move(reader)), lora, base_model,
                                    directory + " (adapter checkpoint)");
  model.kind = ModelKind::Checkpoint;
  model.step = step;
  model.companion_files = std::move(companions);
  return model;
}

ModelBundle from_peft(FileSystem& fs, ControlPlane& control, Log& log, const std::string& path) {
  const std::string base_model = peft_base_model(fs, path);
  HEARTH_CHECK(
      fs.exists(base_model), BadInput,
      "{}/adapter_config.json: base_model_name_or_path '{}' is no local folder; nothing is fetched here",
      path, base_model);
  ModelBundle base = open_any(fs, control, log, base_model, AcceptGguf::No);
  PeftAdapter adapter = open_peft(fs, path, base.config);
  const LoraShape lora = adapter.lora;
  return with_adapters(std::move(base), std::move(adapter.tensors), lora, base_model,
                       path + " (PEFT adapters)");
}

std::optional<Forgetting> forgetting_of(const nlohmann::json& state) {
  if (!state.contains("forgetting")) return std::nullopt;
  const auto& section = state["forgetting"];
  return Forgetting{.before = section.value("before", 0.0),
                    .after = section.value("after", 0.0),
                    .allowed = section.value("allowed", 0.0)};
}

ModelBundle from_checkpoint(FileSystem& fs, ControlPlane& control, Log& log, const std::string& path) {
  std::unique_ptr<CheckpointReader> reader = find_checkpoint(fs, control, log, path);
  HEARTH_CHECK(reader, Usage, "{}: the run folder has no checkpoint yet", path);
  ModelBundle model;
  model.kind = ModelKind::Checkpoint;
  model.origin = reader->directory() + " (checkpoint)";
  model.step = reader->step();
  const std::string state_origin = reader->directory() + "/state.json";
  const nlohmann::json state = parse_json_strict(reader->state_json(), state_origin);
  HEARTH_CHECK(state.is_object() && state.contains("model"), BadInput, "{}: has no section model",
               state_origin);
  model.forgetting = forgetting_of(state);
  if (state.contains("lora")) {
    ModelBundle adapted =
        from_adapter_checkpoint(fs, control, log, std::move(reader), state["lora"], state_origin);
    adapted.forgetting = model.forgetting;
    return adapted;
  }
  model.config = model_config_from_json(state["model"], state_origin + ": model");
  for (const std::string& name : reader->tokenizer_files())
    model.companion_files.emplace_back(name, reader->read_file("tokenizer/" + name));
  model.tensors = bind_parameters(model.config, std::move(reader), Extras::Ignore);
  return model;
}

ModelBundle from_hf_directory(FileSystem& fs, const std::string& path) {
  ModelBundle model;
  model.kind = ModelKind::HfDirectory;
  model.origin = path + " (HF directory)";
  const std::string config_path = path + "/config.json";
  HfConfig config = parse_hf_config(fs.read_text(config_path, kMaxConfigBytes), config_path);
  model.config = std::move(config.model);
  model.ids = std::move(config.ids);
  model.tensors = bind_parameters(model.config, open_hf_weights(fs, path), Extras::Refuse);
  model.companion_files = read_companion_files(fs, path);
  return model;
}

ModelBundle from_gguf(FileSystem& fs, const std::string& path) {
  ModelBundle model;
  model.kind = ModelKind::Gguf;
  model.origin = path + " (GGUF)";
  const auto file = std::make_shared<const GgufFile>(fs, path);
  HfConfig config = gguf_model_config(*file);
  model.config = std::move(config.model);
  model.ids = std::move(config.ids);
  model.tensors = bind_parameters(model.config, open_gguf_weights(file, model.config), Extras::Refuse);
  if (const auto fields = gguf_tokenizer_fields(*file))
    model.companion_files = tokenizer_files_from_gguf(*fields);
  return model;
}

ModelBundle open_any(FileSystem& fs, ControlPlane& control, Log& log, const std::string& path,
                     AcceptGguf gguf) {
  HEARTH_CHECK(fs.exists(path), Usage, "{}: there is no such file or folder", path);
  if (is_checkpoint(fs, path) || is_run_folder(fs, path)) return from_checkpoint(fs, control, log, path);
  if (is_hf_directory(fs, path)) return from_hf_directory(fs, path);
  if (is_peft_directory(fs, path)) return from_peft(fs, control, log, path);
  const bool is_file = is_gguf(fs, path);
  HEARTH_CHECK(!is_file || gguf == AcceptGguf::Yes, Usage,
               "{}: is a GGUF file; turn it into a checkpoint first: hearth import {} --output CKPT", path,
               path);
  HEARTH_CHECK(
      is_file, BadInput,
      "{}: is not a model: expected a checkpoint (manifest.json), a run folder (checkpoints/){} HF directory "
      "(config.json){}",
      path, gguf == AcceptGguf::Yes ? ", an" : " or an", gguf == AcceptGguf::Yes ? " or a GGUF file" : "");
  return from_gguf(fs, path);
}

}  // namespace

ModelBundle open_model(FileSystem& fs, ControlPlane& control, Log& log, const std::string& model,
                       AcceptGguf gguf) {
  std::string path = model;
  while (path.size() > 1 && path.ends_with('/')) path.pop_back();
  ModelBundle bundle = open_any(fs, control, log, path, gguf);
  bundle.stored_dtype = common_dtype(*bundle.tensors);
  attach_tokenizer(bundle);
  return bundle;
}

ModelBundle open_model(FileSystem& fs, const std::string& model, AcceptGguf gguf) {
  const auto control = make_single_control_plane();
  Log log;
  return open_model(fs, *control, log, model, gguf);
}

NamedTexts traveling_files(const ModelBundle& model) {
  NamedTexts files;
  for (const auto& file : model.companion_files)
    if (file.first != kGenerationConfig) files.push_back(file);
  const std::string* source = find_text(model.companion_files, kGenerationConfig);
  if (source || model.ids != SpecialTokenIds{})
    files.emplace_back(kGenerationConfig, generation_config_text(source ? *source : "", model.ids));
  return files;
}

}  // namespace hearth
