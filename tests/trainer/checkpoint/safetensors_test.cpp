// safetensors.h: what is written is read back by range, and a malformed header is refused with a reason.
#include "trainer/checkpoint/safetensors.h"

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <numeric>

#include "base/error.h"
#include "base/rng.h"
#include "tests/trainer/checkpoint/temp_folder.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;

namespace {

std::string with_length(const std::string& header) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>((header.size() >> (8 * i)) & 0xff);
  return text + header;
}

// The message of the error, or "" where the file was accepted.
std::string refusal(FileSystem& fs, const std::string& path, const std::string& bytes) {
  const auto file = fs.create(path, CreateMode::Truncate);
  file->write(bytes);
  file->close();
  try {
    SafetensorsFile opened(fs, path);
  } catch (const Error& error) {
    BOOST_TEST((error.kind() == ErrorKind::BadInput));
    return error.message();
  }
  return "";
}

struct BadHeader {
  std::string header, data, reason;
};
std::ostream& operator<<(std::ostream& out, const BadHeader& bad) {
  return out << bad.header.substr(0, 100);
}

const std::string kDeep = "{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}";
const std::vector<BadHeader> kBadHeaders{
    {"{", "", "unexpected end of input"},
    {"[]", "", "does not start with"},
    {" {}", "", "does not start with"},
    {"{} x", "", "byte"},
    {kDeep, "", "nested deeper than 64"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
     "abcd", "duplicate key"},
    {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "abcd", "shape and dtype say 8"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "abcdabcd", "belong to no tensor"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abcde", "1 bytes behind"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abc", "leave the 3 data bytes"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "abcd", "leave the 4 data bytes"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
     "abcdef", "overlaps"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
     "abcd", "overlaps"},
    {R"({"a":{"dtype":"F32","shape":[9223372036854775807,3],"data_offsets":[0,4]}})", "abcd",
     "more elements than fit"},
    {R"({"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})", "abcd", "overflows"},
    {R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}})", "abcd",
     "non-negative integer"},
    {R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", "abcd",
     "non-negative integer"},
    {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "abcd", "non-negative integer"},
    {R"({"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}})", "abcd", "non-negative integer"},
    {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", "abcd", "non-negative integer"},
    {R"({"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}})", "abcd", "byte"},
    {R"({"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", "abcd", "at most 8"},
    {R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", "abcd", "dtype \"F33\""},
    {R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", "abcd", "dtype 7"},
    {R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", "abcd", "array"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", "abcd", "[begin, end]"},
    {R"({"a":{"dtype":"F32","shape":[1]}})", "abcd", "exactly dtype"},
    {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", "abcd", "exactly dtype"},
    {R"({"a":3})", "", "exactly dtype"},
    {R"({"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abcd", "name of 0 bytes"},
    {R"({"a\u0000":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abcd", "NUL"},
    {"{\"" + std::string(513, 'n') + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abcd",
     "513 bytes"},
    {"{\"\xff\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", "abcd", "UTF-8"},
    {R"({"__metadata__":{"a":1}})", "", "must be a string"},
    {R"({"__metadata__":[]})", "", "object of strings"},
};

}  // namespace

BOOST_AUTO_TEST_CASE(writer_and_reader_agree) {
  TempFolder temp;
  const auto fs = make_posix_file_system();
  std::vector<TensorInfo> tensors{
      {"half", DType::BF16, {3}}, {"empty", DType::F32, {0, 5}}, {"w", DType::F32, {4, 5}}};
  BOOST_CHECK_THROW(SafetensorsWriter(*fs, temp / "unaligned", CreateMode::Truncate, tensors), Error);
  sort_for_alignment(tensors);
  SafetensorsWriter writer(*fs, temp / "a.safetensors", CreateMode::Exclusive, tensors, {{"format", "pt"}});
  std::vector<float> w(20);
  std::iota(w.begin(), w.end(), 0.5f);
  const std::vector<uint16_t> half{float_to_bf16(1.f), float_to_bf16(-2.f), float_to_bf16(3.f)};
  const auto bytes = std::as_bytes(std::span(w));
  writer.append(bytes.first(7));
  writer.append(bytes.subspan(7));
  BOOST_CHECK_THROW(writer.sync(), Error);  // the last tensor is missing
  writer.append(std::as_bytes(std::span(half)));
  writer.sync();
  writer.close();
  BOOST_TEST(writer.digest() == xxh3_128_hex(fs->read_text(temp / "a.safetensors")));

  const SafetensorsFile file(*fs, temp / "a.safetensors");
  BOOST_TEST(file.metadata().at("format") == "pt");
  BOOST_REQUIRE(file.find("w") != nullptr);
  BOOST_TEST((file.find("w")->info == tensors[1]));
  BOOST_TEST(file.find("absent") == nullptr);
  std::vector<float> part(3);
  file.read_elements(*file.find("w"), 7, 10, DType::F32, part.data());
  BOOST_TEST(part == std::vector<float>({7.5f, 8.5f, 9.5f}));
  file.read_elements(*file.find("half"), 0, 3, DType::F32, part.data());
  BOOST_TEST(part == std::vector<float>({1.f, -2.f, 3.f}));
  BOOST_CHECK_THROW(file.read_elements(*file.find("w"), 7, 21, DType::F32, part.data()), Error);
}

BOOST_DATA_TEST_CASE(bad_header_is_refused_with_its_reason, bdata::make(kBadHeaders), bad) {
  TempFolder temp;
  const auto fs = make_posix_file_system();
  const auto message = refusal(*fs, temp / "bad.safetensors", with_length(bad.header) + bad.data);
  BOOST_TEST(message.find(bad.reason) != std::string::npos, "got: " << message);
}

BOOST_AUTO_TEST_CASE(absurd_header_lengths_are_refused_before_any_allocation) {
  TempFolder temp;
  const auto fs = make_posix_file_system();
  for (const uint64_t length : {uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}, uint64_t{9}}) {
    std::string text;
    for (int i = 0; i < 8; ++i) text += static_cast<char>((length >> (8 * i)) & 0xff);
    BOOST_TEST(refusal(*fs, temp / "bad", text + "{}").find("header of") != std::string::npos);
  }
  BOOST_TEST(refusal(*fs, temp / "bad", "1234567").find("at least 8") != std::string::npos);
}

// Any flipped byte or truncation of a valid file is refused, or changes only tensor bytes, names or padding:
// accepted implies the invariants that the header promises.
BOOST_AUTO_TEST_CASE(damage_is_refused_or_leaves_the_invariants) {
  TempFolder temp;
  const auto fs = make_posix_file_system();
  const std::string good =
      with_length(R"({"ab":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}} )") + "12345678";
  BOOST_TEST(refusal(*fs, temp / "x", good) == "");
  for (size_t cut = 0; cut < good.size(); ++cut)
    BOOST_TEST(refusal(*fs, temp / "x", good.substr(0, cut)) != "");
  const CounterRng rng(20240607, "flips");
  for (size_t i = 0; i < good.size(); ++i) {
    for (uint64_t k = 0; k < 6; ++k) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ static_cast<char>(1 + rng.bits(i * 8 + k) % 255));
      if (refusal(*fs, temp / "x", bad) != "") continue;
      const SafetensorsFile file(*fs, temp / "x");
      for (const auto& entry : file.entries()) {
        BOOST_TEST(entry.bytes == entry.info.numel() * size_bytes(entry.info.dtype));
        BOOST_TEST(entry.offset + entry.bytes <= static_cast<int64_t>(bad.size()));
      }
    }
  }
}

BOOST_AUTO_TEST_CASE(python_safetensors_reads_what_we_write_and_we_read_what_it_writes) {
  const char* python = std::getenv("HEARTH_PYTHON");
  if (python == nullptr) {
    BOOST_TEST_MESSAGE("HEARTH_PYTHON is not set: skipped");
    return;
  }
  TempFolder temp;
  const auto fs = make_posix_file_system();
  const std::vector<TensorInfo> tensors{
      {"w", DType::F32, {2, 3}}, {"s", DType::I64, {}}, {"h", DType::BF16, {1, 2}}};
  auto sorted = tensors;
  sort_for_alignment(sorted);  // s, w, h
  SafetensorsWriter writer(*fs, temp / "ours.safetensors", CreateMode::Truncate, sorted, {{"format", "pt"}});
  const int64_t s = -7;
  const std::vector<float> w{0, 1, 2, 3, 4, 5};
  const std::vector<uint16_t> h{float_to_bf16(0.5f), float_to_bf16(-8.f)};
  writer.append(std::as_bytes(std::span(&s, 1)));
  writer.append(std::as_bytes(std::span(w)));
  writer.append(std::as_bytes(std::span(h)));
  writer.sync();
  writer.close();
  const auto script = fs->create(temp / "check.py", CreateMode::Truncate);
  script->write(R"(import sys, torch
from safetensors.torch import load_file, save_file
t = load_file(sys.argv[1])
assert sorted(t) == ['h', 's', 'w'], sorted(t)
assert t['w'].dtype == torch.float32 and t['w'].tolist() == [[0, 1, 2], [3, 4, 5]]
assert t['s'].dtype == torch.int64 and t['s'].item() == -7
assert t['h'].dtype == torch.bfloat16 and t['h'].tolist() == [[0.5, -8.0]]
save_file({'x': torch.arange(6.).reshape(2, 3), 'b': torch.ones(3, dtype=torch.bfloat16)}, sys.argv[2])
)");
  script->close();
  const std::string command = std::string(python) + " " + (temp / "check.py") + " " +
                              (temp / "ours.safetensors") + " " + (temp / "theirs.safetensors");
  BOOST_REQUIRE(std::system(command.c_str()) == 0);
  const SafetensorsFile theirs(*fs, temp / "theirs.safetensors");
  BOOST_REQUIRE(theirs.find("x") != nullptr);
  std::vector<float> x(6);
  theirs.read_elements(*theirs.find("x"), 0, 6, DType::F32, x.data());
  BOOST_TEST(x == std::vector<float>({0, 1, 2, 3, 4, 5}));
}
