// The tokenizer as a program of its own that links neither torch nor MPI: what the comparison with other
// libraries runs. Usage: tokenizer_driver encode|decode TOKENIZER [--no-special]    standard input and output
// as `hearth data encode`
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file_system.h"
#include "data/tokenizer/json_lines.h"
#include "data/train_tokenizer.h"

using namespace hearth;

namespace {

void write_export(FileSystem& fs, const std::string& tokenizer, const std::string& output) {
  fs.create_directories(output);
  for (const auto& [name, bytes] : Tokenizer::load(fs, tokenizer)->export_files())
    fs.write_atomically(output + "/" + name, bytes);
}

void train(FileSystem& fs, const std::vector<std::string>& args) {
  TrainTokenizerOptions options;
  options.training.vocab_size = std::stoll(args.at(1));
  options.output = args.at(2);
  options.num_workers = std::stoi(args.at(3));
  options.inputs.assign(args.begin() + 4, args.end());
  std::cout << train_tokenizer(fs, options).vocab_size << "\n";
}

void run(const std::vector<std::string>& args) {
  const auto fs = make_posix_file_system();
  const bool no_special = args.back() == "--no-special";
  if (args.at(0) == "train") return train(*fs, args);
  if (args.at(0) == "export") return write_export(*fs, args.at(1), args.at(2));
  const auto tokenizer = Tokenizer::load(*fs, args.at(1));
  if (args.at(0) == "encode") {
    encode_lines(*tokenizer, no_special ? SpecialTokens::Skip : SpecialTokens::Add, std::cin, std::cout);
  } else {
    decode_lines(*tokenizer, no_special ? DecodeSpecial::Skip : DecodeSpecial::Keep, std::cin, std::cout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  try {
    run(std::vector<std::string>(argv + 1, argv + argc));
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return exit_code(error.kind());
  } catch (const std::exception& error) {  // a wrong argument of the test itself
    std::fprintf(stderr, "tokenizer_driver: %s\n", error.what());
    return 1;
  }
}
