#include "trainer/interchange/export_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/interchange/finite.h"
#include "trainer/interchange/parameter_source.h"
#include "trainer/interchange/together.h"

namespace hearth {
namespace {

// Reads any source in the types that the export stores, so that source and export can be compared exactly.
class RoundedSource final : public TensorSource {
 public:
  RoundedSource(const TensorSource& source, std::optional<DType> dtype)
      : source_(source), infos_(source.tensors()) {
    for (TensorInfo& tensor : infos_) {
      tensor.dtype = dtype.value_or(tensor.dtype);
      by_name_.emplace(tensor.name, &tensor);
    }
  }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return by_name_.contains(name); }
  const TensorInfo& info(const std::string& name) const override { return *by_name_.at(name); }
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    const DType stored = info(name).dtype;
    if (stored == dtype) return source_.read_elements(name, begin, end, dtype, out);
    std::vector<std::byte> rounded;
    auto* to = static_cast<std::byte*>(out);
    for_each_piece(end - begin, kPieceElements, [&](int64_t first, int64_t last) {
      rounded.resize(static_cast<size_t>((last - first) * size_bytes(stored)));
      source_.read_elements(name, begin + first, begin + last, stored, rounded.data());
      convert(stored, rounded.data(), dtype, to + first * size_bytes(dtype), last - first);
    });
  }
  std::string describe() const override { return source_.describe(); }

 private:
  const TensorSource& source_;
  std::vector<TensorInfo> infos_;
  std::map<std::string, const TensorInfo*> by_name_;
};

// One file of the export.
struct Shard {
  std::string file;
  std::vector<TensorInfo> tensors;
  int64_t bytes = 0;
};

std::vector<Shard> plan_shards(const std::vector<TensorInfo>& tensors, int64_t max_bytes) {
  std::vector<Shard> shards(1);
  for (const TensorInfo& tensor : tensors) {
    const int64_t bytes = tensor.numel() * size_bytes(tensor.dtype);
    if (shards.back().bytes > 0 && shards.back().bytes + bytes > max_bytes) shards.emplace_back();
    shards.back().tensors.push_back(tensor);
    shards.back().bytes += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i)
    shards[i].file = shards.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  return shards;
}

std::string index_text(const std::vector<Shard>& shards) {
  nlohmann::ordered_json index;
  int64_t total = 0;
  std::map<std::string, std::string> map;
  for (const Shard& shard : shards) {
    total += shard.bytes;
    for (const TensorInfo& tensor : shard.tensors) map[tensor.name] = shard.file;
  }
  index["metadata"]["total_size"] = total;
  index["weight_map"] = map;
  return index.dump(2) + "\n";
}

std::string list_text(const std::vector<int64_t>& ids) {
  std::string text;
  for (const int64_t id : ids) text += (text.empty() ? "" : ", ") + std::to_string(id);
  return text;
}

void write_text(FileSystem& fs, const std::string& path, std::string_view text) {
  const auto file = fs.create(path, CreateMode::Exclusive);
  file->write(text);
  file->sync();  // before the rename: a published folder must not hold names without bytes after a power cut
  file->close();
}

class Exporter {
 public:
  Exporter(FileSystem& fs, ControlPlane& control, const ModelBundle& model, const ExportOptions& options)
      : fs_(fs),
        control_(control),
        model_(model),
        options_(options),
        source_(*model.tensors, options.dtype),
        partial_(options.output + ".partial"),
        shards_(plan_shards(source_.tensors(), options.max_shard_bytes)) {}

  void run() {
    together("export.check", [&] { check_before(); });
    together("export.begin", [&] {
      if (root()) begin();
    });
    try {
      together("export.shards", [&] { write_shards(); });
      together("export.files", [&] {
        if (root()) write_files();
      });
      together("export.compare", [&] { compare(); });
      compare_logits();
      together("export.publish", [&] {
        if (root()) publish();
      });
    } catch (...) {
      if (root()) remove_partial();
      throw;
    }
  }

 private:
  bool root() const { return control_.rank() == 0; }
  void together(const char* site, const std::function<void()>& work) { run_together(control_, site, work); }
  void warn(const std::string& text) const {
    if (root() && options_.warn) options_.warn(text);
  }

  void check_before() {
    const std::string& out = options_.output;
    HEARTH_CHECK(!out.empty() && !out.ends_with('/'), Usage, "--output '{}' must name a folder", out);
    HEARTH_CHECK(!options_.dtype || *options_.dtype == DType::F32 || *options_.dtype == DType::BF16 ||
                     *options_.dtype == DType::F16,
                 Usage, "--dtype must be bf16, fp32 or fp16");
    if (fs_.exists(out)) {
      HEARTH_CHECK(fs_.is_directory(out), Usage, "{}: exists and is not a folder", out);
      const bool replace = options_.if_exists == IfOutputExists::Replace && fs_.exists(out + "/config.json");
      HEARTH_CHECK(
          replace || fs_.list(out).empty(), Usage,
          "{}: exists and is not empty; a folder that is served is never overwritten in place. Choose "
          "another "
          "--output, remove it, or pass --overwrite to replace a model (a folder with a config.json)",
          out);
    }
    check_special_tokens();
    check_forgetting(model_, options_.if_forgotten, [&](const std::string& text) { warn(text); });
  }

  void check_special_tokens() {
    if (!model_.tokenizer) {
      warn("the model has no tokenizer; the export will not have one either");
      return;
    }
    const auto eos = model_.tokenizer->eos_id();
    const auto& ids = model_.ids.eos;
    HEARTH_CHECK(!eos || std::find(ids.begin(), ids.end(), *eos) != ids.end(), BadInput,
                 "{}: the tokenizer's EOS is {} ({}), but config.json and generation_config.json say [{}]: "
                 "engines would "
                 "never stop. Correct eos_token in tokenizer_config.json or the lists",
                 model_.origin, *eos, model_.tokenizer->id_to_token(*eos), list_text(ids));
    if (ids.empty()) warn("the model has no end-of-sequence token; engines will generate until their limit");
    // transformers 5 puts Qwen's normalizer and pre-tokenizer in place of the file's own for model_type
    // qwen2.
    const auto im_start = model_.tokenizer->token_to_id("<|im_start|>");
    if (model_.config.family == "qwen2" && im_start != 151644)
      warn(
          "architecture qwen2 with a tokenizer that is not Qwen's: transformers 5 replaces its pre-tokenizer "
          "by Qwen's, so "
          "that text is split differently there than in training. Train another architecture, or use Qwen's "
          "tokenizer");
  }

  void begin() {
    fs_.remove_all(partial_);  // of an export that was killed
    fs_.create_directories(partial_);
  }

  int64_t my_bytes() const {
    int64_t bytes = 0;
    for (size_t i = 0; i < shards_.size(); ++i) bytes += is_mine(i) ? shards_[i].bytes : 0;
    return bytes;
  }
  bool is_mine(size_t shard) const {
    return static_cast<int>(shard % static_cast<size_t>(control_.world_size())) == control_.rank();
  }
  void advance(int64_t bytes) {
    done_ += bytes;
    // Writing and comparing read the same bytes once each.
    if (options_.progress) options_.progress(done_, 2 * my_bytes());
  }

  void write_shards() {
    for (size_t i = 0; i < shards_.size(); ++i)
      if (is_mine(i)) write_shard(shards_[i]);
  }

  void write_shard(const Shard& shard) {
    std::vector<TensorInfo> tensors = shard.tensors;
    sort_for_alignment(tensors);
    SafetensorsWriter writer(fs_, partial_ + "/" + shard.file, CreateMode::Exclusive, tensors,
                             {{"format", "pt"}});
    std::vector<std::byte> buffer;
    for (const TensorInfo& tensor : tensors) {
      for_each_piece(tensor.numel(), kPieceElements, [&](int64_t begin, int64_t end) {
        buffer.resize(static_cast<size_t>((end - begin) * size_bytes(tensor.dtype)));
        source_.read_elements(tensor.name, begin, end, tensor.dtype, buffer.data());
        const int64_t bad = first_non_finite(tensor.dtype, buffer.data(), end - begin);
        HEARTH_CHECK(bad < 0, Numeric, "{}: {} is not finite in {} at element {}", model_.origin, tensor.name,
                     config_name(tensor.dtype), begin + bad);
        writer.append(buffer);
        advance(static_cast<int64_t>(buffer.size()));
      });
    }
    writer.sync();
    writer.close();
  }

  void write_files() {
    if (shards_.size() > 1) write_text(fs_, partial_ + "/model.safetensors.index.json", index_text(shards_));
    write_text(fs_, partial_ + "/config.json",
               hf_config_text(model_.config, model_.ids, options_.dtype.value_or(model_.stored_dtype)));
    std::set<std::string> written;
    const auto write_all = [&](const NamedTexts& files) {
      for (const auto& [name, text] : files)
        if (written.insert(name).second) write_text(fs_, partial_ + "/" + name, text);
    };
    // The tokenizer's own idea of its files comes first: for a SentencePiece model it adds a tokenizer.json.
    if (model_.tokenizer) write_all(model_.tokenizer->export_files());
    NamedTexts rest = traveling_files(model_);
    if (!find_text(rest, "generation_config.json"))
      rest.emplace_back("generation_config.json", generation_config_text("", model_.ids));
    write_all(rest);
    fs_.sync_directory(partial_);
  }

  // What a reader will see, opened the way a reader opens it.
  void compare() {
    const ModelBundle written = open_model(fs_, partial_);
    compare_config(written);
    for (size_t i = 0; i < shards_.size(); ++i)
      if (is_mine(i))
        for (const TensorInfo& tensor : shards_[i].tensors) compare_tensor(*written.tensors, tensor);
  }

  void compare_config(const ModelBundle& written) const {
    ModelConfig want = model_.config;
    if (want.family == "smollm") want.family = "llama";  // the same architecture in config.json
    want.head_dim = want.head_width();
    want.num_key_value_heads = want.kv_heads();
    if (want.rope_scaling.rope_type == "default") want.rope_scaling = {};
    HEARTH_CHECK(written.config == want, Internal,
                 "{}: config.json describes another model than the one exported (please report)", partial_);
    HEARTH_CHECK(written.ids == model_.ids, Internal, "{}: the token ids read back differ (please report)",
                 partial_);
    HEARTH_CHECK(!model_.tokenizer == !written.tokenizer && written.chat_template == model_.chat_template,
                 Internal, "{}: the tokenizer or chat template read back differs (please report)", partial_);
  }

  void compare_tensor(const TensorSource& written, const TensorInfo& tensor) {
    HEARTH_CHECK(written.contains(tensor.name) && written.info(tensor.name) == tensor, Corrupt,
                 "{}: {} was read back with another type or shape", partial_, tensor.name);
    std::vector<std::byte> want, got;
    for_each_piece(tensor.numel(), kPieceElements, [&](int64_t begin, int64_t end) {
      want.resize(static_cast<size_t>((end - begin) * size_bytes(tensor.dtype)));
      got.resize(want.size());
      source_.read_elements(tensor.name, begin, end, tensor.dtype, want.data());
      written.read_elements(tensor.name, begin, end, tensor.dtype, got.data());
      HEARTH_CHECK(std::memcmp(want.data(), got.data(), want.size()) == 0, Corrupt,
                   "{}: {} was read back with other bytes than were written (elements {} to {}); do not "
                   "trust this disk",
                   partial_, tensor.name, begin, end);
      advance(static_cast<int64_t>(want.size()));
    });
  }

  // The prompt needs no tokenizer: ids spread over the vocabulary.
  std::vector<int32_t> prompt() const {
    const int64_t length = std::min<int64_t>(16, model_.config.max_position_embeddings);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < length; ++i)
      ids.push_back(checked_cast<int32_t>((1 + i * 7919) % model_.config.vocab_size));
    return ids;
  }

  void compare_logits() {
    if (!options_.logits) return;
    std::optional<ModelBundle> written;
    together("export.reopen", [&] { written = open_model(fs_, partial_); });
    const std::vector<float> want = options_.logits(model_.config, source_, prompt());
    const std::vector<float> got = options_.logits(written->config, *written->tensors, prompt());
    together("export.logits", [&] {
      if (root()) require_equal_logits(want, got);
    });
  }

  void require_equal_logits(const std::vector<float>& want, const std::vector<float>& got) const {
    HEARTH_CHECK(!want.empty() && want.size() == got.size(), Internal,
                 "export: {} logits against {} (please report)", want.size(), got.size());
    double scale = 0, worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      // A NaN difference must not lose against a number, so that the test below fails for it.
      const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
      if (!(difference <= worst)) worst = difference;
      scale = std::max(scale, std::abs(static_cast<double>(want[i])));
      if (std::isnan(worst)) break;
    }
    HEARTH_CHECK(
        worst <= 1e-5 * scale, Corrupt,
        "{}: logits of the export differ from the trainer's by {} (largest logit {}); nothing was published",
        partial_, worst, scale);
  }

  void publish() {
    const std::string old = options_.output + ".replaced";
    const bool exists = fs_.exists(options_.output);
    const bool has_content = exists && !fs_.list(options_.output).empty();
    if (has_content) {
      fs_.remove_all(old);
      fs_.rename(options_.output, old);
    } else if (exists) {
      fs_.remove_all(options_.output);
    }
    fs_.rename(partial_, options_.output);
    const size_t slash = options_.output.rfind('/');
    fs_.sync_directory(slash == std::string::npos ? "."
                       : slash == 0               ? "/"
                                                  : options_.output.substr(0, slash));
    if (has_content) fs_.remove_all(old);
  }

  void remove_partial() noexcept {
    try {
      fs_.remove_all(partial_);
    } catch (const std::exception&) {
      // The error that brought us here is the one to report.
    }
  }

  FileSystem& fs_;
  ControlPlane& control_;
  const ModelBundle& model_;
  const ExportOptions& options_;
  RoundedSource source_;
  std::string partial_;
  std::vector<Shard> shards_;
  int64_t done_ = 0;
};

}  // namespace

void check_forgetting(const ModelBundle& model, IfForgotten if_forgotten,
                      const std::function<void(const std::string&)>& warn) {
  const auto& forgetting = model.forgetting;
  if (!forgetting || !forgetting->exceeds()) return;
  const std::string text = fmt::format(
      "{}: the loss on old held-out data rose by {:.4f} nats per token ({:.4f} to {:.4f}), and "
      "objective.incremental.max_forgetting allows {:.4f}",
      model.origin, forgetting->after - forgetting->before, forgetting->before, forgetting->after,
      forgetting->allowed);
  HEARTH_CHECK(if_forgotten == IfForgotten::Publish, Numeric,
               "{}: not published. Mix in more old data (objective.incremental.replay_share), lower "
               "optimizer.lr, take an "
               "earlier checkpoint, or pass --allow-forgetting",
               text);
  warn(text + "; published on request");
}

void export_model(FileSystem& fs, ControlPlane& control, const ModelBundle& model,
                  const ExportOptions& options) {
  Exporter(fs, control, model, options).run();
}

}  // namespace hearth
