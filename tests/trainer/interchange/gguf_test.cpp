#include "trainer/interchange/gguf.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <random>

#include "tests/trainer/interchange/interchange_test_support.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/interchange/gguf_model.h"
#include "trainer/interchange/hf_directory.h"
#include "trainer/interchange/parameter_source.h"

using namespace hearth;
using namespace hearth::testing;

namespace {

// Writes the bytes of a GGUF file field by field, right or wrong.
class GgufBytes {
 public:
  template <class T>
  GgufBytes& put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    return *this;
  }
  GgufBytes& text(const std::string& value) {
    put(uint64_t{value.size()});
    text_ += value;
    return *this;
  }
  GgufBytes& head(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    text_ += "GGUF";
    return put(version).put(tensors).put(keys);
  }
  GgufBytes& key(const std::string& name, uint32_t type) { return text(name).put(type); }
  GgufBytes& tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type,
                    uint64_t offset) {
    text(name).put(static_cast<uint32_t>(dims.size()));
    for (const uint64_t extent : dims) put(extent);
    return put(type).put(offset);
  }
  GgufBytes& data(size_t bytes, size_t alignment = 32) {
    text_.resize((text_.size() + alignment - 1) / alignment * alignment);
    text_.append(bytes, '\1');
    return *this;
  }
  const std::string& bytes() const { return text_; }

 private:
  std::string text_;
};

struct Folder {
  TempFolder folder;
  std::string path = folder / "model.gguf";
  void open(const GgufBytes& bytes) {
    write_file(path, bytes.bytes());
    const GgufFile file(fs(), path);
  }
  void refuse(const GgufBytes& bytes, const std::string& mention) {
    check_error(ErrorKind::BadInput, mention, [&] { open(bytes); });
  }
};

// The models of make_models.py and their GGUF forms, made once for all cases of this program.
struct Made {
  TempFolder folder;
  std::string models = folder / "models", gguf = folder / "gguf";
  Made() {
    run_python(script("parity/make_models.py") + " " + models + " > /dev/null");
    run_python(script("trainer/interchange/make_gguf.py") + " " + gguf + " " + models + " 2> /dev/null");
  }
};
const Made& made() {
  static const Made folders;
  return folders;
}

std::vector<float> read_raw(const std::string& path) {
  const auto file = fs().open(path);
  std::vector<float> values(static_cast<size_t>(file->size() / 4));
  file->read_at(0, std::as_writable_bytes(std::span(values)));
  return values;
}

std::unique_ptr<TensorSource> open_bound(const std::string& path, ModelConfig& config) {
  const auto file = std::make_shared<const GgufFile>(fs(), path);
  config = gguf_model_config(*file).model;
  return bind_parameters(config, open_gguf_weights(file, config), Extras::Refuse);
}

}  // namespace

BOOST_AUTO_TEST_CASE(every_block_type_equals_the_gguf_package_bit_for_bit) {
  const GgufFile file(fs(), made().gguf + "/blocks.gguf");
  BOOST_TEST(file.tensors().size() == 11u);
  for (const GgufTensor& tensor : file.tensors()) {
    const std::vector<float> want = read_raw(made().gguf + "/blocks." + tensor.name + ".f32");
    std::vector<float> got(static_cast<size_t>(tensor.numel()), NAN);
    BOOST_REQUIRE_EQUAL(got.size(), want.size());
    file.read(tensor, 0, tensor.numel(), got.data());
    BOOST_TEST(std::all_of(got.begin(), got.end(), [](float v) { return std::isfinite(v); }), tensor.name);
    // One multiplication and at most one addition in the same order: no rounding may differ.
    BOOST_TEST(std::memcmp(got.data(), want.data(), got.size() * 4) == 0, tensor.name);
    for (const auto& [begin, end] :
         {std::pair<int64_t, int64_t>{0, 1}, {31, 33}, {255, 257}, {700, 4001}, {4607, 4608}}) {
      std::vector<float> part(static_cast<size_t>(end - begin), NAN);
      file.read(tensor, begin, end, part.data());
      BOOST_TEST(std::equal(part.begin(), part.end(), want.begin() + begin),
                 tensor.name << " from " << begin);
    }
  }
}

BOOST_AUTO_TEST_CASE(models_equal_the_hf_directories_they_were_made_from) {
  for (const std::string name : {"llama", "llama_bias", "llama3", "qwen2", "qwen3", "mistral"}) {
    ModelConfig config;
    const auto got = open_bound(made().gguf + "/" + name + ".gguf", config);
    HfConfig hf = parse_hf_config(fs().read_text(made().models + "/" + name + "/config.json"), name);
    const auto want = open_hf_weights(fs(), made().models + "/" + name);
    if (name == "mistral") hf.model.family = "llama";  // how GGUF files call it
    hf.model.head_dim = hf.model.head_width();
    hf.model.initializer_range = config.initializer_range;  // not in a GGUF file
    BOOST_TEST((config == hf.model), name);
    for (const TensorInfo& tensor : got->tensors())
      BOOST_TEST((read_fp32(*got, tensor.name) == read_fp32(*want, tensor.name)), name << " " << tensor.name);
    BOOST_TEST(got->tensors().size() == parameter_specs(hf.model).size());
  }
}

BOOST_AUTO_TEST_CASE(rows_put_back_equal_transformers_own_reading) {
  ModelConfig config;
  const auto got = open_bound(made().gguf + "/llama_q8.gguf", config);
  const SafetensorsFile want(fs(), made().gguf + "/llama_q8.transformers.safetensors");
  for (const TensorInfo& tensor : got->tensors()) {
    const SafetensorsEntry* entry = want.find(tensor.name);
    BOOST_REQUIRE_MESSAGE(entry != nullptr, tensor.name);
    std::vector<float> values(static_cast<size_t>(tensor.numel()));
    want.read_elements(*entry, 0, tensor.numel(), DType::F32, values.data());
    BOOST_TEST((read_fp32(*got, tensor.name) == values), tensor.name);
  }
  // Boxes and odd ranges of permuted rows agree with the whole.
  const std::string name = "model.layers.1.self_attn.k_proj.weight";
  const std::vector<float> whole = read_fp32(*got, name);
  std::vector<float> part(301);
  got->read_elements(name, 50, 351, DType::F32, part.data());
  BOOST_TEST(std::equal(part.begin(), part.end(), whole.begin() + 50));
}

BOOST_AUTO_TEST_CASE(truncation_at_any_length_is_one_clear_error) {
  const TempFolder folder;
  const std::string whole = fs().read_text(made().gguf + "/llama_q8.gguf"), path = folder / "cut.gguf";
  std::vector<size_t> lengths;
  for (size_t i = 0; i < 2400; ++i) lengths.push_back(i);  // every byte of the header's start
  std::mt19937_64 random(11);
  for (int i = 0; i < 200; ++i) lengths.push_back(random() % whole.size());
  lengths.push_back(whole.size() - 1);
  for (const size_t length : lengths) {
    write_file(path, whole.substr(0, length));
    try {
      const GgufFile file(fs(), path);
      // Padding behind the last tensor may be missing; its data may not.
      BOOST_TEST(length + 32 > whole.size(), "accepted " << length << " of " << whole.size() << " bytes");
    } catch (const Error& error) {
      BOOST_TEST((error.kind() == ErrorKind::BadInput), error.what());
    }
  }
}

BOOST_AUTO_TEST_CASE(flipped_bytes_never_do_worse_than_an_error) {
  const TempFolder folder;
  const std::string whole = fs().read_text(made().gguf + "/llama_q8.gguf"), path = folder / "flipped.gguf";
  std::mt19937_64 random(12);
  for (int i = 0; i < 600; ++i) {
    std::string bytes = whole;
    for (int flips = 0; flips < 1 + i % 3; ++flips) bytes[random() % 2600] = static_cast<char>(random());
    write_file(path, bytes);
    try {
      ModelConfig config;
      const auto source = open_bound(path, config);
      for (const TensorInfo& tensor : source->tensors()) read_fp32(*source, tensor.name);
    } catch (const Error& error) {
      BOOST_TEST((error.kind() == ErrorKind::BadInput), error.what());
    }
  }
}

BOOST_AUTO_TEST_CASE(absurd_headers_are_refused_before_memory_is_taken) {
  Folder f;
  f.refuse(GgufBytes(), "truncated");
  f.refuse(GgufBytes().put(uint64_t{0}).put(uint64_t{0}).put(uint64_t{0}), "does not start with GGUF");
  f.refuse(GgufBytes().head(0, 0, 1), "version 1");
  f.refuse(GgufBytes().head(0, 0, 4), "version 4");
  f.refuse(GgufBytes().head(0, 0, 0x03000000), "big-endian");
  f.refuse(GgufBytes().head(uint64_t{1} << 60, 0), "number of tensors");
  f.refuse(GgufBytes().head(0, ~uint64_t{0}), "number of metadata keys");
  f.refuse(GgufBytes().head(0, 1).put(~uint64_t{0}).data(64), "key length");
  f.refuse(GgufBytes().head(0, 1).key("a", 8).put(uint64_t{1} << 40).data(64), "string length");
  f.refuse(GgufBytes().head(0, 1).key("a", 13).data(64), "value type 13");
  f.refuse(GgufBytes().head(0, 1).key("a", 7).put(uint8_t{2}).data(64), "boolean");
  f.refuse(GgufBytes().head(0, 1).key("a", 9).put(uint32_t{0}).put(uint64_t{1} << 62).data(64),
           "array length");
  f.refuse(GgufBytes().head(0, 1).key("a", 9).put(uint32_t{9}).put(uint64_t{1}).data(64), "array of arrays");
  f.refuse(GgufBytes().head(0, 2).key("a", 0).put(uint8_t{1}).key("a", 0).put(uint8_t{1}).data(64), "twice");
  f.refuse(GgufBytes().head(0, 1).key("general.alignment", 4).put(uint32_t{0}).data(64), "alignment is 0");
  f.refuse(GgufBytes().head(0, 1).key("general.alignment", 4).put(uint32_t{48}).data(64), "alignment is 48");
  f.refuse(GgufBytes().head(0, 1).key("general.alignment", 8).text("32").data(64), "must be one integer");
}

BOOST_AUTO_TEST_CASE(absurd_tensors_are_refused) {
  Folder f;
  const auto one = [](const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
    return GgufBytes().head(1, 0).tensor("w", dims, type, offset).data(4096);
  };
  BOOST_CHECK_NO_THROW(f.open(one({64, 16}, 0, 0)));
  f.refuse(one({64, 17}, 0, 0), "ends at byte");
  f.refuse(one({64, 16}, 0, 32), "ends at byte");
  f.refuse(one({64, 16}, 0, uint64_t{1} << 62), "ends at byte");
  f.refuse(one({64, 16}, 0, ~uint64_t{0} - 31), "an offset");
  f.refuse(one({64, 8}, 0, 8), "multiple of 32");
  f.refuse(one({uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0), "overflows");
  f.refuse(one({uint64_t{1} << 61}, 0, 0), "overflows");
  f.refuse(one({~uint64_t{0}}, 0, 0), "an extent");
  f.refuse(one({64, 0}, 0, 0), "empty dimension");
  f.refuse(one({}, 0, 0), "0 dimensions");
  f.refuse(one({1, 1, 1, 1, 1}, 0, 0), "5 dimensions");
  f.refuse(one({48}, 8, 0), "multiples of 32");
  f.refuse(one({64}, 10, 0), "Q2_K");
  f.refuse(one({64}, 12345, 0), "12345");
  f.refuse(GgufBytes().head(2, 0).tensor("a", {64}, 0, 0).tensor("b", {64}, 0, 32).data(4096), "overlap");
  f.refuse(GgufBytes().head(2, 0).tensor("a", {8}, 0, 0).tensor("a", {8}, 0, 32).data(4096), "twice");
}

BOOST_AUTO_TEST_CASE(what_a_gguf_model_may_not_say) {
  Folder f;
  const auto config = [&](const GgufBytes& bytes) {
    write_file(f.path, bytes.bytes());
    return gguf_model_config(GgufFile(fs(), f.path));
  };
  const auto refuse = [&](const GgufBytes& bytes, const std::string& mention) {
    check_error(ErrorKind::BadInput, mention, [&] { config(bytes); });
  };
  refuse(GgufBytes().head(0, 0).data(64), "general.architecture");
  refuse(GgufBytes().head(0, 1).key("general.architecture", 8).text("mamba").data(64), "mamba");
  refuse(GgufBytes().head(0, 1).key("general.architecture", 8).text("llama").data(64), "vocabulary-only");
}
