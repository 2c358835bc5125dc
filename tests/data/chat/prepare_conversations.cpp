// prepare_conversations KEY=VALUE...: `data prepare` of conversations for tests that run in Python. Keys:
// tokenizer, output, format, input (repeated), pack (0: none), template, variable (repeated), train
// (assistant_turns, last_turn, all), long (cut, drop), fields (messages,prompt,response), validation,
// skip_bad. Prints what prepare counted as one JSON object.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "data/prepare.h"

using namespace hearth;

namespace {

void set(PrepareOptions& options, const std::string& key, const std::string& value) {
  ConversationOptions& chat = options.conversations;
  if (key == "tokenizer") options.tokenizer = value;
  if (key == "output") options.output = value;
  if (key == "input") options.inputs.push_back(value);
  if (key == "validation") options.validation_fraction = std::stod(value);
  if (key == "skip_bad") options.bad_lines = BadLines::Skip;
  if (key == "format") chat.format = record_format_from(value).value();
  if (key == "pack") chat.pack_length = std::stoll(value);
  if (key == "template") chat.chat_template = value;
  if (key == "variable") chat.template_variables.push_back(value);
  if (key == "long" && value == "drop") chat.long_documents = LongDocuments::Drop;
  for (const auto train_on : {TrainOn::AssistantTurns, TrainOn::LastTurn, TrainOn::Everything})
    if (key == "train" && value == name(train_on)) chat.train_on = train_on;
  if (key == "fields") {
    std::istringstream names(value);
    std::getline(names, chat.fields.messages, ',');
    std::getline(names, chat.fields.prompt, ',');
    std::getline(names, chat.fields.response, ',');
  }
}

}  // namespace

int main(int argc, char** argv) {
  PrepareOptions options;
  options.unit_bytes = 20000;
  options.shard_bytes = 400000;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string::npos) return 2;
    set(options, argument.substr(0, equals), argument.substr(equals + 1));
  }
  try {
    const auto fs = make_posix_file_system();
    const PrepareReport report = prepare_dataset(*fs, options);
    verify_dataset(*fs, options.output, 2);
    std::printf("%s\n", nlohmann::json({{"documents", report.num_documents},
                                        {"tokens", report.num_tokens},
                                        {"trained", report.num_trained_tokens},
                                        {"padding", report.num_padding_tokens},
                                        {"cut", report.num_cut_documents},
                                        {"dropped", report.num_dropped_documents},
                                        {"skipped", report.num_skipped_lines}})
                            .dump()
                            .c_str());
  } catch (const Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return exit_code(error.kind());
  }
  return 0;
}
