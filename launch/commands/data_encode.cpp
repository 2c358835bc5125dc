// hearth data encode: one JSON string a line on standard input, one JSON array of token ids a line on
// standard output.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "data/tokenizer/json_lines.h"
#include "launch/command.h"
#include "launch/commands/commands.h"

namespace hearth {
namespace {

struct EncodeOptions {
  std::string tokenizer;
  bool no_special = false;
};

}  // namespace

void add_data_encode_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<EncodeOptions>();
  CLI::App* command = parent.add_subcommand(
      "encode",
      "Text to token ids: standard input has one JSON string a line, standard output one array of ids");
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "tokenizer.json, tokenizer.model, or a directory with one")
      ->required();
  command->add_flag("--no-special", options->no_special,
                    "Leave out what the tokenizer's post-processor adds (BOS, EOS)");
  command->callback([options, &context] {
    std::ios::sync_with_stdio(false);  // nothing of this verb uses C streams
    const auto tokenizer = Tokenizer::load(context.fs, options->tokenizer);
    encode_lines(*tokenizer, options->no_special ? SpecialTokens::Skip : SpecialTokens::Add, std::cin,
                 std::cout);
  });
}

}  // namespace hearth
