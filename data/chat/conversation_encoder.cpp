#include "data/chat/conversation_encoder.h"

#include <algorithm>

#include "base/error.h"
#include "data/tokenizer/unicode.h"

namespace hearth {
namespace {

using nlohmann::ordered_json;

size_t common_prefix(std::string_view a, std::string_view b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

bool is_assistant(const ordered_json& message) {
  return message.at("role") == "assistant";
}

ordered_json first_messages(const ordered_json& messages, size_t count) {
  return ordered_json::array_t(messages.begin(), messages.begin() + static_cast<std::ptrdiff_t>(count));
}

// A content that begins and ends otherwise than `message`'s, so that the renderings part where it begins.
std::string other_content(const ordered_json& message) {
  const auto found = message.find("content");
  const std::string content = found != message.end() && found->is_string() ? found->get<std::string>() : "";
  const size_t first = content.find_first_not_of(" \t\r\n"), last = content.find_last_not_of(" \t\r\n");
  const char before = first != std::string::npos && content[first] == 'Q' ? 'Z' : 'Q';
  const char after = last != std::string::npos && content[last] == 'q' ? 'z' : 'q';
  return std::string(1, before) + "7c1e0f" + std::string(1, after);
}

// Where turn `index` wrote its content (and tool calls) into `text`: what changes when it has another one.
// Empty optional where nothing changes: the template leaves the turn out.
std::optional<ByteRange> content_range(const ChatFormat& format, const Conversation& conversation,
                                       size_t index, const std::string& text) {
  ordered_json messages = conversation.messages;
  messages[index]["content"] = other_content(messages[index]);
  messages[index].erase("tool_calls");
  std::string other;
  try {
    other = format.render(messages, conversation.tools, GenerationPrompt::Omit).text;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::BadInput) throw;
    fail(
        ErrorKind::BadInput,
        "messages[{}]: this assistant turn cannot be found in the text, because the template refuses a plain "
        "answer in its place ({}); mark what is learnt with {{% generation %}} in the template",
        index, error.message());
  }
  if (other == text) return std::nullopt;
  const size_t begin = common_prefix(text, other), shorter = std::min(text.size(), other.size());
  size_t same_end = 0;
  while (same_end < shorter - begin && text[text.size() - 1 - same_end] == other[other.size() - 1 - same_end])
    ++same_end;
  return ByteRange{begin, text.size() - same_end};
}

// What the model is asked with at turn `index`, where it is how the text begins.
std::optional<size_t> prompt_end(const ChatFormat& format, const Conversation& conversation, size_t index,
                                 const std::string& text) {
  try {
    const auto prompt = format.render(first_messages(conversation.messages, index), conversation.tools,
                                      GenerationPrompt::Add);
    if (text.starts_with(prompt.text)) return prompt.text.size();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::BadInput)
      throw;  // BadInput: the template takes no conversation that ends here
  }
  return std::nullopt;
}

// Where the assistant's turn `index` ends, whose content ends at `content_end`: behind its end-of-turn token,
// which follows at once or behind what else the template writes into the turn.
size_t turn_end(const ChatFormat& format, const Conversation& conversation, size_t index,
                const std::string& text, size_t content_end) {
  if (const size_t end = format.end_of_turn(text, content_end); end != content_end) return end;
  try {
    const auto so_far = format.render(first_messages(conversation.messages, index + 1), conversation.tools,
                                      GenerationPrompt::Omit);
    if (!text.starts_with(so_far.text)) return content_end;
    for (size_t at = content_end + 1; at < so_far.text.size(); ++at)
      if (const size_t end = format.end_of_turn(so_far.text, at); end != at) return end;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::BadInput) throw;
  }
  return content_end;
}

std::vector<ByteRange> marked_ranges(const ChatFormat& format, const Conversation& conversation,
                                     std::vector<ByteRange> ranges) {
  const auto context = first_messages(conversation.messages, conversation.num_context_messages);
  if (std::none_of(context.begin(), context.end(), is_assistant)) return ranges;
  const size_t before = format.render(context, conversation.tools, GenerationPrompt::Omit).generated.size();
  ranges.erase(ranges.begin(), ranges.begin() + static_cast<std::ptrdiff_t>(std::min(before, ranges.size())));
  return ranges;
}

// The same text and ranges as the tokenizer sees them behind its normalizer. No composition reaches over the
// edge of a range: a special token or a line end is there.
void normalize(std::string& text, std::vector<ByteRange>& ranges, unicode::Form form) {
  std::string out;
  size_t at = 0;
  const auto take = [&](size_t end) {
    if (end > at) out += unicode::normalize(std::string_view(text).substr(at, end - at), form);
    at = std::max(at, end);
    return out.size();
  };
  for (auto& [begin, end] : ranges) begin = take(begin), end = take(end);
  take(text.size());
  text = std::move(out);
}

}  // namespace

std::string_view name(TrainOn train_on) {
  switch (train_on) {
    case TrainOn::LastTurn:
      return "last_turn";
    case TrainOn::Everything:
      return "all";
    default:
      return "assistant_turns";
  }
}

std::vector<ByteRange> trained_ranges(const ChatFormat& format, const Conversation& conversation,
                                      TrainOn train_on, const ChatTemplate::Rendered& full) {
  if (train_on == TrainOn::Everything) return {{0, full.text.size()}};
  std::vector<ByteRange> ranges;
  if (format.marks_generation()) {
    ranges = marked_ranges(format, conversation, full.generated);
    if (train_on == TrainOn::LastTurn && ranges.size() > 1) ranges.erase(ranges.begin(), ranges.end() - 1);
    return ranges;
  }
  const auto& messages = conversation.messages;
  size_t first = conversation.num_context_messages;
  if (train_on == TrainOn::LastTurn) {
    for (size_t i = first; i < messages.size(); ++i)
      if (is_assistant(messages[i])) first = i;
  }
  for (size_t i = first; i < messages.size(); ++i) {
    if (!is_assistant(messages[i])) continue;
    const auto content = content_range(format, conversation, i, full.text);
    if (!content) continue;
    const size_t begin = prompt_end(format, conversation, i, full.text).value_or(content->first);
    const size_t end = turn_end(format, conversation, i, full.text, content->second);
    const size_t after_last = ranges.empty() ? 0 : ranges.back().second;
    if (end > std::max(begin, after_last)) ranges.emplace_back(std::max(begin, after_last), end);
  }
  return ranges;
}

ConversationEncoder::ConversationEncoder(const Tokenizer& tokenizer, std::optional<ChatFormat> format,
                                         TrainOn train_on)
    : tokenizer_(tokenizer), format_(std::move(format)), train_on_(train_on) {}

std::vector<MaskedDocument> ConversationEncoder::encode(const FineTuningRecord& record) const {
  HEARTH_CHECK(format_ || record.is_plain, BadInput,
               "the record has messages, and there is no chat template to write them with; give one with "
               "--chat-template FILE");
  std::vector<MaskedDocument> documents;
  for (const auto& conversation : record.conversations)
    documents.push_back(format_ ? encode_rendered(conversation) : encode_plain(conversation));
  return documents;
}

MaskedDocument ConversationEncoder::encode_plain(const Conversation& conversation) const {
  const auto content = [&](size_t i) { return conversation.messages[i].at("content").get<std::string>(); };
  MaskedDocument out{tokenizer_.encode(content(0), SpecialTokens::Add), {}};
  const auto eos = tokenizer_.eos_id();
  if (eos && !out.tokens.empty() && out.tokens.back() == *eos) out.tokens.pop_back();  // the text goes on
  out.loss_mask.resize(out.tokens.size(), train_on_ == TrainOn::Everything ? 1 : 0);
  auto answer = tokenizer_.encode(content(1), SpecialTokens::Skip);
  if (eos && (answer.empty() || answer.back() != *eos)) answer.push_back(*eos);
  out.tokens.insert(out.tokens.end(), answer.begin(), answer.end());
  out.loss_mask.resize(out.tokens.size(), 1);
  return out;
}

MaskedDocument ConversationEncoder::encode_rendered(const Conversation& conversation) const {
  const auto full = format_->render(conversation.messages, conversation.tools, GenerationPrompt::Omit);
  MaskedDocument out{format_->encode(full.text), {}};
  auto ranges = trained_ranges(*format_, conversation, train_on_, full);
  std::string text = full.text;
  auto tokens = align_tokens(format_->tokenizer(), text, out.tokens);
  for (const auto form : {unicode::Form::NFC, unicode::Form::NFKC}) {
    if (tokens) break;
    normalize(text, ranges, form);
    tokens = align_tokens(format_->tokenizer(), text, out.tokens);
  }
  HEARTH_CHECK(
      tokens.has_value(), BadInput,
      "its {} tokens do not spell the {} bytes of text that the chat template gives: the tokenizer "
      "changes the text beyond NFC and NFKC or has no token for part of it, so the answer's tokens cannot "
      "be told from the prompt's",
      out.tokens.size(), full.text.size());
  out.loss_mask = tokens_inside(*tokens, ranges);
  return out;
}

}  // namespace hearth
