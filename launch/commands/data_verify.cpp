// hearth data verify DIR: every digest, every token id. Trouble is Error{BadInput}: exit code 4.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "data/prepare.h"
#include "launch/command.h"
#include "launch/commands/commands.h"

namespace hearth {
namespace {

struct VerifyOptions {
  std::string directory;
  int num_workers = 0;
};

}  // namespace

void add_data_verify_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* command = parent.add_subcommand(
      "verify", "Check every digest and token id of a dataset; exit 4 names the shard and block");
  command
      ->add_option("directory", options->directory,
                   "Folder with dataset.json, or with train/ and validation/")
      ->required();
  command->add_option("--workers", options->num_workers, "Threads (default: all cores)")
      ->check(CLI::Range(1, 4096));
  command->callback([options, &context] {
    const VerifyReport report = verify_dataset(context.fs, options->directory, options->num_workers);
    std::cout << fmt::format("{}: {} shards, {} documents, {} tokens, {} bytes: all digests match\n",
                             options->directory, report.num_shards, report.num_documents, report.num_tokens,
                             report.size_bytes);
  });
}

}  // namespace hearth
