// data/shard, shard_layout, dataset: what is written reads back, and each kind of damage is one clear error.
#include "data/shard.h"

#include <hdf5.h>

#include <array>

#include "data/hdf5_handle.h"
#include "data/json_object.h"
#include "data/shard_layout.h"
#include "data/token_file.h"
#include "tests/data/data_fixture.h"

using namespace hearth;
using namespace hearth::testing;
using nlohmann::json;

namespace {

struct Fixture {
  TempFolder folder;
  std::unique_ptr<FileSystem> fs = make_posix_file_system();
  std::vector<std::vector<int32_t>> documents = some_documents(8000, 3);  // above two blocks of 64 KiB
  std::string directory = folder / "d", shard_path = folder / "d/shard-0.h5",
              manifest_path = folder / "d/dataset.json";

  Fixture() { write_dataset(*fs, directory, {documents}); }

  json manifest() const { return json::parse(read_file(manifest_path)); }
  void change_manifest(const std::function<void(json&)>& change) {
    json text = manifest();
    change(text);
    write_file(manifest_path, text.dump());
  }
  void flip(int64_t offset) {
    std::string bytes = read_file(shard_path);
    bytes.at(static_cast<size_t>(offset)) ^= 1;
    write_file(shard_path, bytes);
  }
  void verify() { Dataset::open(*fs, directory)->shard(0).verify_all(); }
};

// Makes a shard-like HDF5 file in which one thing is wrong, and reads its layout.
struct BadShard {
  hid_t tokens_type = H5T_STD_U16LE;
  hsize_t chunk = 0;
  const char* external = nullptr;
  bool deflate = false, fletcher = false, two_dims = false, unknown_dataset = false, soft_link = false,
       external_link = false, missing_attribute = false, vlen_attribute = false, compact = false;
};

void write_bad_shard(const std::string& path, const BadShard& bad) {
  require_hdf5();
  const Hdf5Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
  const Hdf5Handle group(H5Gcreate2(file.get(), "documents", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                         H5Gclose);
  const auto make = [&](const char* name, hid_t type, std::vector<hsize_t> dims, hid_t plist) {
    const Hdf5Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose);
    const Hdf5Handle data(H5Dcreate2(file.get(), name, type, space.get(), H5P_DEFAULT, plist, H5P_DEFAULT),
                          H5Dclose);
    BOOST_REQUIRE(data.valid());
    size_t size = H5Tget_size(type);
    for (const auto dim : dims) size *= dim;
    const std::vector<char> zeros(size);
    H5Dwrite(data.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros.data());
  };
  const Hdf5Handle plist(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  if (bad.chunk > 0) H5Pset_chunk(plist.get(), 1, &bad.chunk);
  if (bad.deflate) H5Pset_deflate(plist.get(), 6);
  if (bad.fletcher) H5Pset_fletcher32(plist.get());
  if (bad.compact) H5Pset_layout(plist.get(), H5D_COMPACT);
  if (bad.external != nullptr) H5Pset_external(plist.get(), bad.external, 0, 2000);
  make("tokens", bad.tokens_type, bad.two_dims ? std::vector<hsize_t>{10, 100} : std::vector<hsize_t>{1000},
       plist.get());
  make("documents/offset", H5T_STD_U64LE, {2}, H5P_DEFAULT);
  make("block_digest", H5T_STD_U64LE, {1}, H5P_DEFAULT);
  if (bad.unknown_dataset) make("extra", H5T_STD_U8LE, {4}, H5P_DEFAULT);
  if (bad.soft_link) H5Lcreate_soft("/tokens", file.get(), "loss_mask", H5P_DEFAULT, H5P_DEFAULT);
  if (bad.external_link)
    H5Lcreate_external("/etc/passwd", "/x", file.get(), "loss_mask", H5P_DEFAULT, H5P_DEFAULT);
  const Hdf5Handle scalar(H5Screate(H5S_SCALAR), H5Sclose), text(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(text.get(), bad.vlen_attribute ? H5T_VARIABLE : 33);
  for (const char* name : {"format_version", "vocab_size", "eos_id", "tokenizer_digest", "source_digest"}) {
    const bool is_text = std::string_view(name).ends_with("digest");
    if (bad.missing_attribute && std::string_view(name) == "eos_id") continue;
    const Hdf5Handle attribute(H5Acreate2(file.get(), name, is_text ? text.get() : H5T_STD_I64LE,
                                          scalar.get(), H5P_DEFAULT, H5P_DEFAULT),
                               H5Aclose);
  }
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(documents_read_back, Fixture) {
  const auto dataset = Dataset::open(*fs, directory);
  BOOST_TEST(dataset->num_documents() == 8000);
  BOOST_TEST(dataset->shard(0).num_blocks() >= 3);
  BOOST_TEST(*dataset->eos_id() == 999);
  int64_t position = 0;
  for (int64_t i = 0; i < 8000; ++i) {
    const auto& want = documents[static_cast<size_t>(i)];
    BOOST_REQUIRE(dataset->document(i) == want);
    const auto starts = dataset->shard(0).boundaries(position, static_cast<int64_t>(want.size()));
    BOOST_REQUIRE(starts == std::vector<int32_t>{0});
    position += static_cast<int64_t>(want.size());
  }
  std::vector<int32_t> across(40000);  // spans blocks
  dataset->shard(0).read_tokens(20000, across);
  verify();
  BOOST_TEST(manifest_to_json(manifest_from_json(read_file(manifest_path), "m")) == read_file(manifest_path));
}

BOOST_FIXTURE_TEST_CASE(equal_tokens_give_equal_bytes, Fixture) {
  sleep(1);  // a time stamp in the file would now differ (HDF5 keeps whole seconds)
  write_dataset(*fs, folder / "e", {documents});
  BOOST_TEST(read_file(folder / "e/shard-0.h5") == read_file(shard_path));
  BOOST_TEST(read_file(folder / "e/dataset.json") == read_file(manifest_path));
}

BOOST_FIXTURE_TEST_CASE(a_flipped_token_byte_names_shard_and_block, Fixture) {
  const int64_t tokens = manifest()["shards"][0]["tokens"]["offset"];
  flip(tokens + 70000);
  const auto dataset = Dataset::open(*fs, directory);  // start-up does not read tokens
  std::vector<int32_t> out(10);
  dataset->shard(0).read_tokens(0, out);  // another block
  for (int i = 0; i < 2; ++i) {           // a second read must fail too
    check_fails(ErrorKind::BadInput, {"shard-0.h5", "block 1"},
                [&] { dataset->shard(0).read_tokens(40000, out); });
  }
  check_fails(ErrorKind::BadInput, {"shard-0.h5", "block 1"}, [&] { verify(); });
}

BOOST_FIXTURE_TEST_CASE(every_flipped_byte_is_found, Fixture) {
  const std::string good = read_file(shard_path);
  const int64_t size = static_cast<int64_t>(good.size());
  for (int64_t i = 0; i < 120; ++i) {
    const int64_t offset = (i * 7919 * 131 + (i < 60 ? i * 8 : 0)) % (i < 60 ? 4096 : size);
    flip(offset);
    check_fails(ErrorKind::BadInput, {"shard-0.h5"}, [&] { verify(); });
    write_file(shard_path, good);
  }
  verify();
}

BOOST_FIXTURE_TEST_CASE(a_flipped_boundary_is_found, Fixture) {
  flip(manifest()["shards"][0]["documents"]["offset"].get<int64_t>() + 8 * 700);
  const auto dataset = Dataset::open(*fs, directory);
  check_fails(ErrorKind::BadInput, {"shard-0.h5"}, [&] { dataset->document(3); });
}

BOOST_FIXTURE_TEST_CASE(a_truncated_shard_is_refused, Fixture) {
  const std::string good = read_file(shard_path);
  for (const size_t size : {size_t{0}, size_t{7}, size_t{512}, good.size() / 2, good.size() - 1}) {
    write_file(shard_path, good.substr(0, size));
    check_fails(ErrorKind::BadInput, {"shard-0.h5", std::to_string(size)},
                [&] { Dataset::open(*fs, directory); });
    check_fails(ErrorKind::BadInput, {"shard-0.h5"},
                [&] { read_shard_layout(shard_path, static_cast<int64_t>(size)); });
  }
}

BOOST_FIXTURE_TEST_CASE(missing_and_foreign_shards_are_refused, Fixture) {
  std::filesystem::rename(shard_path, folder / "elsewhere.h5");
  check_fails(ErrorKind::BadInput, {"shard-0.h5", "missing"}, [&] { Dataset::open(*fs, directory); });
  std::filesystem::create_symlink(folder / "elsewhere.h5", shard_path);
  check_fails(ErrorKind::BadInput, {"shard-0.h5", "link"}, [&] { Dataset::open(*fs, directory); });
  for (const char* file : {"../elsewhere.h5", "/etc/passwd", "a/b.h5", "..", "", ".hidden", "a\\b", "x\ny"}) {
    change_manifest([&](json& m) { m["shards"][0]["file"] = file; });
    check_fails(ErrorKind::BadInput, {"dataset.json", "plain file name"},
                [&] { Dataset::open(*fs, directory); });
  }
}

BOOST_FIXTURE_TEST_CASE(a_lying_manifest_is_refused, Fixture) {
  const std::string good = read_file(manifest_path);
  const std::vector<std::function<void(json&)>> changes{
      [](json& m) { m["version"] = 2; },
      [](json& m) { m["format"] = "other"; },
      [](json& m) { m["surprise"] = 1; },
      [](json& m) { m.erase("eos_id"); },
      [](json& m) { m["vocab_size"] = -5; },
      [](json& m) { m["vocab_size"] = 1u << 30; },
      [](json& m) { m["vocab_size"] = 1e300; },
      [](json& m) { m["num_tokens"] = m["num_tokens"].get<int64_t>() + 1; },
      [](json& m) {
        m["shards"] = json::array();
        m["num_tokens"] = 0;
        m["num_documents"] = 0;
      },
      [](json& m) { m["shards"].push_back(m["shards"][0]); },
      [](json& m) { m["shards"][0]["num_tokens"] = INT64_MAX; },
      [](json& m) { m["shards"][0]["size_bytes"] = 5; },
      [](json& m) { m["shards"][0]["digest"] = "zz"; },
      [](json& m) { m["shards"][0]["metadata_digest"] = std::string(32, '0'); },
      [](json& m) { m["shards"][0]["tokens"]["offset"] = 0; },
      [](json& m) { m["shards"][0]["tokens"]["offset"] = -1; },
      [](json& m) { m["shards"][0]["tokens"]["offset"] = 1 << 29; },
      [](json& m) { m["shards"][0]["token_dtype"] = "int8"; },
      [](json& m) {
        m["shards"][0]["loss_mask"] = {{"offset", 0}, {"size_bytes", 10}};
      }};
  for (size_t i = 0; i < changes.size(); ++i) {
    BOOST_TEST_CONTEXT("change " << i) {
      write_file(manifest_path, good);
      change_manifest(changes[i]);
      check_fails(ErrorKind::BadInput, {directory}, [&] { Dataset::open(*fs, directory); });
    }
  }
  for (const auto& text :
       {std::string(), std::string("{"), std::string(100000, '['), std::string("\xff\xfe"), good + "x"}) {
    write_file(manifest_path, text);
    check_fails(ErrorKind::BadInput, {"dataset.json"}, [&] { Dataset::open(*fs, directory); });
  }
}

BOOST_FIXTURE_TEST_CASE(wrong_digests_and_vocabularies_are_found, Fixture) {
  const std::string good = read_file(manifest_path);
  change_manifest([](json& m) { m["shards"][0]["digest"] = std::string(32, 'a'); });
  check_fails(ErrorKind::BadInput, {"shard-0.h5", "digest"}, [&] { verify(); });
  write_file(manifest_path, good);
  change_manifest([](json& m) { m["tokenizer_digest"] = std::string(32, 'a'); });
  check_fails(ErrorKind::BadInput, {"shard-0.h5", "tokenizer"}, [&] { verify(); });
}

// The writer cannot write such an id, so the file is forged: all digests fit, the vocabulary does not.
BOOST_FIXTURE_TEST_CASE(an_id_beyond_the_vocabulary_names_shard_and_block, Fixture) {
  ShardAttributes attributes{1, std::string(32, '1'), 2000, 999, ""};
  ShardInfo info;
  {
    std::vector<int32_t> tokens(40000, 5);
    tokens[33000] = 1500;
    ShardWriter writer(*fs, {.directory = directory,
                             .file = "forged.h5",
                             .attributes = attributes,
                             .document_offsets = {0, 40000}});
    writer.append(tokens);
    info = writer.finish();
  }
  OpenFiles files(*fs);
  Shard::open(files, directory, info, attributes)->verify_all();
  attributes.vocab_size = 1000;
  check_fails(ErrorKind::BadInput, {"forged.h5", "vocabulary 2000"},
              [&] { Shard::open(files, directory, info, attributes)->verify_all(); });
  const std::string path = directory + "/forged.h5";
  {
    const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose);
    const Hdf5Handle attribute(H5Aopen(file.get(), "vocab_size", H5P_DEFAULT), H5Aclose);
    BOOST_REQUIRE(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &attributes.vocab_size) >= 0);
  }
  info.metadata_digest = shard_metadata_digest(*fs->open(path), info, path);
  info.digest = file_digest(*fs->open(path));
  const auto shard = Shard::open(files, directory, info, attributes);
  std::vector<int32_t> out(100);
  shard->read_tokens(0, out);
  for (int i = 0; i < 2; ++i) {
    check_fails(ErrorKind::BadInput, {"forged.h5", "block 1", "33000", "1500"},
                [&] { shard->read_tokens(32950, out); });
  }
  check_fails(ErrorKind::BadInput, {"forged.h5", "block 1", "1500"}, [&] { shard->verify_all(); });
}

BOOST_FIXTURE_TEST_CASE(layouts_that_are_not_ours_are_refused, Fixture) {
  const std::string path = folder / "bad.h5", raw = folder / "raw.bin";
  write_file(raw, std::string(2000, '\0'));
  const std::vector<std::pair<BadShard, std::string>> cases{
      {{.tokens_type = H5T_STD_I16LE}, "uint16 or uint32"},
      {{.tokens_type = H5T_STD_U16BE}, "uint16 or uint32"},
      {{.tokens_type = H5T_STD_U64LE}, "uint16 or uint32"},
      {{.tokens_type = H5T_IEEE_F32LE}, "uint16 or uint32"},
      {{.chunk = 100}, "contiguous"},
      {{.chunk = 100, .deflate = true}, "contiguous"},
      {{.chunk = 100, .fletcher = true}, "contiguous"},
      {{.external = raw.c_str()}, "external"},
      {{.two_dims = true}, "dimensions"},
      {{.unknown_dataset = true}, "extra"},
      {{.soft_link = true}, "link"},
      {{.external_link = true}, "link"},
      {{.missing_attribute = true}, "eos_id"},
      {{.vlen_attribute = true}, "tokenizer_digest"},
      {{.compact = true}, "contiguous"}};
  for (const auto& [bad, word] : cases) {
    write_bad_shard(path, bad);
    check_fails(ErrorKind::BadInput, {"bad.h5", word},
                [&] { read_shard_layout(path, static_cast<int64_t>(std::filesystem::file_size(path))); });
  }
  write_bad_shard(path, {});  // the same without a fault is read
  BOOST_TEST(
      read_shard_layout(path, static_cast<int64_t>(std::filesystem::file_size(path))).tokens.size_bytes ==
      2000);
}

BOOST_FIXTURE_TEST_CASE(users_token_files_are_read_or_refused, Fixture) {
  const std::string path = folder / "user.h5";
  write_bad_shard(path, {.tokens_type = H5T_STD_I16BE, .chunk = 64, .deflate = true});
  {
    const TokenFile flat(path, "/tokens");
    BOOST_TEST(flat.is_flat());
    BOOST_TEST(flat.num_rows() == 1000);
    BOOST_TEST(flat.read_rows(990, 10) == std::vector<int64_t>(10, 0), boost::test_tools::per_element());
  }
  check_fails(ErrorKind::BadInput, {"/input_ids", "tokens", "--dataset"},
              [&] { TokenFile(path, "/input_ids"); });
  write_bad_shard(path, {.tokens_type = H5T_IEEE_F32LE});
  check_fails(ErrorKind::BadInput, {"integers"}, [&] { TokenFile(path, "/tokens"); });
  write_file(folder / "raw.bin", std::string(2000, '\0'));
  write_bad_shard(path, {.external = (folder / "raw.bin").c_str()});
  check_fails(ErrorKind::BadInput, {"external"}, [&] { TokenFile(path, "/tokens"); });
  write_file(path, "this is not HDF5");
  check_fails(ErrorKind::BadInput, {"user.h5"}, [&] { TokenFile(path, "/tokens"); });
}
