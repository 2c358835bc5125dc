// data/chat/conversation: every record format gives the same conversation, and bad records say what is wrong.
#include "data/chat/conversation.h"

#include "tests/data/data_fixture.h"

using namespace hearth;
using namespace hearth::testing;
using nlohmann::ordered_json;

namespace {

std::string messages_of(const std::string& json, RecordFormat format, const RecordFields& fields = {}) {
  return read_record(json, format, fields).conversations.at(0).messages.dump(-1, ' ', true);
}

void check_refused(RecordFormat format, const std::string& json, const std::vector<std::string>& words) {
  check_fails(ErrorKind::BadInput, words, [&] { read_record(json, format, {}); });
}

const std::string kTwoTurns =
    R"([{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"},{"role":"assistant","content":"\u4f60\u597d"}])";

}  // namespace

BOOST_AUTO_TEST_CASE(formats_have_names) {
  for (const auto* name_of : {"text", "messages", "alpaca", "sharegpt", "prompt_completion", "preference"})
    BOOST_TEST(name(*record_format_from(name_of)) == name_of);
  BOOST_TEST(!record_format_from("chatml").has_value());
}

BOOST_AUTO_TEST_CASE(the_same_conversation_in_every_format) {
  BOOST_TEST(messages_of(R"({"messages":)" + kTwoTurns + "}", RecordFormat::Messages) == kTwoTurns);
  BOOST_TEST(messages_of(R"({"turns":)" + kTwoTurns + "}", RecordFormat::Messages, {.messages = "turns"}) ==
             kTwoTurns);
  BOOST_TEST(messages_of(R"({"instruction":"Hi","input":"","output":"\u4f60\u597d","system":"Be brief."})",
                         RecordFormat::Alpaca) == kTwoTurns);
  const std::string turns = R"({"from":"human","value":"Hi"},{"from":"gpt","value":"\u4f60\u597d"}])";
  BOOST_TEST(messages_of(R"({"system":"Be brief.","conversations":[)" + turns + "}",
                         RecordFormat::ShareGpt) == kTwoTurns);
  BOOST_TEST(messages_of(R"({"conversations":[{"from":"system","value":"Be brief."},)" + turns + "}",
                         RecordFormat::ShareGpt) == kTwoTurns);
  BOOST_TEST(
      messages_of(R"({"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}],
                             "completion":[{"role":"assistant","content":"\u4f60\u597d"}]})",
                  RecordFormat::PromptCompletion) == kTwoTurns);
}

BOOST_AUTO_TEST_CASE(alpaca_joins_input_and_history) {
  const auto record = read_record(
      R"({"instruction":"Add.","input":"1 2","output":"3","history":[["q1","a1"],["q2","a2"]],"system":null})",
      RecordFormat::Alpaca, {});
  const auto& messages = record.conversations[0].messages;
  BOOST_TEST(messages.size() == 6u);
  BOOST_TEST(messages[0].at("content") == "q1");
  BOOST_TEST(messages[3].at("content") == "a2");
  BOOST_TEST(messages[4].at("content") == "Add.\n1 2");
  BOOST_TEST(record.conversations[0].num_context_messages == 0u);
  BOOST_TEST(!record.is_plain);
}

BOOST_AUTO_TEST_CASE(tools_of_sharegpt_become_those_of_templates) {
  const auto record = read_record(
      R"({"conversations":[{"from":"human","value":"Weather?"},
          {"from":"function_call","value":"{\"name\": \"weather\", \"arguments\": {\"zeta\": 1, \"alpha\": 2}}"},
          {"from":"observation","value":"sunny"},{"from":"gpt","value":"Sunny."}],
          "tools":"[{\"name\": \"weather\", \"parameters\": {}}]"})",
      RecordFormat::ShareGpt, {});
  const Conversation& c = record.conversations[0];
  BOOST_TEST(c.messages[1].dump() ==
             R"({"role":"assistant","content":"","tool_calls":[{"type":"function","function":)"
             R"({"name":"weather","arguments":{"zeta":1,"alpha":2}}}]})");  // keys keep their order
  BOOST_TEST(c.messages[2].at("role") == "tool");
  BOOST_TEST(c.tools.dump() == R"([{"type":"function","function":{"name":"weather","parameters":{}}}])");
}

BOOST_AUTO_TEST_CASE(messages_keep_what_else_they_hold) {
  const std::string call =
      R"({"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"b":1.5,"a":null}}}]})";
  const auto record =
      read_record(R"({"messages":[{"role":"user","content":[{"type":"text","text":"x"}],"name":"n"},)" +
                      call + R"(],"tools":[]})",
                  RecordFormat::Messages, {});
  BOOST_TEST(record.conversations[0].messages[1].dump() == call);
  BOOST_TEST(record.conversations[0].messages[0].at("name") == "n");
  BOOST_TEST(record.conversations[0].tools.is_null());
}

BOOST_AUTO_TEST_CASE(prompt_and_completion_as_strings) {
  const auto record = read_record(R"({"question":"1+1?","answer":"2"})", RecordFormat::PromptCompletion,
                                  {.prompt = "question", .response = "answer"});
  BOOST_TEST(record.is_plain);
  BOOST_TEST(record.conversations[0].num_context_messages == 1u);
  BOOST_TEST(record.conversations[0].messages.dump() ==
             R"([{"role":"user","content":"1+1?"},{"role":"assistant","content":"2"}])");
}

BOOST_AUTO_TEST_CASE(preferences_share_their_prompt) {
  const std::string user = R"({"role":"user","content":"q"})",
                    good = R"({"role":"assistant","content":"good"})",
                    bad = R"({"role":"assistant","content":"bad"})";
  for (const auto& json :
       {std::string(R"({"prompt":"q","chosen":"good","rejected":"bad"})"),
        R"({"prompt":[)" + user + R"(],"chosen":[)" + good + R"(],"rejected":[)" + bad + "]}",
        R"({"chosen":[)" + user + "," + good + R"(],"rejected":[)" + user + "," + bad + "]}",
        R"({"prompt":"q","chosen":[)" + user + "," + good + R"(],"rejected":[)" + user + "," + bad + "]}",
        R"({"prompt":"q","chosen":[)" + good + R"(],"rejected":[)" + bad + "]}"}) {
    const auto record = read_record(json, RecordFormat::Preference, {});
    BOOST_REQUIRE(record.conversations.size() == 2u);
    BOOST_TEST(record.conversations[0].messages.dump() == "[" + user + "," + good + "]", json);
    BOOST_TEST(record.conversations[1].messages.dump() == "[" + user + "," + bad + "]", json);
    BOOST_TEST(record.conversations[1].num_context_messages == 1u, json);
    BOOST_TEST(record.split_key == "[" + user + "]", json);
  }
}

BOOST_AUTO_TEST_CASE(bad_records_say_what_is_wrong) {
  using enum RecordFormat;
  check_refused(Messages, R"({"messages": [)", {"malformed JSON"});
  check_refused(Messages, "[1]", {"not a JSON object"});
  check_refused(Messages, R"({"conversations":[]})", {"'messages' is missing", "--format sharegpt"});
  check_refused(Messages, R"({"messages":"x"})", {"'messages' is not a list", "string"});
  check_refused(Messages, R"({"messages":[{"content":"x"}]})", {"messages[0] has no 'role'"});
  check_refused(Messages, R"({"messages":[{"from":"human","value":"x"}]})", {"--format sharegpt"});
  check_refused(Messages, R"({"messages":[{"role":"user"}]})", {"messages[0]", "'content'"});
  check_refused(Messages, R"({"messages":[{"role":"user","content":3}]})", {"neither a string nor a list"});
  check_refused(Messages, R"({"messages":[{"role":"user","content":"x"}]})", {"no assistant turn"});
  check_refused(Messages, R"({"messages":[{"role":"assistant","content":"x"}],"tools":"[nope"})",
                {"'tools'", "JSON"});
  check_refused(Alpaca, R"({"instruction":"x"})", {"'output' is missing"});
  check_refused(Alpaca, R"({"instruction":7,"output":"x"})", {"'instruction' is not a string but a number"});
  check_refused(Alpaca, R"({"instruction":"x","output":"y","history":[["q"]]})", {"'history'", "pair"});
  check_refused(ShareGpt, R"({"messages":[]})", {"'conversations' is missing", "--format messages"});
  check_refused(ShareGpt, R"({"conversations":[{"from":"alien","value":"x"}]})", {"'alien'", "human, gpt"});
  check_refused(ShareGpt, R"({"conversations":[{"from":"human"}]})", {"conversations[0] lacks"});
  check_refused(ShareGpt, R"({"conversations":[{"from":"function_call","value":"call f"}]})",
                {"function_call", "JSON"});
  check_refused(PromptCompletion, R"({"prompt":"x"})", {"'completion' is missing", "--response-field"});
  check_refused(Preference, R"({"prompt":"x","chosen":"a"})", {"'rejected' is missing"});
  check_refused(Preference, R"({"prompt":"x","chosen":"a","rejected":[]})", {"different kinds"});
  check_refused(Preference, R"({"chosen":"a","rejected":"b"})", {"'prompt' is missing"});
  std::string deep = R"({"messages":[{"role":"assistant","content":"x","tool_calls":)";
  for (int i = 0; i < 200; ++i) deep += "[";
  for (int i = 0; i < 200; ++i) deep += "]";
  check_refused(Messages, deep + "}]}", {"nested deeper"});
}
