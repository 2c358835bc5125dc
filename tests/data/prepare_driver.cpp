// prepare_driver TOKENIZER OUTPUT INPUT...: `data prepare` for tests that run in Python. Writes a validation
// split of 0.2.
#include <cstdio>

#include "base/error.h"
#include "data/prepare.h"

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  hearth::PrepareOptions options;
  options.tokenizer = argv[1];
  options.output = argv[2];
  options.inputs.assign(argv + 3, argv + argc);
  options.validation_fraction = 0.2;
  options.unit_bytes = 20000;
  options.shard_bytes = 100000;
  try {
    const auto fs = hearth::make_posix_file_system();
    hearth::prepare_dataset(*fs, options);
    hearth::verify_dataset(*fs, options.output, 2);
  } catch (const hearth::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return hearth::exit_code(error.kind());
  }
  return 0;
}
