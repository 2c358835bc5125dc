// What the tests of data/ share: a temporary folder, a byte-level tokenizer without merges (id = byte, 256 =
// end of text), and small datasets written straight with ShardWriter.
#pragma once

#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file_system.h"
#include "data/dataset.h"
#include "data/shard_writer.h"

namespace hearth::testing {

class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "hearth-data-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void write_file(const std::string& path, std::string_view bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  BOOST_REQUIRE_MESSAGE(in.good(), path);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::string utf8(int code) {  // code < 0x800
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// The byte alphabet of GPT-2: printable bytes stand for themselves, the others for 256, 257, ...
inline std::vector<std::string> byte_alphabet() {
  std::vector<std::string> names;
  int extra = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
    names.push_back(utf8(printable ? byte : extra++));
  }
  return names;
}

inline constexpr int32_t kEos = 256;

// Writes tokenizer.json and tokenizer_config.json into `folder`. `bos`: the post-processor adds id 257.
inline void write_byte_tokenizer(const std::string& folder, const std::string& bos = "") {
  using nlohmann::json;
  json vocab = json::object(), added = json::array();
  const auto names = byte_alphabet();
  for (size_t i = 0; i < names.size(); ++i) vocab[names[i]] = i;
  const auto add = [&](const std::string& content, int id) {
    added.push_back({{"id", id},
                     {"content", content},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  };
  add("<|endoftext|>", kEos);
  json byte_level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  json post = nullptr;
  if (!bos.empty()) {
    add(bos, 257);
    const json special{{"SpecialToken", {{"id", bos}, {"type_id", 0}}}},
        a{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, b{{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
    post = {{"type", "TemplateProcessing"},
            {"single", {special, a}},
            {"pair", {special, a, b}},
            {"special_tokens", {{bos, {{"id", bos}, {"ids", {257}}, {"tokens", {bos}}}}}}};
  }
  const json tokenizer{{"version", "1.0"},
                       {"truncation", nullptr},
                       {"padding", nullptr},
                       {"added_tokens", added},
                       {"normalizer", nullptr},
                       {"pre_tokenizer", byte_level},
                       {"post_processor", post},
                       {"decoder", byte_level},
                       {"model",
                        {{"type", "BPE"},
                         {"dropout", nullptr},
                         {"unk_token", nullptr},
                         {"continuing_subword_prefix", nullptr},
                         {"end_of_word_suffix", nullptr},
                         {"fuse_unk", false},
                         {"byte_fallback", false},
                         {"vocab", vocab},
                         {"merges", json::array()}}}};
  write_file(folder + "/tokenizer.json", tokenizer.dump());
  write_file(folder + "/tokenizer_config.json", R"({"eos_token": "<|endoftext|>"})");
}

// A dataset of the given shards; each shard is a list of documents. Vocabulary 1000, eos 999.
inline void write_dataset(FileSystem& fs, const std::string& directory,
                          const std::vector<std::vector<std::vector<int32_t>>>& shards) {
  fs.create_directories(directory);
  DatasetManifest manifest;
  manifest.common = {kShardFormatVersion, std::string(32, '1'), 1000, 999, std::string(32, '0')};
  manifest.sources.push_back({"test", std::string(32, '2'), "", 1, 0});
  for (const auto& documents : shards) {
    std::vector<uint64_t> offsets{0};
    for (const auto& document : documents) offsets.push_back(offsets.back() + document.size());
    ShardWriter writer(fs, {.directory = directory,
                            .file = "shard-" + std::to_string(manifest.shards.size()) + ".h5",
                            .attributes = manifest.common,
                            .document_offsets = offsets});
    for (const auto& document : documents) writer.append(document);
    manifest.shards.push_back(writer.finish());
  }
  fs.write_atomically(directory + "/dataset.json", manifest_to_json(manifest));
}

// `count` documents of 3 to 40 tokens, ids below 999, told apart by `salt`.
inline std::vector<std::vector<int32_t>> some_documents(int count, int salt) {
  std::vector<std::vector<int32_t>> documents;
  uint32_t state = static_cast<uint32_t>(salt) * 2654435761u + 1;
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> document;
    state = state * 1664525u + 1013904223u;
    const uint32_t length = 3 + (state >> 16) % 38;
    for (uint32_t t = 0; t + 1 < length; ++t) {
      state = state * 1664525u + 1013904223u;
      document.push_back(static_cast<int32_t>((state >> 8) % 999));
    }
    document.push_back(999);
    documents.push_back(document);
  }
  return documents;
}

// Runs `action`, which must throw Error of this kind with `words` in its text.
template <class Action>
void check_fails(ErrorKind kind, const std::vector<std::string>& words, Action&& action) {
  try {
    action();
    BOOST_ERROR("no error, expected one of kind " + std::string(name(kind)));
  } catch (const Error& error) {
    BOOST_TEST(std::string(name(error.kind())) == std::string(name(kind)), error.what());
    for (const auto& word : words) {
      BOOST_TEST(std::string(error.what()).find(word) != std::string::npos,
                 "'" << word << "' not in: " << error.what());
    }
  }
}

}  // namespace hearth::testing
