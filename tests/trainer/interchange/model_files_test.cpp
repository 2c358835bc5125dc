// HF directories, right and wrong, through open_model.
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/trainer/interchange/interchange_test_support.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/interchange/model_source.h"
#include "trainer/interchange/parameter_source.h"

using namespace hearth;
using namespace hearth::testing;
using nlohmann::json;

namespace {

const json kConfig = {{"architectures", {"LlamaForCausalLM"}},
                      {"model_type", "llama"},
                      {"vocab_size", 11},
                      {"hidden_size", 8},
                      {"intermediate_size", 12},
                      {"num_hidden_layers", 2},
                      {"num_attention_heads", 2},
                      {"num_key_value_heads", 1},
                      {"max_position_embeddings", 32}};

// A model directory that a test bends before writing it.
struct Directory {
  TempFolder folder;
  json config = kConfig;
  std::vector<TensorInfo> tensors;

  Directory() {
    for (const ParameterSpec& spec : parameter_specs(parse_hf_config(config.dump(), "test").model))
      tensors.push_back({spec.name, DType::F32, spec.shape});
  }
  TensorInfo& tensor(const std::string& name) {
    for (auto& entry : tensors)
      if (entry.name == name) return entry;
    BOOST_FAIL("no tensor " << name);
    return tensors[0];
  }
  void erase(const std::string& name) {
    std::erase_if(tensors, [&](const TensorInfo& t) { return t.name == name; });
  }
  // Element i of a tensor is i + seed / 1000.
  void write_weights(const std::string& file, std::vector<TensorInfo> list, float seed = 0) const {
    sort_for_alignment(list);
    SafetensorsWriter writer(fs(), folder / file, CreateMode::Truncate, list);
    for (const TensorInfo& info : list) {
      std::vector<std::byte> bytes(static_cast<size_t>(info.numel() * size_bytes(info.dtype)));
      if (info.dtype == DType::F32)
        for (int64_t i = 0; i < info.numel(); ++i) {
          const float value = static_cast<float>(i) + (info.name == "lm_head.weight" ? seed : 0.0f);
          std::memcpy(bytes.data() + 4 * i, &value, 4);
        }
      writer.append(bytes);
    }
    writer.sync();
    writer.close();
  }
  void write() const {
    write_file(folder / "config.json", config.dump());
    write_weights("model.safetensors", tensors);
  }
  void write_shards(const json& index, size_t split) const {
    write_file(folder / "config.json", config.dump());
    write_file(folder / "model.safetensors.index.json", index.dump());
    const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(split);
    write_weights("a.safetensors", {tensors.begin(), middle});
    write_weights("b.safetensors", {middle, tensors.end()});
  }
  json index(size_t split) const {
    json map;
    for (size_t i = 0; i < tensors.size(); ++i)
      map[tensors[i].name] = i < split ? "a.safetensors" : "b.safetensors";
    return {{"metadata", {{"total_size", 1}}}, {"weight_map", map}};
  }
  ModelBundle open() const { return open_model(fs(), folder.path()); }
  void refuse(const std::string& mention) const {
    check_error(ErrorKind::BadInput, mention, [&] { open(); });
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(a_plain_directory_opens) {
  Directory d;
  d.write();
  const ModelBundle model = d.open();
  BOOST_TEST((model.kind == ModelKind::HfDirectory));
  BOOST_TEST(model.config.hidden_size == 8);
  BOOST_TEST(!model.tokenizer);
  BOOST_TEST(model.tensors->tensors().size() == d.tensors.size());
  BOOST_TEST(read_fp32(*model.tensors, "model.layers.1.mlp.up_proj.weight")[95] == 95.0f);
  BOOST_TEST(open_model(fs(), d.folder.path() + "/").config.hidden_size == 8);
}

BOOST_AUTO_TEST_CASE(wrong_weights_are_one_error_that_lists_them) {
  Directory d;
  d.erase("model.layers.0.mlp.up_proj.weight");
  d.tensor("model.norm.weight").shape = {9};
  d.tensors.push_back({"model.layers.0.self_attn.q_proj.bias", DType::F32, {8}});
  d.tensor("lm_head.weight").dtype = DType::I32;
  d.write();
  for (const char* mention :
       {"model.layers.0.mlp.up_proj.weight [12, 8]: missing", "model.norm.weight: shape [9], expected [8]",
        "q_proj.bias [8]: unexpected", "lm_head.weight: element type I32", "4 problems"})
    d.refuse(mention);
}

BOOST_AUTO_TEST_CASE(rotary_buffers_of_old_exporters_are_ignored) {
  Directory d;
  d.tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::F32, {2}});
  d.write();
  BOOST_TEST(!d.open().tensors->contains("model.layers.0.self_attn.rotary_emb.inv_freq"));
}

BOOST_AUTO_TEST_CASE(tied_embeddings_with_and_without_a_head) {
  Directory d;
  d.config["tie_word_embeddings"] = true;
  d.write();  // lm_head beside the embedding, equal to it
  BOOST_TEST(!d.open().tensors->contains("lm_head.weight"));
  d.write_weights("model.safetensors", d.tensors, 0.5f);
  d.refuse("differs from model.embed_tokens.weight");
  d.erase("lm_head.weight");
  d.write();
  BOOST_TEST(d.open().tensors->tensors().size() == d.tensors.size());
  d.config["tie_word_embeddings"] = false;
  d.write();
  d.refuse("tie_word_embeddings = true");
}

BOOST_AUTO_TEST_CASE(sharded_directories) {
  Directory d;
  d.write_shards(d.index(5), 5);
  BOOST_TEST(d.open().tensors->tensors().size() == d.tensors.size());
  for (const auto& [shard, mention] :
       {std::pair<std::string, std::string>{"../b.safetensors", "not a file name"},
        {"/etc/passwd", "not a file name"},
        {"sub/b.safetensors", "not a file name"},
        {"..", "not a file name"},
        {"b.bin", "not a .safetensors"},
        {"c.safetensors", "download is incomplete"},
        {"a.safetensors", "it is in b.safetensors"}}) {
    json index = d.index(5);
    index["weight_map"]["lm_head.weight"] = shard;
    d.write_shards(index, 5);
    d.refuse(mention);
  }
  json index = d.index(5);
  index["weight_map"]["extra.weight"] = "a.safetensors";
  d.write_shards(index, 5);
  d.refuse("no shard holds it");
  d.write_shards(json{{"weight_map", json::object()}}, 5);
  d.refuse("weight_map is empty");
  d.write_shards(json::array(), 5);
  d.refuse("weight_map");
  d.write_shards(d.index(5), 5);
  d.write_weights("b.safetensors", d.tensors);
  d.refuse("lies in a.safetensors and in b.safetensors");
}

BOOST_AUTO_TEST_CASE(what_is_not_a_model_is_refused) {
  const TempFolder folder;
  check_error(ErrorKind::Usage, "no such file", [&] { open_model(fs(), folder / "nothing"); });
  check_error(ErrorKind::BadInput, "is not a model", [&] { open_model(fs(), folder.path()); });
  write_file(folder / "config.json", kConfig.dump());
  check_error(ErrorKind::BadInput, "neither", [&] { open_model(fs(), folder.path()); });
  write_file(folder / "pytorch_model.bin", "PK");
  check_error(ErrorKind::BadInput, "zip", [&] { open_model(fs(), folder.path()); });
  write_file(folder / "file.gguf", "GGUF");
  check_error(ErrorKind::Usage, "hearth import", [&] { open_model(fs(), folder / "file.gguf"); });
  check_error(ErrorKind::BadInput, "truncated",
              [&] { open_model(fs(), folder / "file.gguf", AcceptGguf::Yes); });
}

BOOST_AUTO_TEST_CASE(absurd_safetensors_are_bad_input) {
  Directory d;
  d.write();
  const std::string path = d.folder / "model.safetensors", whole = fs().read_text(path);
  const auto prefix = [](uint64_t length) { return std::string(reinterpret_cast<const char*>(&length), 8); };
  for (const std::string& bytes :
       {std::string(), std::string("{}"), prefix(~uint64_t{0}) + "{}", prefix(uint64_t{1} << 40) + "{}",
        prefix(2) + "[]", whole.substr(0, whole.size() - 1), whole + "x"}) {
    write_file(path, bytes);
    d.refuse("model.safetensors");
  }
}

BOOST_AUTO_TEST_CASE(configuration_is_checked_before_weights) {
  Directory d;
  d.config["hidden_act"] = "relu";
  d.write();
  write_file(d.folder / "model.safetensors", "garbage");
  d.refuse("relu");
}

BOOST_AUTO_TEST_CASE(token_ids_outside_the_vocabulary_are_refused) {
  Directory d;
  d.config["eos_token_id"] = 11;
  d.write();
  d.refuse("eos_token_id is 11");
  d.config["eos_token_id"] = 10;
  d.write();
  write_file(d.folder / "generation_config.json", R"({"eos_token_id": [3, 10], "bos_token_id": 2})");
  const ModelBundle model = d.open();
  BOOST_TEST((model.ids.eos == std::vector<int64_t>{10, 3}));
  BOOST_TEST(*model.ids.bos == 2);
}
