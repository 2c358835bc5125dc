// data/tokenizer/: the parts below Tokenizer: UTF-8, normalization, regular expressions, merging, training.
#include <boost/test/unit_test.hpp>
#include <chrono>

#include "base/error.h"
#include "data/tokenizer/bpe_merge.h"
#include "data/tokenizer/bpe_trainer.h"
#include "data/tokenizer/byte_alphabet.h"
#include "data/tokenizer/regex.h"
#include "data/tokenizer/regex_syntax.h"
#include "data/tokenizer/unicode.h"

using namespace hearth;

BOOST_AUTO_TEST_CASE(invalid_utf8_becomes_one_replacement_for_each_maximal_part) {
  const std::string r = "\xef\xbf\xbd";
  BOOST_TEST(unicode::replace_invalid_utf8("a\xff\xc3") == "a" + r + r);
  // Unicode 15, table 3-8.
  BOOST_TEST(unicode::replace_invalid_utf8("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41") ==
             r + r + r + r + r + r + r + r + "A");
  BOOST_TEST(unicode::replace_invalid_utf8("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41") == r + r + r + r + "A");
  BOOST_TEST(unicode::replace_invalid_utf8("\xed\xa0\x80") == r + r + r);  // a surrogate
  BOOST_TEST(unicode::is_valid_utf8("caf\xc3\xa9 \xf0\x9f\x99\x82"));
  BOOST_TEST(!unicode::is_valid_utf8("12345678\xe4\xb8"));
}

BOOST_AUTO_TEST_CASE(normal_forms_of_accents_hangul_and_ligatures) {
  using unicode::Form;
  BOOST_TEST(unicode::normalize("e\xcc\x81", Form::NFC) == "\xc3\xa9");
  BOOST_TEST(unicode::normalize("\xc3\xa9", Form::NFD) == "e\xcc\x81");
  BOOST_TEST(unicode::normalize("\xef\xac\x81", Form::NFKC) == "fi");
  BOOST_TEST(unicode::normalize("\xef\xac\x81", Form::NFC) == "\xef\xac\x81");
  BOOST_TEST(unicode::normalize("\xed\x95\x9c", Form::NFD) == "\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab");
  BOOST_TEST(unicode::normalize("\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab", Form::NFC) == "\xed\x95\x9c");
  // Marks are ordered by class first: q + dot above + dot below.
  BOOST_TEST(unicode::normalize("q\xcc\x87\xcc\xa3", Form::NFC) == "q\xcc\xa3\xcc\x87");
}

BOOST_AUTO_TEST_CASE(byte_alphabet_goes_both_ways) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
  BOOST_TEST(alphabet_to_bytes(bytes_to_alphabet(all)).value() == all);
  BOOST_TEST(bytes_to_alphabet(" \n") == "\xc4\xa0\xc4\x8a");
  BOOST_TEST(!alphabet_to_bytes("a b").has_value());
}

BOOST_AUTO_TEST_CASE(oniguruma_syntax_is_rewritten_where_pcre2_differs) {
  BOOST_TEST(pcre2_from_oniguruma(R"(\p{L}+|\h|[\h_])") == R"(\p{L}+|[0-9a-fA-F]|[0-9a-fA-F_])");
  BOOST_TEST(pcre2_from_oniguruma(R"([a[bc]]x{,3}(?m:.)\u4e00)") == R"([abc]x{0,3}(?s:.)\x{4e00})");
  BOOST_CHECK_THROW(pcre2_from_oniguruma("[a&&b]"), Error);
  BOOST_CHECK_THROW(pcre2_from_oniguruma("[a[^b]]"), Error);
  BOOST_CHECK_THROW(pcre2_from_oniguruma("x{1,3}+"), Error);
  BOOST_CHECK_THROW(Regex("(unclosed"), Error);
}

BOOST_AUTO_TEST_CASE(empty_matches_behind_a_match_are_passed_over) {
  const Regex regex("x*");
  RegexContext context;
  std::vector<std::pair<size_t, size_t>> found;
  for (Regex::Matches m(regex, "axxb", context); m.next();) found.emplace_back(m.begin(), m.end());
  const std::vector<std::pair<size_t, size_t>> expected{{0, 0}, {1, 3}, {4, 4}};
  BOOST_CHECK(found == expected);
}

BOOST_AUTO_TEST_CASE(short_and_long_words_merge_alike) {
  // Symbols 0 and 1; 01 -> 2, 22 -> 3, 10 -> 4 (never reached where 01 takes all).
  const MergeTable table({{0, 1, 0, 2}, {2, 2, 1, 3}, {1, 0, 2, 4}});
  Merger merger;
  for (const size_t length : {2u, 5u, 47u, 48u, 49u, 50u, 1000u}) {
    std::vector<int32_t> word;
    for (size_t i = 0; i < length; ++i) word.push_back(static_cast<int32_t>(i % 2));
    merger.run(table, word);
    std::vector<int32_t> expected(length / 4, 3);
    if (length / 2 % 2 == 1) expected.push_back(2);
    if (length % 2 == 1) expected.push_back(0);
    BOOST_TEST(word == expected, boost::test_tools::per_element());
  }
}

BOOST_AUTO_TEST_CASE(equal_ranks_go_to_the_leftmost_pair) {
  const MergeTable table({{0, 0, 5, 1}, {0, 1, 5, 2}});
  Merger merger;
  std::vector<int32_t> word{0, 0, 0};
  merger.run(table, word);
  BOOST_TEST(word == (std::vector<int32_t>{1, 0}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(merging_a_megabyte_is_not_quadratic) {
  std::vector<Merge> merges;
  for (int32_t i = 0; i < 18; ++i) merges.push_back({i, i, i, i + 1});
  const MergeTable table(merges);
  Merger merger;
  std::vector<int32_t> word(size_t{1} << 20, 0);
  const auto start = std::chrono::steady_clock::now();
  merger.run(table, word);
  BOOST_TEST(word.size() == 4u);
  // About 0.1 s; a quadratic loop would take 10^12 steps.
  BOOST_TEST(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 20.0);
}

BOOST_AUTO_TEST_CASE(training_breaks_ties_by_ids_and_stops_at_rare_pairs) {
  WordCounts words;
  words.add_text("ab ab cd cd x");
  BpeTrainingOptions options;
  options.vocab_size = 300;
  const LearnedMerges merges = learn_merges(words, options);
  // " ab" occurs once, "ab" once at the start: (a, b) twice, (c, d) twice, (space, c) twice. The byte
  // alphabet puts the space behind the letters. With cd joined, (space, c) is gone and (space, cd) has taken
  // its place.
  const LearnedMerges expected{{"a", "b"}, {"c", "d"}, {" ", "cd"}};
  BOOST_CHECK(merges == expected);
  options.vocab_size = 258;
  BOOST_CHECK_THROW(learn_merges(words, options), Error);
}

BOOST_AUTO_TEST_CASE(rare_words_are_forgotten_when_there_are_too_many) {
  WordCounts words, more;
  words.add_text("a\nb\nc\n");
  more.add_text("a");
  words.merge(more, 2);  // a twice, b, c and the line feeds... of which the rarest go
  BOOST_TEST(words.counts().size() <= 2u);
  BOOST_TEST(words.counts().at("a") == 2);
}
