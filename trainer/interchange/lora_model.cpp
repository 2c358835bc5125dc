#include "trainer/interchange/lora_model.h"

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "base/strict_json.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/interchange/parameter_source.h"

namespace hearth {
namespace {

constexpr std::string_view kPeftPrefix = "base_model.model.";
constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;

std::vector<float> read_floats(const TensorSource& source, const std::string& name, int64_t begin,
                               int64_t end) {
  std::vector<float> values(static_cast<size_t>(end - begin));
  source.read_elements(name, begin, end, DType::F32, values.data());
  return values;
}

void require_shape(const TensorSource& adapters, const std::string& name, const std::vector<int64_t>& shape) {
  const auto& stored = adapters.info(name).shape;
  HEARTH_CHECK(stored == shape, BadInput, "{}: '{}' has shape {}, the base model needs {}",
               adapters.describe(), name, shape_text(stored), shape_text(shape));
}

class MergedSource final : public TensorSource {
 public:
  MergedSource(std::shared_ptr<const TensorSource> base, std::shared_ptr<const TensorSource> adapters,
               const LoraShape& lora)
      : base_(std::move(base)), adapters_(std::move(adapters)), lora_(lora) {
    int64_t used = 0;
    for (const TensorInfo& tensor : base_->tensors()) {
      if (!is_adapted(tensor.name)) continue;
      require_shape(*adapters_, lora_a_name(tensor.name), {lora_.rank, tensor.shape[1]});
      require_shape(*adapters_, lora_b_name(tensor.name), {tensor.shape[0], lora_.rank});
      used += 2;
    }
    HEARTH_CHECK(used > 0, BadInput, "{} holds no adapter of {}", adapters_->describe(), base_->describe());
  }
  const std::vector<TensorInfo>& tensors() const override { return base_->tensors(); }
  bool contains(const std::string& name) const override { return base_->contains(name); }
  const TensorInfo& info(const std::string& name) const override { return base_->info(name); }
  std::string describe() const override { return adapters_->describe() + " on " + base_->describe(); }

  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    if (!is_adapted(name)) return base_->read_elements(name, begin, end, dtype, out);
    const std::shared_ptr<const Factors> factors = factors_of(name);
    auto* to = static_cast<std::byte*>(out);
    for_each_piece(end - begin, kPieceElements, [&](int64_t first, int64_t last) {
      std::vector<float> values = read_floats(*base_, name, begin + first, begin + last);
      add_product(*factors, begin + first, values);
      convert(DType::F32, values.data(), dtype, to + first * size_bytes(dtype), last - first);
    });
  }

 private:
  bool is_adapted(const std::string& name) const {
    return name.starts_with("model.layers.") && name.ends_with(".weight") &&
           adapters_->contains(lora_a_name(name));
  }
  // The adapters of one matrix.
  struct Factors {
    std::string name;
    int64_t columns;
    std::vector<float> a, b;  // [rank, columns], [rows, rank]
  };
  // Kept for the next call: a slice of a matrix is read row by row.
  std::shared_ptr<const Factors> factors_of(const std::string& name) const {
    {
      const std::lock_guard lock(mutex_);
      if (last_ != nullptr && last_->name == name) return last_;
    }
    const auto& shape = info(name).shape;
    auto factors = std::make_shared<const Factors>(
        Factors{name, shape[1], read_floats(*adapters_, lora_a_name(name), 0, lora_.rank * shape[1]),
                read_floats(*adapters_, lora_b_name(name), 0, shape[0] * lora_.rank)});
    const std::lock_guard lock(mutex_);
    return last_ = std::move(factors);
  }
  // values: elements from `begin` on of the matrix, which get scale B A added.
  void add_product(const Factors& factors, int64_t begin, std::vector<float>& values) const {
    const auto end = begin + static_cast<int64_t>(values.size());
    const int64_t columns = factors.columns, rank = lora_.rank;
    std::vector<float> product(static_cast<size_t>(columns));
    const auto scale = static_cast<float>(lora_.scale());
    for (int64_t row = begin / columns; row * columns < end; ++row) {
      const int64_t from = std::max(begin, row * columns), to = std::min(end, (row + 1) * columns);
      std::fill_n(product.begin(), to - from, 0.0f);
      for (int64_t r = 0; r < rank; ++r) {
        const float factor = factors.b[static_cast<size_t>(row * rank + r)];
        const float* a = factors.a.data() + r * columns + from % columns;
        for (int64_t i = 0; i < to - from; ++i) product[static_cast<size_t>(i)] += factor * a[i];
      }
      for (int64_t i = from; i < to; ++i)
        values[static_cast<size_t>(i - begin)] += scale * product[static_cast<size_t>(i - from)];
    }
  }

  std::shared_ptr<const TensorSource> base_, adapters_;
  LoraShape lora_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Factors> last_;  // guarded by mutex_
};

// adapter_model.safetensors under Hearth's names.
class PeftTensors final : public TensorSource {
 public:
  PeftTensors(FileSystem& fs, const std::string& path) : file_(fs, path) {
    for (const SafetensorsEntry& entry : file_.entries()) {
      HEARTH_CHECK(entry.info.name.starts_with(kPeftPrefix), BadInput,
                   "{}: tensor '{}' does not begin with '{}'", path, entry.info.name, kPeftPrefix);
      TensorInfo info = entry.info;
      info.name = info.name.substr(kPeftPrefix.size());
      index_.emplace(info.name, infos_.size());
      infos_.push_back(std::move(info));
    }
  }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return index_.contains(name); }
  const TensorInfo& info(const std::string& name) const override {
    const auto found = index_.find(name);
    HEARTH_CHECK(found != index_.end(), BadInput, "{} has no tensor '{}'", describe(), name);
    return infos_[found->second];
  }
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    file_.read_elements(*file_.find(peft_name(info(name).name)), begin, end, dtype, out);
  }
  std::string describe() const override { return file_.path() + " (PEFT adapters)"; }

 private:
  SafetensorsFile file_;
  std::vector<TensorInfo> infos_;
  std::unordered_map<std::string, size_t> index_;
};

std::string config_path(const std::string& directory) {
  return directory + "/adapter_config.json";
}

nlohmann::json read_config(FileSystem& fs, const std::string& directory) {
  const std::string path = config_path(directory);
  nlohmann::json config = parse_json_strict(fs.read_text(path, kMaxConfigBytes), path);
  HEARTH_CHECK(config.is_object(), BadInput, "{}: expected an object", path);
  return config;
}

LoraShape lora_shape(const nlohmann::json& config, const std::string& path) {
  const auto refuse_unless = [&](bool ok, const char* key, const char* why) {
    HEARTH_CHECK(ok, BadInput, "{}: {} = {}: {}", path, key, config.value(key, nlohmann::json()).dump(), why);
  };
  const auto is_default = [&](const char* key) {
    const auto value = config.value(key, nlohmann::json());
    return value.is_null() || value == false || (value.is_structured() && value.empty()) || value == "none";
  };
  refuse_unless(config.value("peft_type", "") == "LORA", "peft_type", "only LORA is read");
  for (const char* key : {"use_dora", "rank_pattern", "alpha_pattern", "modules_to_save",
                          "layers_to_transform", "fan_in_fan_out", "lora_bias"})
    refuse_unless(is_default(key), key, "would change what the adapters do, and is not supported");
  refuse_unless(config.value("bias", "none") == "none", "bias", "trained biases are not supported");
  LoraShape lora;
  const auto number = [&](const char* key) {
    refuse_unless(config.contains(key) && config[key].is_number() && config[key].get<double>() > 0, key,
                  "must be a number > 0");
    return config[key].get<double>();
  };
  lora.rank = static_cast<int64_t>(number("r"));
  lora.alpha = number("lora_alpha");
  lora.rslora = config.value("use_rslora", false);
  const auto modules = config.value("target_modules", nlohmann::json());
  if (modules.is_array()) lora.target_modules = modules.get<std::vector<std::string>>();
  return lora;
}

}  // namespace

std::unique_ptr<TensorSource> merged_source(std::shared_ptr<const TensorSource> base,
                                            std::shared_ptr<const TensorSource> adapters,
                                            const LoraShape& lora) {
  return std::make_unique<MergedSource>(std::move(base), std::move(adapters), lora);
}

bool is_peft_directory(FileSystem& fs, const std::string& path) {
  return fs.is_directory(path) && fs.exists(config_path(path)) &&
         fs.exists(path + "/adapter_model.safetensors");
}

std::string peft_base_model(FileSystem& fs, const std::string& path) {
  const nlohmann::json config = read_config(fs, path);
  const auto base = config.value("base_model_name_or_path", nlohmann::json());
  HEARTH_CHECK(base.is_string() && !base.get<std::string>().empty(), BadInput,
               "{}: base_model_name_or_path is missing", config_path(path));
  return base.get<std::string>();
}

PeftAdapter open_peft(FileSystem& fs, const std::string& path, const ModelConfig& base) {
  PeftAdapter adapter{.lora = lora_shape(read_config(fs, path), config_path(path)),
                      .base_model = peft_base_model(fs, path),
                      .tensors = std::make_shared<PeftTensors>(fs, path + "/adapter_model.safetensors")};
  std::vector<std::string> known;
  for (const ParameterSpec& spec : parameter_specs(base))
    if (spec.name.starts_with("model.layers.") && spec.shape.size() == 2)
      known.insert(known.end(), {lora_a_name(spec.name), lora_b_name(spec.name)});
  for (const TensorInfo& tensor : adapter.tensors->tensors())
    HEARTH_CHECK(std::find(known.begin(), known.end(), tensor.name) != known.end(), BadInput,
                 "{}: '{}' is no adapter of a linear of the base model's layers", adapter.tensors->describe(),
                 tensor.name);
  return adapter;
}

void export_adapters(FileSystem& fs, const std::string& output, const AdapterExport& model) {
  HEARTH_CHECK(!fs.exists(output), Usage, "{}: exists already; choose another --output or remove it", output);
  std::vector<TensorInfo> infos;
  for (const ParameterShard& shard : lora_shards(model.base, ModelPartition::whole(model.base), model.lora)) {
    const TensorInfo& stored = model.adapters.info(shard.spec.name);
    infos.push_back({peft_name(stored.name), model.dtype.value_or(stored.dtype), stored.shape});
  }
  sort_for_alignment(infos);
  const std::string partial = output + ".partial";
  fs.remove_all(partial);
  fs.create_directories(partial);
  SafetensorsWriter writer(fs, partial + "/adapter_model.safetensors", CreateMode::Exclusive, infos,
                           {{"format", "pt"}});
  for (const TensorInfo& info : infos) {
    std::vector<std::byte> values(static_cast<size_t>(info.numel() * size_bytes(info.dtype)));
    model.adapters.read_elements(info.name.substr(kPeftPrefix.size()), 0, info.numel(), info.dtype,
                                 values.data());
    writer.append(values);
  }
  writer.sync();
  writer.close();
  fs.write_atomically(config_path(partial), peft_config_text(model.lora, model.base_model));
  fs.sync_directory(partial);
  fs.rename(partial, output);
}

std::string peft_config_text(const LoraShape& lora, const std::string& base_model) {
  std::vector<std::string> modules;
  for (const std::string& module : lora_modules())
    if (lora.targets(module)) modules.push_back(module);
  const nlohmann::ordered_json config{{"peft_type", "LORA"},
                                      {"task_type", "CAUSAL_LM"},
                                      {"base_model_name_or_path", base_model},
                                      {"r", lora.rank},
                                      {"lora_alpha", lora.alpha},
                                      {"lora_dropout", 0.0},
                                      {"use_rslora", lora.rslora},
                                      {"target_modules", modules},
                                      {"bias", "none"},
                                      {"fan_in_fan_out", false},
                                      {"inference_mode", true}};
  return config.dump(2) + "\n";
}

std::string peft_name(const std::string& name) {
  return std::string(kPeftPrefix) + name;
}

}  // namespace hearth
