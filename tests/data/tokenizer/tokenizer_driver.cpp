// The tokenizer as a program of its own that links neither torch nor MPI: what the comparison with other
// libraries runs. Usage: tokenizer_driver encode|decode TOKENIZER [--no-special]    standard input and output
// as `hearth data encode`
#include <cstdio>
#include <iostream>
#include <string>

#include "base/error.h"
#include "base/file_system.h"
#include "data/tokenizer/json_lines.h"

int main(int argc, char** argv) {
  using namespace hearth;
  std::ios::sync_with_stdio(false);
  const std::string verb = argc > 1 ? argv[1] : "";
  const bool no_special = argc > 3 && std::string(argv[3]) == "--no-special";
  if (argc < 3 || (verb != "encode" && verb != "decode")) {
    std::fprintf(stderr, "usage: tokenizer_driver encode|decode TOKENIZER [--no-special]\n");
    return 2;
  }
  try {
    const auto fs = make_posix_file_system();
    const auto tokenizer = Tokenizer::load(*fs, argv[2]);
    if (verb == "encode") {
      encode_lines(*tokenizer, no_special ? SpecialTokens::Skip : SpecialTokens::Add, std::cin, std::cout);
    } else {
      decode_lines(*tokenizer, no_special ? DecodeSpecial::Skip : DecodeSpecial::Keep, std::cin, std::cout);
    }
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return exit_code(error.kind());
  }
}
