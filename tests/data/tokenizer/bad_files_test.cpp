// Malformed tokenizer files: one Error{BadInput} each, that says what is wrong.
#include <boost/test/unit_test.hpp>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/tokenizer/bpe_trainer.h"
#include "data/tokenizer/gguf_tokenizer.h"
#include "data/tokenizer/tokenizer.h"

using namespace hearth;

namespace {

nlohmann::json good() {
  WordCounts words;
  words.add_text("ab ab ab");
  BpeTrainingOptions options;
  options.vocab_size = 261;
  return nlohmann::json::parse(trained_tokenizer_files(learn_merges(words, options), options)[0].second);
}

void expect_bad(TokenizerFiles files, const std::string& says) {
  try {
    Tokenizer::from_files(std::move(files), "test");
    BOOST_ERROR("loaded; expected an error that says: " + says);
  } catch (const Error& error) {
    BOOST_TEST((error.kind() == ErrorKind::BadInput));
    BOOST_TEST(error.message().find(says) != std::string::npos, error.message() << " | expected: " << says);
  }
}

void expect_bad_json(const std::function<void(nlohmann::json&)>& damage, const std::string& says) {
  nlohmann::json json = good();
  damage(json);
  expect_bad({{"tokenizer.json", json.dump()}}, says);
}

// A field of a protocol buffer with a length.
std::string field(int number, const std::string& bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}
std::string integer_field(int number, int value) {
  return {static_cast<char>(number << 3), static_cast<char>(value)};
}
std::string piece(const std::string& text, int type) {
  return field(1, field(1, text) + integer_field(3, type));
}
const std::string kBpe = field(2, integer_field(3, 2));

}  // namespace

BOOST_AUTO_TEST_CASE(the_undamaged_file_loads) {
  BOOST_TEST(Tokenizer::from_files({{"tokenizer.json", good().dump()}}, "test")->vocab_size() == 261);
  const std::string model = piece("<unk>", 2) + piece("a", 1) + kBpe;
  BOOST_TEST(Tokenizer::from_files({{"tokenizer.model", model}}, "test")->vocab_size() == 2);
}

BOOST_AUTO_TEST_CASE(truncated_json_at_every_tenth_byte) {
  const std::string text = good().dump();
  for (size_t size = 0; size < text.size(); size += 10)
    BOOST_CHECK_THROW(Tokenizer::from_files({{"tokenizer.json", text.substr(0, size)}}, "test"), Error);
}

BOOST_AUTO_TEST_CASE(unknown_components_are_named) {
  using Json = nlohmann::json;
  expect_bad_json([](Json& j) { j["model"]["type"] = "Unigram"; }, "Unigram");
  expect_bad_json([](Json& j) { j["normalizer"] = {{"type", "Precompiled"}}; }, "Precompiled");
  expect_bad_json([](Json& j) { j["pre_tokenizer"] = {{"type", "UnicodeScripts"}}; }, "UnicodeScripts");
  expect_bad_json([](Json& j) { j["decoder"] = {{"type", "CTC"}}; }, "CTC");
  expect_bad_json([](Json& j) { j["post_processor"] = {{"type", "Magic"}}; }, "Magic");
  expect_bad_json([](Json& j) { j["model"]["dropout"] = 0.1; }, "dropout");
  expect_bad_json(
      [](Json& j) {
        j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "(a"}};
      },
      "(a");
  expect_bad_json([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Glued"; }, "Glued");
}

BOOST_AUTO_TEST_CASE(vocabularies_and_merges_that_do_not_fit) {
  using Json = nlohmann::json;
  expect_bad_json([](Json& j) { j["model"].erase("vocab"); }, "vocab");
  expect_bad_json([](Json& j) { j["model"]["vocab"]["a"] = 1 << 24; }, "16777216");
  expect_bad_json([](Json& j) { j["model"]["vocab"]["a"] = -1; }, "-1");
  expect_bad_json([](Json& j) { j["model"]["vocab"]["a"] = 9000000; }, "9000000");
  expect_bad_json([](Json& j) { j["model"]["vocab"]["a"] = "x"; }, "integer");
  expect_bad_json([](Json& j) { j["model"]["vocab"]["new"] = 5; }, "share the id 5");
  expect_bad_json([](Json& j) { j["model"]["vocab"]["new"] = 300; }, "no token has the id 261");
  expect_bad_json([](Json& j) { j["model"]["merges"].push_back(Json::array({"a", "zzz"})); }, "zzz");
  expect_bad_json([](Json& j) { j["model"]["merges"].push_back(Json::array({"a", "a"})); }, "\"aa\"");
  expect_bad_json([](Json& j) { j["model"]["merges"].push_back("a b c"); }, "merges[2]");
  expect_bad_json([](Json& j) { j["model"]["merges"].push_back(7); }, "merges[2]");
  // A cycle needs an empty part: a + "" = a.
  expect_bad_json(
      [](Json& j) {
        j["model"]["vocab"][""] = 261;
        j["model"]["merges"].push_back(Json::array({"a", ""}));
      },
      "empty part");
  expect_bad_json([](Json& j) { j["model"]["unk_token"] = "nope"; }, "nope");
}

BOOST_AUTO_TEST_CASE(added_tokens_that_do_not_fit) {
  using Json = nlohmann::json;
  const auto add = [](Json& j, int64_t id, const char* content) {
    j["added_tokens"].push_back({{"id", id}, {"content", content}, {"special", true}});
  };
  expect_bad_json([&](Json& j) { add(j, 400, "<gap>"); }, "400");
  expect_bad_json([&](Json& j) { add(j, int64_t{1} << 24, "<big>"); }, "16777216");
  expect_bad_json([&](Json& j) { add(j, 0, "<|endoftext|>"); }, "twice");
  expect_bad_json([&](Json& j) { add(j, 7, "<|im_other|>"); }, "<|im_other|>");
  expect_bad_json(
      [&](Json& j) {
        j["post_processor"] = {
            {"type", "TemplateProcessing"},
            {"single", Json::array({{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}})},
            {"special_tokens", {{"<s>", {{"ids", {5000}}}}}}};
      },
      "5000");
}

BOOST_AUTO_TEST_CASE(sentencepiece_models_that_do_not_fit) {
  const auto bad = [](const std::string& bytes, const std::string& says) {
    expect_bad({{"tokenizer.model", bytes}}, says);
  };
  bad("", "no trainer_spec");
  bad("not a model at all", "tokenizer.model");
  bad("IQ== 0\nIg== 1\n", "tiktoken");
  bad(piece("<unk>", 2) + field(2, integer_field(3, 1)), "unigram");
  bad(piece("a", 1) + kBpe, "0 unknown pieces");
  bad(piece("<unk>", 2) + piece("a", 1) + piece("a", 1) + kBpe, "twice");
  bad(piece("<unk>", 2) + piece("a", 5) + kBpe, "UNUSED");
  bad(piece("<unk>", 2) + piece("a", 6) + kBpe, "is a byte");
  bad(piece("<unk>", 2) + piece("\xff", 1) + kBpe, "not UTF-8");
  bad(piece("<unk>", 2) + kBpe + field(3, field(1, "nmt_nfkc") + field(2, "map")), "nmt_nfkc");
  const std::string model = piece("<unk>", 2) + piece("abc", 1) + kBpe;
  for (size_t size = 0; size < model.size(); ++size)
    BOOST_CHECK_THROW(Tokenizer::from_files({{"tokenizer.model", model.substr(0, size)}}, "test"), Error);
}

BOOST_AUTO_TEST_CASE(missing_files_and_bad_companions) {
  const auto fs = make_posix_file_system();
  BOOST_CHECK_THROW(Tokenizer::load(*fs, "/nonexistent/tokenizer.json"), Error);
  expect_bad({}, "neither");
  expect_bad({{"tokenizer.json", good().dump()}, {"tokenizer_config.json", "[1]"}}, "tokenizer_config.json");
  expect_bad({{"tokenizer.json", good().dump()}, {"tokenizer_config.json", "{\"eos_token\": 5}"}},
             "eos_token");
}

BOOST_AUTO_TEST_CASE(gguf_fields_that_do_not_fit) {
  const auto bad = [](const std::function<void(GgufTokenizerFields&)>& damage, const std::string& says) {
    GgufTokenizerFields fields;
    fields.model = "gpt2";
    fields.tokens = {"a", "b"};
    damage(fields);
    try {
      tokenizer_files_from_gguf(fields);
      BOOST_ERROR("converted; expected an error that says: " + says);
    } catch (const Error& error) {
      BOOST_TEST((error.kind() == ErrorKind::BadInput));
      BOOST_TEST(error.message().find(says) != std::string::npos, error.message());
    }
  };
  bad([](auto& f) { f.pre = "never-heard-of"; }, "never-heard-of");
  bad([](auto& f) { f.model = "bert"; }, "bert");
  bad([](auto& f) { f.tokens.push_back("a"); }, "twice");
  bad([](auto& f) { f.token_types = {1}; }, "token types");
  bad([](auto& f) { f.eos_id = 2; }, "eos_token_id");
  bad([](auto& f) { f.model = "llama"; }, "scores");
  bad([](auto& f) { f.tokens.push_back("\xff"); }, "UTF-8");
}
