// hearth data decode: one JSON array of token ids a line on standard input, one JSON string a line on
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

struct DecodeOptions {
  std::string tokenizer;
  bool no_special = false;
};

}  // namespace

void add_data_decode_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<DecodeOptions>();
  CLI::App* command = parent.add_subcommand(
      "decode",
      "Token ids to text: standard input has one JSON array of ids a line, standard output one JSON string");
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "tokenizer.json, tokenizer.model, or a directory with one")
      ->required();
  command->add_flag("--no-special", options->no_special, "Leave special tokens out of the text");
  command->callback([options, &context] {
    std::ios::sync_with_stdio(false);  // nothing of this verb uses C streams
    const auto tokenizer = Tokenizer::load(context.fs, options->tokenizer);
    decode_lines(*tokenizer, options->no_special ? DecodeSpecial::Skip : DecodeSpecial::Keep, std::cin,
                 std::cout);
  });
}

}  // namespace hearth
