// Conversations -> tokens and a loss mask. The chat template is the truth: its text is tokenised as it is and
// nothing is appended. The mask says which tokens are learnt: by default every turn of the assistant up to
// and with its end-of-turn token.
//
// Where the template marks them with {% generation %} (transformers' return_assistant_tokens_mask), its
// ranges decide. Otherwise a turn begins where the text with the generation prompt before it ends, and what
// of the rendering belongs to it is found by rendering once more with another content. Immutable,
// thread-safe; the Tokenizer must outlive it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/chat/chat_format.h"
#include "data/chat/conversation.h"
#include "data/chat/token_alignment.h"

namespace hearth {

// What is learnt of a conversation.
enum class TrainOn {
  AssistantTurns,
  LastTurn,    // --last-turn-only
  Everything,  // --train-on-prompt
};
std::string_view name(TrainOn train_on);

struct MaskedDocument {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> loss_mask;  // 1 = the token counts as a target
};

// Byte ranges of full.text, ascending, that are learnt; full: the rendering of the conversation. Throws
// Error{BadInput} where a turn cannot be found in it.
std::vector<ByteRange> trained_ranges(const ChatFormat& format, const Conversation& conversation,
                                      TrainOn train_on, const ChatTemplate::Rendered& full);

class ConversationEncoder {
 public:
  // Without a format only records with a plain prompt and answer can be encoded: tokens of the prompt (with
  // what the post-processor adds), of the answer, eos; answer and eos are learnt.
  ConversationEncoder(const Tokenizer& tokenizer, std::optional<ChatFormat> format, TrainOn train_on);

  // One document per conversation of the record. Throws Error{BadInput} without file and line.
  std::vector<MaskedDocument> encode(const FineTuningRecord& record) const;

 private:
  MaskedDocument encode_plain(const Conversation& conversation) const;
  MaskedDocument encode_rendered(const Conversation& conversation) const;
  const Tokenizer& tokenizer_;
  std::optional<ChatFormat> format_;
  TrainOn train_on_;
};

}  // namespace hearth
