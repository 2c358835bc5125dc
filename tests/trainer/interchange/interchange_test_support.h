// Shared by the tests of import and export: files, Python, and errors that must mention something.
#pragma once

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <fstream>
#include <string>

#include "base/error.h"
#include "base/file_system.h"
#include "tests/trainer/checkpoint/temp_folder.h"
#include "trainer/checkpoint/tensor_source.h"

namespace hearth::testing {

inline FileSystem& fs() {
  static const std::unique_ptr<FileSystem> files = make_posix_file_system();
  return *files;
}

inline void write_file(const std::string& path, const std::string& content) {
  std::ofstream out(path, std::ios::binary);
  out << content;
  BOOST_REQUIRE_MESSAGE(out.good(), "cannot write " << path);
}

// "parity/make_models.py" -> its path, for run_python.
inline std::string script(const std::string& below_tests) {
  return HEARTH_SOURCE_DIR "/tests/" + below_tests;
}

// Runs $HEARTH_PYTHON with `arguments` (a shell line); the test fails where it is not set or ends with an
// error.
inline void run_python(const std::string& arguments) {
  const char* python = std::getenv("HEARTH_PYTHON");
  BOOST_REQUIRE_MESSAGE(python != nullptr, "HEARTH_PYTHON must name the Python of tests/run.sh");
  const std::string command = std::string(python) + " " + arguments;
  BOOST_REQUIRE_MESSAGE(std::system(command.c_str()) == 0, "failed: " << command);
}

// `work` must throw an Error of `kind` whose text holds `mention`.
template <class Work>
void check_error(ErrorKind kind, const std::string& mention, const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    BOOST_TEST(std::string(name(error.kind())) == std::string(name(kind)), error.what());
    BOOST_TEST(std::string(error.what()).find(mention) != std::string::npos,
               "'" << error.what() << "' does not mention '" << mention << "'");
    return;
  }
  BOOST_TEST(false, "no error; expected one that mentions '" << mention << "'");
}

inline std::vector<float> read_fp32(const TensorSource& source, const std::string& name) {
  const int64_t count = source.info(name).numel();
  std::vector<float> values(static_cast<size_t>(count));
  source.read_elements(name, 0, count, DType::F32, values.data());
  return values;
}

// The stored bytes of a tensor.
inline std::vector<std::byte> read_stored(const TensorSource& source, const std::string& name) {
  const TensorInfo& info = source.info(name);
  std::vector<std::byte> bytes(static_cast<size_t>(info.numel() * size_bytes(info.dtype)));
  source.read_elements(name, 0, info.numel(), info.dtype, bytes.data());
  return bytes;
}

}  // namespace hearth::testing
