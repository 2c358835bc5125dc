// Which tokens of a sample the student writes anew, and what then counts. (Their loss, and the texts under
// layouts: tests/integration/objectives.py.)
#include "trainer/objective/on_policy.h"

#include <boost/test/unit_test.hpp>

#include "base/error.h"

using namespace hearth;

namespace {

// `trained`: one letter a token, x where the token is a target; '|' begins a document.
Sample sample_of(const std::string& trained) {
  Sample sample;
  for (const char c : trained) {
    if (c == '|') {
      sample.document_starts.push_back(static_cast<int32_t>(sample.tokens.size()));
      continue;
    }
    if (!sample.tokens.empty()) sample.loss_mask.push_back(c == 'x' ? 1 : 0);
    sample.tokens.push_back(static_cast<int32_t>(100 + sample.tokens.size()));
  }
  return sample;
}

std::string trained_tokens(const Sample& sample) {
  std::string text = ".";
  for (const uint8_t counts : sample.loss_mask) text += counts ? 'x' : '.';
  return text;
}

}  // namespace

BOOST_AUTO_TEST_CASE(an_answer_is_the_first_run_of_trained_tokens_of_a_document) {
  BOOST_CHECK((answers_of(sample_of("|..xxx|...x..xx|....|..xx")) ==
               std::vector<Answer>{{0, 2, 5}, {5, 8, 9}, {17, 19, 21}}));
  BOOST_CHECK((answers_of(sample_of("|......")) == std::vector<Answer>{}));
}

BOOST_AUTO_TEST_CASE(of_plain_text_the_first_half_is_the_prompt) {
  // Documents of 6, 5, 2 and 1 tokens, and one that the end of the sample cuts.
  BOOST_CHECK((answers_of(sample_of("|.xxxxx|.xxxx|.x|.|.xxx")) ==
               std::vector<Answer>{{0, 3, 6}, {6, 9, 11}, {11, 12, 13}, {14, 16, 18}}));
}

BOOST_AUTO_TEST_CASE(what_lies_behind_the_written_tokens_does_not_count) {
  Sample sample = sample_of("|..xxxx|..xx.xx");
  const auto answers = answers_of(sample);
  BOOST_REQUIRE(answers.size() == 2);
  replace_answer(sample, answers[0], {7, 8});
  replace_answer(sample, answers[1], {9});
  BOOST_TEST(trained_tokens(sample) == "..xx....x....");
  BOOST_TEST(sample.tokens ==
             (std::vector<int32_t>{100, 101, 7, 8, 104, 105, 106, 107, 9, 109, 110, 111, 112}));
  // The same documents have an answer still.
  BOOST_TEST(answers_of(sample).size() == 2);
  BOOST_CHECK_THROW(replace_answer(sample, answers[1], {1, 2, 3}), Error);
  BOOST_CHECK_THROW(replace_answer(sample, answers[1], {}), Error);
}

BOOST_AUTO_TEST_CASE(the_last_token_of_a_sample_may_be_written) {
  Sample sample = sample_of("|..xx");
  replace_answer(sample, answers_of(sample)[0], {7, 8});
  BOOST_TEST(sample.tokens.back() == 8);
  BOOST_TEST(trained_tokens(sample) == "..xx");
}

BOOST_AUTO_TEST_CASE(which_samples_is_a_matter_of_their_number) {
  ExperimentConfig config;
  config.objective.on_policy_share = 0.3;
  ParallelGroups groups;
  const OnPolicyWriter writer(config, groups, 8, {});
  int64_t count = 0;
  for (int64_t number = 0; number < 10000; ++number) {
    Sample sample;
    sample.number = number;
    count += writer.is_on_policy(sample) ? 1 : 0;
  }
  // Five standard deviations of a binomial count: sqrt(10000 x 0.3 x 0.7) = 46.
  BOOST_TEST(std::abs(count - 3000) <= 230);
}
