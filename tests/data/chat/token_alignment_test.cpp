// data/chat/token_alignment: bytes of tokens, for byte-level and SentencePiece vocabularies.
#include "data/chat/token_alignment.h"

#include "tests/data/data_fixture.h"

using namespace hearth;
using namespace hearth::testing;
using nlohmann::json;

namespace {

using Ranges = std::vector<ByteRange>;

std::unique_ptr<Tokenizer> tokenizer_of(const json& vocab, const json& merges, const json& added,
                                        const json& model, const json& normalizer, const json& pre,
                                        const json& decoder) {
  json bpe{
      {"type", "BPE"}, {"dropout", nullptr}, {"unk_token", nullptr}, {"vocab", vocab}, {"merges", merges}};
  bpe.update(model);
  const json spec{{"version", "1.0"},          {"truncation", nullptr},    {"padding", nullptr},
                  {"added_tokens", added},     {"normalizer", normalizer}, {"pre_tokenizer", pre},
                  {"post_processor", nullptr}, {"decoder", decoder},       {"model", bpe}};
  return Tokenizer::from_files({{"tokenizer.json", spec.dump()}}, "test");
}

json added_token(int id, const std::string& content, bool rstrip = false) {
  return {{"id", id},         {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", rstrip}, {"normalized", false}, {"special", true}};
}

// Single bytes, and a special token that takes the white space behind it along.
std::unique_ptr<Tokenizer> byte_tokenizer(const json& normalizer = nullptr) {
  json vocab = json::object();
  const auto names = byte_alphabet();
  for (size_t i = 0; i < names.size(); ++i) vocab[names[i]] = i;
  vocab[names[' '] + "a"] = 256;
  const json level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return tokenizer_of(vocab, json::array({json::array({names[' '], "a"})}),
                      {added_token(257, "<|end|>", true), added_token(258, "<|user|>")}, json::object(),
                      normalizer, level, level);
}

// A space before the text and after each special token, bytes for what is no piece.
std::unique_ptr<Tokenizer> piece_tokenizer() {
  json vocab{{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  const auto add = [&](const std::string& piece) { vocab[piece] = vocab.size(); };
  for (int byte = 0; byte < 256; ++byte) add(fmt::format("<0x{:02X}>", byte));
  const std::string underline = "\xe2\x96\x81";
  for (const auto& piece :
       {underline, std::string("a"), std::string("b"), underline + "a", underline + underline})
    add(piece);
  const json replace{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", underline}};
  const json normalizer{{"type", "Sequence"},
                        {"normalizers", {{{"type", "Prepend"}, {"prepend", underline}}, replace}}};
  const json decoder{{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Replace"}, {"pattern", {{"String", underline}}}, {"content", " "}},
                       {{"type", "ByteFallback"}},
                       {{"type", "Fuse"}}}}};
  return tokenizer_of(
      vocab, json::array({json::array({underline, "a"}), json::array({underline, underline})}),
      {added_token(1, "<s>"), added_token(2, "</s>")},
      {{"byte_fallback", true}, {"fuse_unk", true}, {"unk_token", "<unk>"}}, normalizer, nullptr, decoder);
}

std::string spelled(std::string_view text, const Ranges& ranges) {
  std::string out;
  for (const auto& [begin, end] : ranges) out += std::string(text.substr(begin, end - begin)) + "|";
  return out;
}

std::string aligned(const Tokenizer& tokenizer, const std::string& text) {
  const auto ranges = align_tokens(tokenizer, text, tokenizer.encode(text, SpecialTokens::Skip));
  return ranges ? spelled(text, *ranges) : "no alignment";
}

}  // namespace

BOOST_AUTO_TEST_CASE(byte_level_tokens_are_the_text) {
  const auto tokenizer = byte_tokenizer();
  BOOST_TEST(aligned(*tokenizer, "x a\n") == "x| a|\n|");
  BOOST_TEST(aligned(*tokenizer, "").empty());
  const std::string chinese = "\xe4\xbd\xa0";
  BOOST_TEST(aligned(*tokenizer, chinese) == "\xe4|\xbd|\xa0|");
  BOOST_TEST(aligned(*tokenizer, "a<|user|>\nb<|end|>") == "a|<|user|>|\n|b|<|end|>|");
}

BOOST_AUTO_TEST_CASE(white_space_that_a_token_takes_along_belongs_to_none) {
  const auto tokenizer = byte_tokenizer();
  BOOST_TEST(aligned(*tokenizer, "b<|end|>\n<|user|>b") == "b|<|end|>|<|user|>|b|");
  BOOST_TEST(aligned(*tokenizer, "b<|end|>\n ") == "b|<|end|>|");
}

BOOST_AUTO_TEST_CASE(sentencepiece_spaces_that_are_not_in_the_text_are_empty) {
  const auto tokenizer = piece_tokenizer();
  BOOST_TEST(aligned(*tokenizer, "a b") == "a| |b|");
  BOOST_TEST(aligned(*tokenizer, "b") == "|b|");
  BOOST_TEST(aligned(*tokenizer, "<s>a</s>") == "<s>|a|</s>|");
  BOOST_TEST(aligned(*tokenizer, "<s>\nb \xc3\xa9</s>") == "<s>||\n|b| |\xc3|\xa9|</s>|");
  BOOST_TEST(aligned(*tokenizer, "b  a") == "|b| | a|");
}

BOOST_AUTO_TEST_CASE(a_text_that_the_tokenizer_changed_does_not_align) {
  const auto lower = byte_tokenizer({{"type", "Lowercase"}});
  BOOST_TEST(aligned(*lower, "xa") == "x|a|");
  BOOST_TEST(aligned(*lower, "xA") == "no alignment");
  const auto plain = byte_tokenizer();
  BOOST_TEST(!align_tokens(*plain, "ab", std::vector<int32_t>{'a'}).has_value());      // text is left over
  BOOST_TEST(!align_tokens(*plain, "a", std::vector<int32_t>{'a', 'b'}).has_value());  // tokens are left over
}

BOOST_AUTO_TEST_CASE(masks_hold_every_token_that_touches_a_range) {
  const Ranges tokens{{0, 2}, {2, 2}, {2, 5}, {5, 6}, {6, 6}, {6, 9}};
  const auto mask = [&](const Ranges& ranges) {
    std::string out;
    for (const uint8_t value : tokens_inside(tokens, ranges)) out += value ? '1' : '0';
    return out;
  };
  BOOST_TEST(mask({}) == "000000");
  BOOST_TEST(mask({{0, 9}}) == "111111");
  BOOST_TEST(mask({{2, 5}}) == "001000");  // the empty token before it stands for nothing
  BOOST_TEST(mask({{3, 4}}) == "001000");
  BOOST_TEST(mask({{4, 6}}) == "001100");
  BOOST_TEST(mask({{5, 7}}) == "000111");
  BOOST_TEST(mask({{1, 3}, {8, 9}}) == "111001");
  BOOST_TEST(mask({{4, 4}}) == "000000");
}
