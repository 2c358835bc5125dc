// data/tokenizer/tokenizer.h on small tokenizers written here: ids, decoding, special tokens, files, GGUF,
// streaming.
#include "data/tokenizer/tokenizer.h"

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/hash.h"
#include "data/tokenizer/bpe_trainer.h"
#include "data/tokenizer/gguf_tokenizer.h"
#include "data/tokenizer/incremental_decoder.h"
#include "data/tokenizer/json_lines.h"
#include "data/tokenizer/unicode.h"

using namespace hearth;

namespace {

using Ids = std::vector<int32_t>;

// 256 bytes and " the" and a few more, learned from this text.
TokenizerFiles small_files() {
  WordCounts words;
  for (int i = 0; i < 3; ++i)
    words.add_text("the then there \xe4\xb8\xad\xe6\x96\x87 \xe4\xb8\xad\xe6\x96\x87");
  BpeTrainingOptions options;
  options.vocab_size = 270;
  return trained_tokenizer_files(learn_merges(words, options), options);
}

std::unique_ptr<Tokenizer> small_tokenizer() {
  return Tokenizer::from_files(small_files(), "small");
}

// GGUF fields of that tokenizer.
GgufTokenizerFields small_gguf() {
  const auto json = nlohmann::json::parse(small_files()[0].second);
  GgufTokenizerFields fields;
  fields.model = "gpt2";
  fields.pre = "qwen2";
  fields.tokens.resize(json["model"]["vocab"].size());
  for (const auto& [token, id] : json["model"]["vocab"].items()) fields.tokens[id.get<size_t>()] = token;
  fields.token_types.assign(fields.tokens.size(), 1);
  for (size_t i = 0; i < 3; ++i) fields.token_types[i] = 3;
  for (const auto& merge : json["model"]["merges"])
    fields.merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  fields.bos_id = 1;
  fields.eos_id = 2;
  fields.chat_template = "{{ messages }}";
  return fields;
}

}  // namespace

BOOST_AUTO_TEST_CASE(byte_level_text_comes_back_whatever_it_is) {
  const auto tokenizer = small_tokenizer();
  std::string text = "the then \xe4\xb8\xad\xe6\x96\x87\n\n  \xf0\x9f\x99\x82 x1234\t";
  text.push_back('\0');
  const Ids ids = tokenizer->encode(text, SpecialTokens::Add);
  BOOST_TEST(tokenizer->decode(ids, DecodeSpecial::Keep) == text);
  BOOST_TEST(ids.size() < text.size());
  BOOST_TEST(tokenizer->encode("", SpecialTokens::Add).empty());
  BOOST_TEST(tokenizer->decode(tokenizer->encode("a\xff", SpecialTokens::Add), DecodeSpecial::Keep) ==
             "a\xef\xbf\xbd");
}

BOOST_AUTO_TEST_CASE(special_tokens_in_text_are_one_id_and_can_be_left_out) {
  const auto tokenizer = small_tokenizer();
  const Ids ids = tokenizer->encode("<|im_start|>the<|im_end|>", SpecialTokens::Skip);
  BOOST_TEST(ids.front() == 1);
  BOOST_TEST(ids.back() == 2);
  BOOST_TEST(tokenizer->decode(ids, DecodeSpecial::Keep) == "<|im_start|>the<|im_end|>");
  BOOST_TEST(tokenizer->decode(ids, DecodeSpecial::Skip) == "the");
  BOOST_TEST(tokenizer->is_special(1));
  BOOST_TEST(!tokenizer->is_special(5));
  BOOST_TEST(tokenizer->eos_id().value() == 0);
  BOOST_TEST(!tokenizer->bos_id().has_value());
  BOOST_TEST(tokenizer->id_to_token(2) == "<|im_end|>");
  BOOST_TEST(tokenizer->id_to_token(1 << 20) == "");
  BOOST_TEST(tokenizer->token_to_id("<|im_end|>").value() == 2);
  BOOST_TEST(tokenizer->chat_template().find("im_start") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(ids_outside_the_vocabulary_decode_to_nothing) {
  const auto tokenizer = small_tokenizer();
  const auto size = static_cast<int32_t>(tokenizer->vocab_size());
  BOOST_TEST(tokenizer->decode(Ids{-1, size, size + 7}, DecodeSpecial::Keep) == "");
}

BOOST_AUTO_TEST_CASE(files_load_again_to_the_same_tokenizer) {
  const auto fs = make_posix_file_system();
  const auto folder =
      std::filesystem::temp_directory_path() / ("hearth_tokenizer_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const auto tokenizer = small_tokenizer();
  for (const auto& [name, bytes] : tokenizer->files()) fs->write_atomically((folder / name).string(), bytes);
  for (const auto& path : {folder, folder / "tokenizer.json"}) {
    const auto again = Tokenizer::load(*fs, path.string());
    BOOST_TEST(again->digest() == tokenizer->digest());
    BOOST_TEST(again->vocab_size() == tokenizer->vocab_size());
    BOOST_CHECK(again->eos_id() == tokenizer->eos_id());
    BOOST_CHECK(again->files() == tokenizer->files());
  }
  BOOST_TEST(tokenizer->digest() == xxh3_128_hex(tokenizer->files()[0].second));
  std::filesystem::remove_all(folder);
}

BOOST_AUTO_TEST_CASE(threads_share_one_tokenizer) {
  const auto tokenizer = small_tokenizer();
  std::vector<std::string> texts;
  for (int i = 0; i < 50; ++i) texts.push_back("the then " + std::to_string(i * 7919) + " there\xe4\xb8\xad");
  std::vector<Ids> alone, together(texts.size());
  for (const auto& text : texts) alone.push_back(tokenizer->encode(text, SpecialTokens::Skip));
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int round = 0; round < 20; ++round)
        for (size_t i = t; i < texts.size(); i += 4)
          together[i] = tokenizer->encode(texts[i], SpecialTokens::Skip);
    });
  for (auto& thread : threads) thread.join();
  BOOST_CHECK(alone == together);
}

BOOST_AUTO_TEST_CASE(streaming_gives_whole_characters_and_all_of_the_text) {
  const auto tokenizer = small_tokenizer();
  const std::string text = "then \xf0\x9f\x99\x82\xe4\xb8\xad there \xc3\xa9";
  IncrementalDecoder decoder(*tokenizer);
  std::string shown;
  for (const int32_t id : tokenizer->encode(text, SpecialTokens::Skip)) {
    const std::string part = decoder.push(id);
    BOOST_TEST(unicode::is_valid_utf8(part));
    BOOST_TEST(part.find("\xef\xbf\xbd") == std::string::npos);
    shown += part;
  }
  BOOST_TEST(shown + decoder.finish() == text);
  IncrementalDecoder cut(*tokenizer);
  BOOST_TEST(cut.push(tokenizer->token_to_id("\xc3\xa4").value()) == "");  // byte 0xe4 alone
  BOOST_TEST(cut.finish() == "\xef\xbf\xbd");
}

BOOST_AUTO_TEST_CASE(gguf_fields_become_files_with_the_same_ids) {
  const auto original = small_tokenizer();
  const auto tokenizer = Tokenizer::from_files(tokenizer_files_from_gguf(small_gguf()), "gguf");
  for (const char* text : {"the then there", "<|im_start|>x<|im_end|>", "\xe4\xb8\xad\xe6\x96\x87 12"})
    BOOST_TEST(tokenizer->encode(text, SpecialTokens::Add) == original->encode(text, SpecialTokens::Add),
               boost::test_tools::per_element());
  BOOST_TEST(tokenizer->eos_id().value() == 2);
  BOOST_TEST(tokenizer->bos_id().value() == 1);
  BOOST_TEST(tokenizer->chat_template() == "{{ messages }}");
  GgufTokenizerFields with_bos = small_gguf();
  with_bos.add_bos = true;
  BOOST_TEST(Tokenizer::from_files(tokenizer_files_from_gguf(with_bos), "gguf")
                 ->encode("x", SpecialTokens::Add)
                 .front() == 1);
}

BOOST_AUTO_TEST_CASE(gguf_rows_beyond_the_vocabulary_are_no_tokens) {
  GgufTokenizerFields fields = small_gguf();
  const auto size = static_cast<int64_t>(fields.tokens.size());
  fields.tokens.push_back("[PAD1]");
  fields.token_types.push_back(5);
  BOOST_TEST(Tokenizer::from_files(tokenizer_files_from_gguf(fields), "gguf")->vocab_size() == size);
}

BOOST_AUTO_TEST_CASE(gguf_sentencepiece_merges_by_score) {
  GgufTokenizerFields fields;
  fields.model = "llama";
  fields.tokens = {"<unk>",
                   "<s>",
                   "</s>",
                   "\xe2\x96\x81",
                   "a",
                   "b",
                   "\xe2\x96\x81"
                   "a",
                   "ab"};
  fields.scores = {0, 0, 0, -10, -11, -12, -2, -1};
  fields.token_types = {2, 3, 3, 1, 1, 1, 1, 1};
  fields.bos_id = 1;
  fields.eos_id = 2;
  const auto tokenizer = Tokenizer::from_files(tokenizer_files_from_gguf(fields), "gguf");
  BOOST_TEST(tokenizer->encode("ab", SpecialTokens::Add) == (Ids{1, 3, 7}), boost::test_tools::per_element());
  BOOST_TEST(tokenizer->decode(Ids{1, 3, 7}, DecodeSpecial::Skip) == "ab");
}

BOOST_AUTO_TEST_CASE(json_lines_go_both_ways_and_name_the_bad_line) {
  const auto tokenizer = small_tokenizer();
  std::istringstream in("\"the\"\n\"\\u4e2d\\n\"\n");
  std::ostringstream ids;
  encode_lines(*tokenizer, SpecialTokens::Add, in, ids);
  std::istringstream back(ids.str());
  std::ostringstream text;
  decode_lines(*tokenizer, DecodeSpecial::Keep, back, text);
  BOOST_TEST(text.str() == "\"the\"\n\"\xe4\xb8\xad\\n\"\n");
  const auto says_line_2 = [](const Error& error) {
    return error.kind() == ErrorKind::BadInput && error.message().starts_with("stdin:2: ");
  };
  std::ostringstream out;
  std::istringstream bad("\"x\"\n{}\n");
  BOOST_CHECK_EXCEPTION(encode_lines(*tokenizer, SpecialTokens::Add, bad, out), Error, says_line_2);
  std::istringstream beyond("[1]\n[1000000]\n");
  BOOST_CHECK_EXCEPTION(decode_lines(*tokenizer, DecodeSpecial::Keep, beyond, out), Error, says_line_2);
}
