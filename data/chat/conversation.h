// Fine-tuning records as people have them -> conversations in the form that chat templates expect (OpenAI's:
// {"role", "content", "tool_calls" ...}). Only the shape is checked; which roles may follow each other is the
// template's business. Pure, thread-safe.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

// What a line of input holds. Text is not a conversation (data/document_encoder.h).
enum class RecordFormat { Text, Messages, Alpaca, ShareGpt, PromptCompletion, Preference };

// "text", "messages", "alpaca", "sharegpt", "prompt_completion", "preference".
std::string_view name(RecordFormat format);
std::optional<RecordFormat> record_format_from(std::string_view name);

// Names of the fields that --messages-field, --prompt-field and --response-field choose.
struct RecordFields {
  std::string messages;                 // Messages, ShareGpt; empty: "messages", "conversations"
  std::string prompt = "prompt";        // PromptCompletion, Preference
  std::string response = "completion";  // PromptCompletion
};

// The fields that a record of this format is read from, for the dataset's list of sources: "messages".
std::string describe_fields(RecordFormat format, const RecordFields& fields);

struct Conversation {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  nlohmann::ordered_json tools;     // null: none
  size_t num_context_messages = 0;  // the first so many are context: never trained on
};

struct FineTuningRecord {
  std::vector<Conversation> conversations;  // one; Preference: the chosen one, then the rejected one
  // The record had a prompt and an answer as plain strings; messages are then one user and one assistant
  // turn.
  bool is_plain = false;
  // What decides the side of the validation split: equal for records that must not lie on both sides
  // (preferences over one prompt).
  std::string split_key;
};

// `json`: one JSON object. Throws Error{BadInput} that says what is missing or wrong, without file and line.
FineTuningRecord read_record(std::string_view json, RecordFormat format, const RecordFields& fields);

}  // namespace hearth
