#include "data/chat/conversation.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"

namespace hearth {
namespace {

using nlohmann::ordered_json;

constexpr int kMaxDepth = 100;  // arguments of a tool call nest; nothing sane nests so deep

constexpr std::array<std::pair<RecordFormat, std::string_view>, 6> kFormats{{
    {RecordFormat::Text, "text"},
    {RecordFormat::Messages, "messages"},
    {RecordFormat::Alpaca, "alpaca"},
    {RecordFormat::ShareGpt, "sharegpt"},
    {RecordFormat::PromptCompletion, "prompt_completion"},
    {RecordFormat::Preference, "preference"},
}};

// Keys keep their order: a template may print an object, and then the order is part of the text.
ordered_json convert(const simdjson::dom::element& element, int depth) {
  HEARTH_CHECK(depth <= kMaxDepth, BadInput, "nested deeper than {} levels", kMaxDepth);
  switch (element.type()) {
    case simdjson::dom::element_type::ARRAY: {
      ordered_json out = ordered_json::array();
      for (const auto item : simdjson::dom::array(element)) out.push_back(convert(item, depth + 1));
      return out;
    }
    case simdjson::dom::element_type::OBJECT: {
      ordered_json out = ordered_json::object();
      for (const auto field : simdjson::dom::object(element))
        out[std::string(field.key)] = convert(field.value, depth + 1);
      return out;
    }
    case simdjson::dom::element_type::INT64:
      return int64_t(element);
    case simdjson::dom::element_type::UINT64:
      return uint64_t(element);
    case simdjson::dom::element_type::DOUBLE:
      return double(element);
    case simdjson::dom::element_type::STRING:
      return std::string(std::string_view(element));
    case simdjson::dom::element_type::BOOL:
      return bool(element);
    default:
      return nullptr;
  }
}

ordered_json parse(std::string_view json, std::string_view what) {
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  const auto error = parser.parse(json.data(), json.size()).get(root);
  HEARTH_CHECK(!error, BadInput, "{}: {}", what, simdjson::error_message(error));
  return convert(root, 0);
}

// The value of a field, or nullptr where it is missing or null.
const ordered_json* find(const ordered_json& object, const std::string& key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

const ordered_json& need(const ordered_json& object, const std::string& key, std::string_view hint = "") {
  const ordered_json* value = find(object, key);
  HEARTH_CHECK(value != nullptr, BadInput, "field '{}' is missing{}", key, hint);
  return *value;
}

std::string text(const ordered_json& value, std::string_view what) {
  HEARTH_CHECK(value.is_string(), BadInput, "{} is not a string but {} {}", what,
               value.is_array() || value.is_object() ? "an" : "a", value.type_name());
  return value.get<std::string>();
}

std::string text_or_empty(const ordered_json& object, const std::string& key) {
  const ordered_json* value = find(object, key);
  return value == nullptr ? "" : text(*value, fmt::format("field '{}'", key));
}

ordered_json message(std::string_view role, std::string content) {
  return {{"role", role}, {"content", std::move(content)}};
}

// Messages are passed on as they are; templates read fields beyond role and content.
ordered_json checked_messages(const ordered_json& list, const std::string& field) {
  HEARTH_CHECK(list.is_array(), BadInput, "field '{}' is not a list of messages but a {}", field,
               list.type_name());
  for (size_t i = 0; i < list.size(); ++i) {
    const ordered_json& item = list[i];
    HEARTH_CHECK(item.is_object(), BadInput, "{}[{}] is not an object", field, i);
    const ordered_json* role = find(item, "role");
    HEARTH_CHECK(role != nullptr && role->is_string(), BadInput, "{}[{}] has no 'role'{}", field, i,
                 item.contains("from") ? "; it has 'from': is this --format sharegpt?" : "");
    const ordered_json* content = find(item, "content");
    HEARTH_CHECK(content != nullptr || find(item, "tool_calls") != nullptr, BadInput,
                 "{}[{}] has neither 'content' nor 'tool_calls'", field, i);
    HEARTH_CHECK(content == nullptr || content->is_string() || content->is_array(), BadInput,
                 "{}[{}]: 'content' is neither a string nor a list of parts", field, i);
  }
  return list;
}

// A list of tools in OpenAI's form; some files hold it as a JSON string, or its functions without their wrap.
ordered_json read_tools(const ordered_json& object) {
  const ordered_json* found = find(object, "tools");
  if (found == nullptr) return nullptr;
  ordered_json tools = *found;
  if (tools.is_string()) {
    const auto source = tools.get<std::string>();
    if (source.find_first_not_of(" \t\r\n") == std::string::npos) return nullptr;
    tools = parse(source, "field 'tools' is a string that is not JSON");
  }
  HEARTH_CHECK(tools.is_array(), BadInput, "field 'tools' is not a list");
  for (auto& tool : tools) {
    HEARTH_CHECK(tool.is_object(), BadInput, "field 'tools' holds something that is not an object");
    if (!tool.contains("function") && tool.contains("name"))
      tool = ordered_json{{"type", "function"}, {"function", ordered_json(tool)}};
  }
  return tools.empty() ? ordered_json(nullptr) : tools;
}

bool has_assistant(const ordered_json& messages, size_t from) {
  return std::any_of(messages.begin() + static_cast<std::ptrdiff_t>(from), messages.end(),
                     [](const ordered_json& m) { return m.at("role") == "assistant"; });
}

void require_assistant(const Conversation& conversation, std::string_view what) {
  HEARTH_CHECK(has_assistant(conversation.messages, conversation.num_context_messages), BadInput,
               "{} has no assistant turn to learn from", what);
}

Conversation read_messages(const ordered_json& root, const std::string& field) {
  Conversation out;
  const bool sharegpt = !root.contains(field) && root.contains("conversations");
  out.messages = checked_messages(need(root, field,
                                       sharegpt ? "; it has 'conversations': is this --format sharegpt?"
                                                : " (choose with --messages-field)"),
                                  field);
  out.tools = read_tools(root);
  require_assistant(out, field);
  return out;
}

// As LLaMA-Factory reads it: the turn of the user is instruction and input, joined by a line end.
Conversation read_alpaca(const ordered_json& root) {
  Conversation out;
  const std::string instruction = text(need(root, "instruction"), "field 'instruction'");
  const std::string input = text_or_empty(root, "input");
  if (std::string system = text_or_empty(root, "system"); !system.empty())
    out.messages.push_back(message("system", std::move(system)));
  if (const ordered_json* history = find(root, "history")) {
    HEARTH_CHECK(history->is_array(), BadInput, "field 'history' is not a list");
    for (const auto& turn : *history) {
      HEARTH_CHECK(turn.is_array() && turn.size() == 2, BadInput,
                   "field 'history' holds something that is not a pair [question, answer]");
      out.messages.push_back(message("user", text(turn[0], "a question in 'history'")));
      out.messages.push_back(message("assistant", text(turn[1], "an answer in 'history'")));
    }
  }
  const bool both = !instruction.empty() && !input.empty();
  out.messages.push_back(message("user", instruction + (both ? "\n" : "") + input));
  out.messages.push_back(message("assistant", text(need(root, "output"), "field 'output'")));
  return out;
}

// A function call of ShareGPT data is JSON text: {"name", "arguments"}, or a list of such objects.
ordered_json tool_calls(const std::string& value, const std::string& where) {
  const std::string what = where + ": the value of function_call";
  ordered_json parsed = parse(value, what + " is not JSON"), calls = ordered_json::array();
  if (parsed.is_object()) parsed = ordered_json::array({parsed});
  HEARTH_CHECK(parsed.is_array() && !parsed.empty(), BadInput, "{} is neither an object nor a list", what);
  for (const auto& call : parsed) {
    HEARTH_CHECK(call.is_object() && call.contains("name") && call.contains("arguments"), BadInput,
                 "{} lacks 'name' or 'arguments'", what);
    calls.push_back({{"type", "function"},
                     {"function", {{"name", call.at("name")}, {"arguments", call.at("arguments")}}}});
  }
  return calls;
}

Conversation read_sharegpt(const ordered_json& root, const std::string& field) {
  Conversation out;
  if (std::string system = text_or_empty(root, "system"); !system.empty())
    out.messages.push_back(message("system", std::move(system)));
  const ordered_json& turns =
      need(root, field,
           root.contains("messages") ? "; it has 'messages': is this --format messages?"
                                     : " (choose with --messages-field)");
  HEARTH_CHECK(turns.is_array(), BadInput, "field '{}' is not a list", field);
  for (size_t i = 0; i < turns.size(); ++i) {
    const std::string where = fmt::format("{}[{}]", field, i);
    HEARTH_CHECK(
        turns[i].is_object() && find(turns[i], "from") != nullptr && find(turns[i], "value") != nullptr,
        BadInput, "{} lacks 'from' or 'value'", where);
    const std::string from = text(turns[i].at("from"), where + ": 'from'");
    std::string value = text(turns[i].at("value"), where + ": 'value'");
    if (from == "human" || from == "user") {
      out.messages.push_back(message("user", std::move(value)));
    } else if (from == "gpt" || from == "assistant") {
      out.messages.push_back(message("assistant", std::move(value)));
    } else if (from == "system") {
      out.messages.push_back(message("system", std::move(value)));
    } else if (from == "observation" || from == "tool") {
      out.messages.push_back(message("tool", std::move(value)));
    } else if (from == "function_call") {
      ordered_json call = message("assistant", "");
      call["tool_calls"] = tool_calls(value, where);
      out.messages.push_back(std::move(call));
    } else {
      fail(ErrorKind::BadInput,
           "{}: 'from' is '{}', expected human, gpt, system, function_call or observation (also user, "
           "assistant, "
           "tool)",
           where, from.substr(0, 100));
    }
  }
  out.tools = read_tools(root);
  require_assistant(out, field);
  return out;
}

// A prompt, and what answers it, as strings or as lists of messages.
Conversation join(const ordered_json* prompt, const ordered_json& answer, const std::string& prompt_field,
                  const std::string& answer_field) {
  Conversation out;
  if (prompt != nullptr && prompt->is_string()) {
    out.messages.push_back(message("user", prompt->get<std::string>()));
  } else if (prompt != nullptr) {
    out.messages = checked_messages(*prompt, prompt_field);
  }
  out.num_context_messages = out.messages.size();
  if (answer.is_string()) {
    out.messages.push_back(message("assistant", answer.get<std::string>()));
  } else {
    for (auto& item : checked_messages(answer, answer_field)) out.messages.push_back(std::move(item));
  }
  require_assistant(out, fmt::format("field '{}'", answer_field));
  return out;
}

FineTuningRecord read_prompt_completion(const ordered_json& root, const RecordFields& fields) {
  const ordered_json& prompt = need(root, fields.prompt, " (choose with --prompt-field)");
  const ordered_json& answer = need(root, fields.response, " (choose with --response-field)");
  FineTuningRecord record;
  record.is_plain = prompt.is_string() && answer.is_string();
  record.conversations.push_back(join(&prompt, answer, fields.prompt, fields.response));
  record.conversations.back().tools = read_tools(root);
  return record;
}

// Without a prompt, or with one that the conversations repeat, it is what both begin with.
void take_common_context(Conversation& chosen, Conversation& rejected) {
  size_t same = 0;
  while (same < chosen.messages.size() && same < rejected.messages.size() &&
         chosen.messages[same] == rejected.messages[same])
    ++same;
  chosen.num_context_messages = rejected.num_context_messages = same;
  require_assistant(chosen, "field 'chosen', beyond what it shares with 'rejected',");
  require_assistant(rejected, "field 'rejected', beyond what it shares with 'chosen',");
}

FineTuningRecord read_preference(const ordered_json& root, const RecordFields& fields) {
  const ordered_json* prompt = find(root, fields.prompt);
  const ordered_json &chosen = need(root, "chosen"), &rejected = need(root, "rejected");
  HEARTH_CHECK(chosen.type() == rejected.type(), BadInput,
               "'chosen' and 'rejected' are of different kinds: {} and {}", chosen.type_name(),
               rejected.type_name());
  const bool whole = chosen.is_array() &&
                     (prompt == nullptr || (prompt->is_string() && !chosen.empty() && chosen[0].is_object() &&
                                            chosen[0].value("role", ordered_json()) != "assistant"));
  HEARTH_CHECK(prompt != nullptr || whole, BadInput,
               "field '{}' is missing (choose with --prompt-field), and 'chosen' is no whole conversation",
               fields.prompt);
  if (whole) prompt = nullptr;
  FineTuningRecord record;
  record.is_plain = prompt != nullptr && prompt->is_string() && chosen.is_string();
  record.conversations.push_back(join(prompt, chosen, fields.prompt, "chosen"));
  record.conversations.push_back(join(prompt, rejected, fields.prompt, "rejected"));
  if (whole) take_common_context(record.conversations[0], record.conversations[1]);
  for (auto& conversation : record.conversations) conversation.tools = read_tools(root);
  return record;
}

std::string messages_field(RecordFormat format, const RecordFields& fields) {
  if (!fields.messages.empty()) return fields.messages;
  return format == RecordFormat::ShareGpt ? "conversations" : "messages";
}

std::string split_key_of(const FineTuningRecord& record) {
  const Conversation& first = record.conversations.front();
  ordered_json key = first.messages;
  if (record.conversations.size() > 1) {
    const auto context = static_cast<std::ptrdiff_t>(first.num_context_messages);
    key = ordered_json(ordered_json::array_t(first.messages.begin(), first.messages.begin() + context));
  }
  return key.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace

std::string_view name(RecordFormat format) {
  return kFormats[static_cast<size_t>(format)].second;
}

std::optional<RecordFormat> record_format_from(std::string_view name) {
  for (const auto& [format, known] : kFormats)
    if (known == name) return format;
  return std::nullopt;
}

std::string describe_fields(RecordFormat format, const RecordFields& fields) {
  switch (format) {
    case RecordFormat::Messages:
    case RecordFormat::ShareGpt:
      return messages_field(format, fields);
    case RecordFormat::Alpaca:
      return "instruction,output";
    case RecordFormat::PromptCompletion:
      return fields.prompt + "," + fields.response;
    case RecordFormat::Preference:
      return fields.prompt + ",chosen,rejected";
    default:
      return "";
  }
}

FineTuningRecord read_record(std::string_view json, RecordFormat format, const RecordFields& fields) {
  const ordered_json root = parse(json, "malformed JSON");
  HEARTH_CHECK(root.is_object(), BadInput, "not a JSON object");
  FineTuningRecord record;
  switch (format) {
    case RecordFormat::Messages:
      record.conversations.push_back(read_messages(root, messages_field(format, fields)));
      break;
    case RecordFormat::Alpaca:
      record.conversations.push_back(read_alpaca(root));
      break;
    case RecordFormat::ShareGpt:
      record.conversations.push_back(read_sharegpt(root, messages_field(format, fields)));
      break;
    case RecordFormat::PromptCompletion:
      record = read_prompt_completion(root, fields);
      break;
    case RecordFormat::Preference:
      record = read_preference(root, fields);
      break;
    case RecordFormat::Text:
      fail(ErrorKind::Internal, "text lines are no conversations");
  }
  record.split_key = split_key_of(record);
  return record;
}

}  // namespace hearth
