// data/chat/conversation_encoder: which bytes of a rendering are learnt, for templates of every build. Ids
// and masks of real templates are compared with transformers' in compare_conversations.py.
#include "data/chat/conversation_encoder.h"

#include "tests/data/data_fixture.h"

using namespace hearth;
using namespace hearth::testing;
using nlohmann::ordered_json;

namespace {

// One byte is one token; <|endoftext|> is the eos, <|im_start|> and <|im_end|> are special too.
std::unique_ptr<Tokenizer> tokenizer_with(const std::string& chat_template,
                                          const std::string& normalizer = "") {
  TempFolder folder;
  write_byte_tokenizer(folder / "tok", "<|im_start|>");
  auto spec = nlohmann::json::parse(read_file(folder / "tok/tokenizer.json"));
  auto end = spec["added_tokens"][1];
  end["id"] = 258, end["content"] = "<|im_end|>";
  spec["added_tokens"].push_back(end);
  if (!normalizer.empty()) spec["normalizer"] = {{"type", normalizer}};
  return Tokenizer::from_files({{"tokenizer.json", spec.dump()},
                                {"tokenizer_config.json", read_file(folder / "tok/tokenizer_config.json")},
                                {"chat_template.jinja", chat_template}},
                               "test");
}

const std::string kChatMl =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

ordered_json turns(std::initializer_list<std::pair<const char*, const char*>> list) {
  ordered_json messages = ordered_json::array();
  for (const auto& [role, content] : list) messages.push_back({{"role", role}, {"content", content}});
  return messages;
}

// The rendering with what is learnt in braces.
std::string learnt(const std::string& chat_template, const ordered_json& messages,
                   TrainOn train_on = TrainOn::AssistantTurns, size_t num_context_messages = 0) {
  const auto tokenizer = tokenizer_with(chat_template);
  const ChatFormat format(*tokenizer, "test");
  const Conversation conversation{
      .messages = messages, .tools = nullptr, .num_context_messages = num_context_messages};
  const auto full = format.render(messages, nullptr, GenerationPrompt::Omit);
  std::string out = full.text;
  const auto ranges = trained_ranges(format, conversation, train_on, full);
  for (auto range = ranges.rbegin(); range != ranges.rend(); ++range) {
    out.insert(range->second, "}");
    out.insert(range->first, "{");
  }
  return out;
}

const ordered_json kTwo = turns({{"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", "d"}});

}  // namespace

BOOST_AUTO_TEST_CASE(turns_of_the_assistant_and_what_ends_them) {
  BOOST_TEST(learnt(kChatMl, kTwo) ==
             "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{b<|im_end|>}\n"
             "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n{d<|im_end|>}\n");
  BOOST_TEST(learnt(kChatMl, turns({{"user", "Q"}, {"assistant", "Qq"}})) ==
             "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n{Qq<|im_end|>}\n");
  BOOST_TEST(learnt(kChatMl, turns({{"user", "a"}, {"assistant", ""}})) ==
             "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n{<|im_end|>}\n");
}

BOOST_AUTO_TEST_CASE(last_turn_everything_and_context) {
  const std::string first = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n";
  const std::string second = "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n";
  BOOST_TEST(learnt(kChatMl, kTwo, TrainOn::LastTurn) == first + second + "{d<|im_end|>}\n");
  BOOST_TEST(learnt(kChatMl, kTwo, TrainOn::Everything) == "{" + first + second + "d<|im_end|>\n}");
  BOOST_TEST(learnt(kChatMl, kTwo, TrainOn::AssistantTurns, 3) == first + second + "{d<|im_end|>}\n");
}

BOOST_AUTO_TEST_CASE(marks_of_the_template_decide) {
  const std::string marked =
      "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
      "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}";
  BOOST_TEST(learnt(marked, kTwo) ==
             "[user]a<|im_end|>[assistant]{b}<|im_end|>[user]c<|im_end|>[assistant]{d}<|im_end|>");
  BOOST_TEST(learnt(marked, kTwo, TrainOn::LastTurn) ==
             "[user]a<|im_end|>[assistant]b<|im_end|>[user]c<|im_end|>[assistant]{d}<|im_end|>");
  BOOST_TEST(learnt(marked, kTwo, TrainOn::AssistantTurns, 3) ==
             "[user]a<|im_end|>[assistant]b<|im_end|>[user]c<|im_end|>[assistant]{d}<|im_end|>");
}

BOOST_AUTO_TEST_CASE(templates_that_change_or_leave_out_a_turn) {
  const std::string last_only =
      "{% for m in messages %}{% if m.role == 'user' or loop.last %}[{{ m.role }}]{{ m.content | trim "
      "}}<|im_end|>"
      "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
  // What precedes the second turn is not how the text begins, so it begins with its content.
  BOOST_TEST(
      learnt(last_only, turns({{"user", "a"}, {"assistant", "b"}, {"user", "c"}, {"assistant", " d\n"}})) ==
      "[user]a<|im_end|>[user]c<|im_end|>[assistant]{d<|im_end|>}");
  const std::string strict =
      "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') "
      "}}"
      "{% endif %}[{{ m.role }}]{{ m.content }} <|endoftext|>{% endfor %}";
  BOOST_TEST(
      learnt(strict, kTwo) ==
      "[user]a <|endoftext|>{[assistant]b <|endoftext|>}[user]c <|endoftext|>{[assistant]d <|endoftext|>}");
  // The assistant speaks first: nothing can be asked before it, so its content is what is learnt.
  BOOST_TEST(learnt("{% if not messages %}{{ raise_exception('empty') }}{% endif %}" + kChatMl,
                    turns({{"assistant", "hi"}, {"user", "x"}})) ==
             "<|im_start|>assistant\n{hi<|im_end|>}\n<|im_start|>user\nx<|im_end|>\n");
}

BOOST_AUTO_TEST_CASE(a_turn_without_an_end_ends_with_its_content) {
  const std::string open =
      "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}";
  // <|im_start|> opens turns, so it ends none.
  BOOST_TEST(learnt(open, kTwo) ==
             "<|im_start|>user: a<|im_start|>assistant: {b}<|im_start|>user: c"
             "<|im_start|>assistant: {d}");
}

BOOST_AUTO_TEST_CASE(tool_calls_belong_to_their_turn) {
  const std::string calls =
      "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls %}<call>{{ c.name "
      "}}</call>"
      "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
  ordered_json messages = turns({{"user", "a"}, {"assistant", ""}});
  messages[1]["tool_calls"] = ordered_json::array({{{"name", "f"}}});
  BOOST_TEST(learnt(calls, messages) == "[user]a<|im_end|>[assistant]{<call>f</call><|im_end|>}");
  // A template that takes tool calls only leaves nothing to compare with.
  const std::string only =
      "{% for m in messages %}{% if m.role == 'assistant' and not m.tool_calls %}"
      "{{ raise_exception('calls only') }}{% endif %}{{ m.content }}{% endfor %}";
  check_fails(ErrorKind::BadInput, {"messages[1]", "calls only", "{% generation %}"},
              [&] { learnt(only, messages); });
}

BOOST_AUTO_TEST_CASE(tokens_and_masks) {
  const auto tokenizer = tokenizer_with(kChatMl);
  const ConversationEncoder encoder(*tokenizer, ChatFormat(*tokenizer, "test"), TrainOn::AssistantTurns);
  FineTuningRecord record;
  record.conversations.push_back({.messages = turns({{"user", "a"}, {"assistant", "bc"}}), .tools = nullptr});
  const auto documents = encoder.encode(record);
  BOOST_REQUIRE(documents.size() == 1u);
  BOOST_TEST(documents[0].tokens.front() == 257);
  BOOST_TEST(std::accumulate(documents[0].loss_mask.begin(), documents[0].loss_mask.end(), 0) == 3);
  BOOST_TEST(documents[0].loss_mask[documents[0].loss_mask.size() - 2] == 1);  // <|im_end|>
  BOOST_TEST(documents[0].loss_mask.back() == 0);                              // the line end behind it
}

BOOST_AUTO_TEST_CASE(text_that_a_normalizer_composes_still_aligns) {
  const auto tokenizer = tokenizer_with(kChatMl, "NFC");
  const ConversationEncoder encoder(*tokenizer, ChatFormat(*tokenizer, "test"), TrainOn::AssistantTurns);
  FineTuningRecord record;  // e and a combining acute accent: three bytes that become two
  record.conversations.push_back(
      {.messages = turns({{"user", "e\xcc\x81"}, {"assistant", "e\xcc\x81"}}), .tools = nullptr});
  const auto document = encoder.encode(record)[0];
  BOOST_TEST(std::accumulate(document.loss_mask.begin(), document.loss_mask.end(), 0) == 3);
  const auto lower = tokenizer_with(kChatMl, "Lowercase");
  const ConversationEncoder other(*lower, ChatFormat(*lower, "test"), TrainOn::AssistantTurns);
  record.conversations[0].messages = turns({{"user", "a"}, {"assistant", "B"}});
  check_fails(ErrorKind::BadInput, {"do not spell"}, [&] { other.encode(record); });
}

BOOST_AUTO_TEST_CASE(variables_and_the_end_of_turn) {
  const auto tokenizer = tokenizer_with("{% if shout %}!{% endif %}" + kChatMl);
  const ChatFormat quiet(*tokenizer, "test"),
      loud(*tokenizer, "test", parse_template_variables({"shout=true"}));
  const auto messages = turns({{"user", "a"}});
  BOOST_TEST(loud.render(messages, nullptr, GenerationPrompt::Add).text ==
             "!" + quiet.render(messages, nullptr, GenerationPrompt::Add).text);
  BOOST_TEST(*quiet.end_of_turn_id() == 258);
  BOOST_TEST(parse_template_variables({"a=1", "b=x y", "c=\"1\"", "d=[1]"}).dump() ==
             R"({"a":1,"b":"x y","c":"1","d":[1]})");
  check_fails(ErrorKind::Usage, {"twice"}, [] { parse_template_variables({"a=1", "a=2"}); });
  const auto without = tokenizer_with("");
  check_fails(ErrorKind::BadInput, {"no chat template"}, [&] { ChatFormat(*without, "test"); });
}
