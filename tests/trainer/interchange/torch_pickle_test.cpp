#include "trainer/interchange/torch_pickle.h"

#include <boost/test/unit_test.hpp>
#include <cstring>
#include <random>

#include "tests/trainer/interchange/interchange_test_support.h"
#include "trainer/checkpoint/safetensors.h"

using namespace hearth;
using namespace hearth::testing;

namespace {

struct Made {
  TempFolder folder;
  Made() { run_python(script("trainer/interchange/make_pickles.py") + " " + folder.path()); }
};
std::string made(const std::string& name) {
  static const Made files;
  return files.folder / name;
}

void refuse(const std::string& pickle, const std::string& mention) {
  check_error(ErrorKind::BadInput, mention, [&] { read_pickled_tensors(pickle, "test"); });
}

}  // namespace

BOOST_AUTO_TEST_CASE(tensors_equal_what_torch_saved) {
  const auto got = open_torch_file(fs(), made("good.bin"));
  const SafetensorsFile want(fs(), made("good.safetensors"));
  BOOST_TEST(got->tensors().size() == want.entries().size());
  for (const SafetensorsEntry& entry : want.entries()) {
    BOOST_REQUIRE_MESSAGE(got->contains(entry.info.name), entry.info.name);
    BOOST_TEST((got->info(entry.info.name) == entry.info), entry.info.name);
    std::vector<std::byte> bytes(static_cast<size_t>(entry.bytes));
    want.read_elements(entry, 0, entry.info.numel(), entry.info.dtype, bytes.data());
    BOOST_TEST((read_stored(*got, entry.info.name) == bytes), entry.info.name);
  }
}

BOOST_AUTO_TEST_CASE(hostile_and_unusual_files_are_refused_by_name) {
  const auto refuse_file = [](const std::string& name, const std::string& mention) {
    check_error(ErrorKind::BadInput, mention, [&] { open_torch_file(fs(), made(name)); });
  };
  refuse_file("bad_call.bin", "system");  // posix.system
  BOOST_TEST(!fs().exists(made("pwned")));
  refuse_file("bad_transposed.bin", "row-major");
  refuse_file("bad_nested.bin", "'state_dict'");
  refuse_file("bad_legacy.bin", "zip");
  refuse_file("bad_storage.bin", "wrong size");
  refuse_file("bad_compressed.bin", "compressed");
}

BOOST_AUTO_TEST_CASE(damaged_archives_never_do_worse_than_an_error) {
  const TempFolder folder;
  const std::string whole = fs().read_text(made("good.bin")), path = folder / "cut.bin";
  for (size_t length = 0; length < whole.size(); length += 37) {
    write_file(path, whole.substr(0, length));
    check_error(ErrorKind::BadInput, "", [&] { open_torch_file(fs(), path); });
  }
  std::mt19937_64 random(21);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = whole;
    for (int flips = 0; flips <= i % 3; ++flips) bytes[random() % whole.size()] = static_cast<char>(random());
    write_file(path, bytes);
    try {
      const auto source = open_torch_file(fs(), path);
      for (const TensorInfo& info : source->tensors()) read_stored(*source, info.name);
    } catch (const Error& error) {
      BOOST_TEST((error.kind() == ErrorKind::BadInput), error.what());
    }
  }
}

BOOST_AUTO_TEST_CASE(malformed_pickles) {
  refuse("", "cut off");
  refuse(".", "wrong stack");
  refuse("\x80\x09.", "protocol");
  refuse("N.", "not a dict");
  refuse(
      "}K\x01N"
      "s.",
      "entry 0 is not a named tensor");
  refuse("0.", "0x30");
  refuse("cos\nsystem\n.", "os.system");
  refuse("cbuiltins\neval\n.", "builtins.eval");
  refuse("ctorch\nload\n.", "torch.load");
  refuse("s.", "empty stack");
  refuse("(u.", "empty stack");
  refuse("u.", "no mark");
  refuse("h\x05.", "recalls");
  refuse("NNs.", "empty stack");
  refuse("NNNs.", "wrong container");
  refuse("NQ.", "persistent id");
  refuse("N)R.", "not a function");
  refuse("ctorch\nFloatStorage\n)R.", "calls a storage type");
  refuse("ctorch._utils\n_rebuild_tensor_v2\n)R.", "no storage");
  refuse("ctorch._utils\n_rebuild_parameter\n)R.", "no tensor");
  refuse("X\xff\xff\xff\xff.", "cut off");
  refuse("N)b.", "not a dict");
  // A million nested tuples, and a dict that holds itself: no recursion, no leak, a plain refusal.
  refuse("N" + std::string(1'000'000, '\x85') + ".", "not a dict");
  refuse(std::string("}q\x00h\x00h\x00s.", 9), "entry 0");
  refuse("]" + std::string(5'000'000, ']') + ".", "too many values");
}

BOOST_AUTO_TEST_CASE(random_bytes_are_refused) {
  std::mt19937_64 random(22);
  const std::string alphabet =
      "}]()NqrhjJKMXtsuaeRQbc.\x80\x85\x86\x87\x88\x8a\x8c\x94\n" + std::string("torch\0\1\2", 8);
  for (int i = 0; i < 20000; ++i) {
    std::string pickle;
    for (size_t n = random() % 40; n > 0; --n) pickle += alphabet[random() % alphabet.size()];
    try {
      read_pickled_tensors(pickle + ".", "test");
    } catch (const Error& error) {
      BOOST_TEST((error.kind() == ErrorKind::BadInput), error.what());
    }
  }
}
