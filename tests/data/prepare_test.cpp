// data/prepare: the output depends on inputs and options alone, survives kill -9 anywhere, and refuses bad
// input.
#include "data/prepare.h"

#include <hdf5.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <zlib.h>
#include <zstd.h>

#include <map>
#include <set>

#include "base/fault_file_system.h"
#include "data/hdf5_handle.h"
#include "tests/data/data_fixture.h"
#include "tests/data/killing_file_system.h"

using namespace hearth;
using namespace hearth::testing;

namespace {

std::string gzip(const std::string& text) {
  std::string out(text.size() + 1000, '\0');
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  BOOST_REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

std::string document(int i) {
  std::string text = "document " + std::to_string(i) + ":";
  for (int word = 0; word < i * 37 % 90; ++word) text += " w" + std::to_string(i * 31 % (word + 7));
  return text + "\n";
}

std::string json_lines(int first, int last) {
  std::string lines;
  for (int i = first; i < last; ++i)
    lines += nlohmann::json({{"text", document(i)}, {"id", i}}).dump() + "\n";
  return lines;
}

void write_ids(const std::string& path, const char* name, std::vector<hsize_t> dims,
               const std::vector<int32_t>& ids) {
  require_hdf5();
  const Hdf5Handle file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
  const Hdf5Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose);
  const Hdf5Handle plist(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_chunk(plist.get(), static_cast<int>(dims.size()), dims.data());
  H5Pset_deflate(plist.get(), 4);
  const Hdf5Handle data(
      H5Dcreate2(file.get(), name, H5T_STD_I32BE, space.get(), H5P_DEFAULT, plist.get(), H5P_DEFAULT),
      H5Dclose);
  BOOST_REQUIRE(H5Dwrite(data.get(), H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids.data()) >= 0);
}

struct Fixture {
  TempFolder folder;
  std::unique_ptr<FileSystem> fs = make_posix_file_system();
  Fixture() { write_byte_tokenizer(folder / "tok"); }

  PrepareOptions options(const std::vector<std::string>& inputs, const std::string& output) const {
    PrepareOptions out;
    for (const auto& input : inputs) out.inputs.push_back(folder / input);
    out.tokenizer = folder / "tok";
    out.output = folder / output;
    out.num_workers = 2;
    out.unit_bytes = 2000;    // many units
    out.shard_bytes = 40000;  // several shards
    return out;
  }
  // Texts of all documents (eos cut off), in order.
  std::vector<std::string> texts(const std::string& output) {
    const auto dataset = Dataset::open(*fs, folder / output);
    std::vector<std::string> out;
    for (int64_t i = 0; i < dataset->num_documents(); ++i) {
      auto ids = dataset->document(i);
      BOOST_REQUIRE(ids.back() == kEos);
      std::string text;
      for (size_t t = 0; t + 1 < ids.size(); ++t) text += bytes_[static_cast<size_t>(ids[t])];
      out.push_back(text);
    }
    return out;
  }
  std::multiset<std::string> text_set(const std::string& output) {
    const auto all = texts(output);
    return {all.begin(), all.end()};
  }
  // name -> bytes of all files below a folder.
  std::map<std::string, std::string> tree(const std::string& output) const {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder / output)) {
      if (entry.is_regular_file()) {
        files[std::filesystem::relative(entry.path(), folder / output).string()] =
            read_file(entry.path().string());
      }
    }
    return files;
  }
  void make_corpus() {
    write_file(folder / "in/a.jsonl", json_lines(0, 300));
    write_file(folder / "in/b.jsonl.gz", gzip(json_lines(300, 400)) + gzip(json_lines(400, 450)));
    write_file(folder / "in/sub/c.jsonl.zst", zstd(json_lines(450, 500)) + zstd(json_lines(500, 600)));
    for (int i = 600; i < 640; ++i)
      write_file(folder / ("in/txt/" + std::to_string(i) + ".txt"), document(i));
    write_file(folder / "in/README.md", "ignored");
    write_file(folder / "in/.hidden.txt", "ignored");
  }

 private:
  static std::vector<char> all_bytes() {
    std::vector<char> bytes(256);
    std::iota(bytes.begin(), bytes.end(), static_cast<char>(0));
    return bytes;
  }
  std::vector<char> bytes_ = all_bytes();
};

}  // namespace

BOOST_FIXTURE_TEST_CASE(every_document_arrives_once_shuffled, Fixture) {
  make_corpus();
  const PrepareReport report = prepare_dataset(*fs, options({"in"}, "out"));
  BOOST_TEST(report.num_documents == 640);
  BOOST_TEST(report.num_sources == 43);
  BOOST_TEST(report.num_ignored_files == 1);
  BOOST_TEST(report.num_shards >= 3);
  std::multiset<std::string> want;
  std::vector<std::string> in_order;
  for (int i = 0; i < 640; ++i) want.insert(document(i)), in_order.push_back(document(i));
  BOOST_TEST((text_set("out") == want));
  const auto got = texts("out");
  int64_t in_place = 0;
  for (size_t i = 0; i + 1 < got.size(); ++i) {
    const auto at = std::find(in_order.begin(), in_order.end(), got[i]);
    in_place += at + 1 != in_order.end() && *(at + 1) == got[i + 1];
  }
  BOOST_TEST(in_place <= 10);  // neighbours that stayed neighbours; one expected
  BOOST_TEST(verify_dataset(*fs, folder / "out", 2).num_documents == 640);
  BOOST_TEST(!std::filesystem::exists(folder / "out/.prepare"));
  BOOST_TEST(!std::filesystem::exists(folder / "out/.prepare.lock"));
  BOOST_TEST(read_file(folder / "out/tokenizer/tokenizer.json") == read_file(folder / "tok/tokenizer.json"));
}

BOOST_FIXTURE_TEST_CASE(output_depends_on_the_seed_but_not_on_workers_or_units, Fixture) {
  make_corpus();
  auto first = options({"in"}, "w1");
  first.num_workers = 1;
  prepare_dataset(*fs, first);
  const auto want = tree("w1");
  for (const int workers : {2, 7}) {
    auto other = options({"in"}, "w" + std::to_string(workers));
    other.num_workers = workers;
    other.unit_bytes = workers * 3000;
    prepare_dataset(*fs, other);
    BOOST_TEST((tree("w" + std::to_string(workers)) == want));
  }
  auto seeded = options({"in"}, "seeded");
  seeded.seed = 99;
  prepare_dataset(*fs, seeded);
  BOOST_TEST((texts("seeded") != texts("w1")));
  BOOST_TEST((text_set("seeded") == text_set("w1")));
}

BOOST_FIXTURE_TEST_CASE(kill_and_restart_gives_the_same_bytes, Fixture) {
  write_file(folder / "in/a.jsonl", json_lines(0, 50));
  write_file(folder / "in/b.txt", document(7));
  write_file(folder / "more.jsonl", json_lines(50, 65));
  const auto prepare = [&](FileSystem& files, const std::string& output, const char* input) {
    auto chosen = options({input}, output);
    chosen.validation_fraction = 0.3;
    chosen.unit_bytes = 3500;  // few, because every point is tried and each run waits for some fsyncs
    return prepare_dataset(files, chosen);
  };
  prepare(*fs, "want", "in");
  prepare(*fs, "want", "more.jsonl");  // appended
  const auto want = tree("want");
  int64_t kills = 0, reused = 0;
  for (int64_t fatal = 1;; ++fatal) {
    std::filesystem::remove_all(folder / "got");
    const pid_t child = fork();
    if (child == 0) {
      KillingFileSystem killing(*fs, fatal);
      prepare(killing, "got", "in");
      prepare(killing, "got", "more.jsonl");
      _exit(0);
    }
    int status = 0;
    BOOST_REQUIRE(waitpid(child, &status, 0) == child);
    reused += prepare(*fs, "got", "in").num_reused_units;
    prepare(*fs, "got", "more.jsonl");
    BOOST_REQUIRE_MESSAGE(tree("got") == want, "killed at call " << fatal);
    if (!WIFSIGNALED(status)) {
      BOOST_REQUIRE(WEXITSTATUS(status) == 0);
      break;
    }
    ++kills;
  }
  BOOST_TEST_MESSAGE(kills << " kills, " << reused << " units reused");
  BOOST_TEST(kills > 60, kills << " kills");     // units, shards, tokenizer files and manifests of two calls
  BOOST_TEST(reused > 20, reused << " reused");  // finished units are kept
}

BOOST_FIXTURE_TEST_CASE(a_file_system_fault_is_reported_and_the_next_run_succeeds, Fixture) {
  write_file(folder / "a.jsonl", json_lines(0, 60));
  prepare_dataset(*fs, options({"a.jsonl"}, "want"));
  for (const FileOp op : {FileOp::Create, FileOp::Write, FileOp::Sync, FileOp::Close, FileOp::Rename}) {
    for (int64_t nth = 1;; ++nth) {
      FaultFileSystem faulty(*fs);
      faulty.set_fault({.op = op, .nth = nth, .error = ENOSPC});
      std::filesystem::remove_all(folder / "got");
      try {
        prepare_dataset(faulty, options({"a.jsonl"}, "got"));
        BOOST_REQUIRE(!faulty.fired());
        BOOST_TEST(nth > 1);
        break;
      } catch (const Error& error) {
        BOOST_REQUIRE(error.kind() == ErrorKind::NoSpace);
        BOOST_REQUIRE(faulty.fired());
      }
      prepare_dataset(*fs, options({"a.jsonl"}, "got"));
      BOOST_REQUIRE((tree("got") == tree("want")));
    }
  }
}

// HDF5 writes by itself, past FileSystem; its clean-up at exit must not turn the error into a crash.
BOOST_FIXTURE_TEST_CASE(a_full_disk_inside_hdf5_is_one_error_and_a_clean_exit, Fixture) {
  make_corpus();
  auto chosen = options({"in"}, "out");
  chosen.shard_bytes = 100000;
  for (const rlim_t limit : {40000, 60000, 80000}) {  // above every run file, below a shard
    const pid_t child = fork();
    if (child == 0) {
      signal(SIGXFSZ, SIG_IGN);  // the write then fails with EFBIG
      const rlimit file_size{limit, limit};
      setrlimit(RLIMIT_FSIZE, &file_size);
      int code = 0;
      try {
        prepare_dataset(*fs, chosen);
      } catch (const Error& error) {
        const bool names_shard = std::string(error.what()).find("shard-0") != std::string::npos;
        code = names_shard ? exit_code(error.kind()) : 1;
      }
      exit(code);  // not _exit: what libraries registered for the exit must run
    }
    int status = 0;
    BOOST_REQUIRE(waitpid(child, &status, 0) == child);
    BOOST_TEST((WIFEXITED(status) && WEXITSTATUS(status) == 9),
               "limit " << limit << ": wait status " << status);
    BOOST_TEST(!std::filesystem::exists(folder / "out/dataset.json"));
  }
  BOOST_TEST(prepare_dataset(*fs, chosen).num_documents == 640);
}

BOOST_FIXTURE_TEST_CASE(a_second_call_appends_new_sources_and_skips_known_ones, Fixture) {
  write_file(folder / "a.jsonl", json_lines(0, 100));
  prepare_dataset(*fs, options({"a.jsonl"}, "out"));
  const auto before = tree("out");
  const std::string id = Dataset::open(*fs, folder / "out")->id();
  const PrepareReport nothing = prepare_dataset(*fs, options({"a.jsonl"}, "out"));
  BOOST_TEST(nothing.num_sources == 0);
  BOOST_TEST(nothing.num_known_sources == 1);
  BOOST_TEST((tree("out") == before));
  write_file(folder / "copy.jsonl", json_lines(0, 100));
  write_file(folder / "b.jsonl", json_lines(100, 130));
  const PrepareReport appended = prepare_dataset(*fs, options({"a.jsonl", "copy.jsonl", "b.jsonl"}, "out"));
  BOOST_TEST(appended.num_sources == 1);
  BOOST_TEST(appended.num_documents == 30);
  const auto after = tree("out");
  for (const auto& [name, bytes] : before) {
    if (name != "dataset.json") BOOST_TEST((after.at(name) == bytes), name);  // appends, never rewrites
  }
  std::multiset<std::string> want;
  for (int i = 0; i < 130; ++i) want.insert(document(i));
  BOOST_TEST((text_set("out") == want));
  BOOST_TEST(Dataset::open(*fs, folder / "out")->id() == id);
  write_byte_tokenizer(folder / "tok", "<s>");
  write_file(folder / "c.jsonl", json_lines(130, 140));
  check_fails(ErrorKind::BadInput, {"another tokenizer"},
              [&] { prepare_dataset(*fs, options({"c.jsonl"}, "out")); });
}

BOOST_FIXTURE_TEST_CASE(the_split_is_by_content, Fixture) {
  write_file(folder / "a.jsonl", json_lines(0, 400));
  write_file(folder / "b.jsonl", json_lines(200, 600));  // half of it again
  auto chosen = options({"a.jsonl"}, "out");
  chosen.validation_fraction = 0.25;
  prepare_dataset(*fs, chosen);
  chosen.inputs = {folder / "b.jsonl"};
  chosen.seed = 77;
  prepare_dataset(*fs, chosen);
  const auto train = text_set("out/train"), validation = text_set("out/validation");
  BOOST_TEST(train.size() + validation.size() == 800u);
  for (const auto& text : validation) BOOST_REQUIRE(train.count(text) == 0);
  // 600 distinct texts, binomial: mean 150, standard deviation 10.6; five of them
  const std::set<std::string> distinct(validation.begin(), validation.end());
  BOOST_TEST(std::abs(static_cast<double>(distinct.size()) - 150) <= 53);
  chosen.validation_fraction = 0.5;
  check_fails(ErrorKind::Usage, {"0.25"}, [&] { prepare_dataset(*fs, chosen); });
  chosen.validation_fraction = 0;
  check_fails(ErrorKind::Usage, {"validation-fraction"}, [&] { prepare_dataset(*fs, chosen); });
  write_file(folder / "one.txt", "only one document");
  auto single = options({"one.txt"}, "single");
  single.validation_fraction = 0.1;
  check_fails(ErrorKind::BadInput, {"would be empty", "--split-documents"},
              [&] { prepare_dataset(*fs, single); });
}

BOOST_FIXTURE_TEST_CASE(paragraphs_and_odd_text, Fixture) {
  write_file(folder / "p.txt",
             "\xEF\xBB\xBF"
             "one\ntwo\r\n\r\n\n  \nthree\n \t\nfour");
  auto chosen = options({"p.txt"}, "out");
  chosen.text_documents = TextDocuments::Paragraphs;
  prepare_dataset(*fs, chosen);
  BOOST_TEST((text_set("out") == std::multiset<std::string>{"one\ntwo\r\n", "three\n", "four"}));
  std::string long_text;  // cut into pieces by unit_bytes, at blank lines only
  std::multiset<std::string> want;
  for (int i = 0; i < 300; ++i) long_text += document(i) + "\n", want.insert(document(i));
  write_file(folder / "long.txt", long_text);
  chosen.inputs = {folder / "long.txt"};
  chosen.output = folder / "long";
  prepare_dataset(*fs, chosen);
  BOOST_TEST((text_set("long") == want));
  write_file(folder / "big.txt",
             std::string(kMaxDocumentBytes + 5000, 'x') + "\n");  // one document too long to keep whole
  chosen = options({"big.txt"}, "big");
  chosen.shard_bytes = 64 << 20;
  BOOST_TEST(prepare_dataset(*fs, chosen).num_documents == 2);
}

BOOST_FIXTURE_TEST_CASE(users_token_files_become_documents, Fixture) {
  write_ids(folder / "flat.h5", "input_ids", {9}, {kEos, 1, 2, kEos, kEos, 3, 4, 5, kEos});
  prepare_dataset(*fs, options({"flat.h5"}, "flat"));
  BOOST_TEST((text_set("flat") == std::multiset<std::string>{"\1\2", "\3\4\5"}));
  write_ids(folder / "rows.h5", "tokens", {3, 4}, {1, 2, kEos, 3, 4, 5, 6, kEos, 7, kEos, kEos, kEos});
  auto rows = options({"rows.h5"}, "rows");
  check_fails(ErrorKind::BadInput, {"rows.h5", "/input_ids", "tokens"}, [&] { prepare_dataset(*fs, rows); });
  rows.token_dataset = "tokens";
  BOOST_TEST(prepare_dataset(*fs, rows).num_documents == 4);  // {1 2 eos} {3} {4 5 6 eos} {7 eos}
  write_ids(folder / "bad.h5", "input_ids", {3}, {1, 300, 2});
  check_fails(ErrorKind::BadInput, {"bad.h5", "element 1", "300", "257"},
              [&] { prepare_dataset(*fs, options({"bad.h5"}, "bad")); });
  write_ids(folder / "negative.h5", "input_ids", {2}, {1, -1});
  check_fails(ErrorKind::BadInput, {"element 1 is -1"},
              [&] { prepare_dataset(*fs, options({"negative.h5"}, "bad")); });
}

BOOST_FIXTURE_TEST_CASE(bos_comes_from_the_post_processor_and_eos_once, Fixture) {
  write_byte_tokenizer(folder / "tok", "<s>");
  write_file(folder / "a.jsonl", R"({"text": "ab"})"
                                 "\n"
                                 R"({"text": "cd<|endoftext|>"})"
                                 "\n");
  prepare_dataset(*fs, options({"a.jsonl"}, "out"));
  const auto dataset = Dataset::open(*fs, folder / "out");
  std::set<std::vector<int32_t>> got{dataset->document(0), dataset->document(1)};
  BOOST_TEST((got == std::set<std::vector<int32_t>>{{257, 'a', 'b', kEos}, {257, 'c', 'd', kEos}}));
}

BOOST_FIXTURE_TEST_CASE(bad_lines_stop_with_file_and_line_or_are_counted, Fixture) {
  const std::vector<std::pair<std::string, std::string>> cases{
      {"{\"text\": broken", "malformed"},         {"[1]", "not a JSON object"},
      {"{\"body\": \"x\"}", "'text' is missing"}, {"{\"text\": 5}", "not a string"},
      {"{\"text\": \"a\"} x", "malformed"},       {"{\"text\": \"\xff\"}", "malformed"}};
  for (const auto& [line, word] : cases) {
    write_file(folder / "bad.jsonl",
               json_lines(0, 50) + "\n" + line + "\n" + json_lines(50, 60) + line + "\n");
    for (const int workers : {1, 4}) {
      auto chosen = options({"bad.jsonl"}, "out");
      chosen.num_workers = workers;
      check_fails(ErrorKind::BadInput, {"bad.jsonl:52", word, "--skip-bad"},
                  [&] { prepare_dataset(*fs, chosen); });
      BOOST_TEST(!std::filesystem::exists(folder / "out/dataset.json"));
    }
    auto skipping = options({"bad.jsonl"}, "skip");
    skipping.bad_lines = BadLines::Skip;
    const PrepareReport report = prepare_dataset(*fs, skipping);
    BOOST_TEST(report.num_skipped_lines == 2);
    BOOST_TEST(report.num_documents == 60);
    BOOST_TEST(Dataset::open(*fs, folder / "skip")->manifest().sources[0].num_skipped == 2);
    std::filesystem::remove_all(folder / "skip");
  }
  auto chosen = options({"bad.jsonl"}, "other");
  chosen.text_field = "id";
  check_fails(ErrorKind::BadInput, {"bad.jsonl:1", "'id' is not a string"},
              [&] { prepare_dataset(*fs, chosen); });
}

BOOST_FIXTURE_TEST_CASE(bad_inputs_are_clear_errors, Fixture) {
  const auto fails = [&](const char* input, const std::vector<std::string>& words) {
    check_fails(ErrorKind::BadInput, words, [&] { prepare_dataset(*fs, options({input}, "out")); });
  };
  fails("absent.txt", {"absent.txt", "no such file"});
  write_file(folder / "x.pdf", "x");
  fails("x.pdf", {"x.pdf", ".jsonl"});
  std::filesystem::create_directories(folder / "empty");
  fails("empty", {"empty corpus"});
  write_file(folder / "empty.txt", "");
  fails("empty.txt", {"empty corpus"});
  write_file(folder / "blank.jsonl", "\n\n{\"text\": \" \"}\n");
  fails("blank.jsonl", {"empty corpus", "1 without text"});
  const std::string packed = gzip(json_lines(0, 200)), dense = zstd(json_lines(0, 200));
  write_file(folder / "cut.jsonl.gz", packed.substr(0, packed.size() / 2));
  fails("cut.jsonl.gz", {"cut.jsonl.gz", "truncated"});
  write_file(folder / "cut.jsonl.zst", dense.substr(0, dense.size() / 2));
  fails("cut.jsonl.zst", {"cut.jsonl.zst", "truncated"});
  write_file(folder / "junk.jsonl.gz", "not gzip at all");
  fails("junk.jsonl.gz", {"junk.jsonl.gz", "damaged"});
  write_file(folder / "junk.txt.zst", "not zstd at all");
  fails("junk.txt.zst", {"junk.txt.zst", "damaged"});
  std::string flipped = packed;
  flipped[flipped.size() - 6] ^= 1;  // in the checksum
  write_file(folder / "crc.jsonl.gz", flipped);
  fails("crc.jsonl.gz", {"crc.jsonl.gz", "damaged"});
  write_file(folder / "a.h5", "not HDF5");
  fails("a.h5", {"a.h5"});
  std::filesystem::create_directories(folder / "loop");
  std::filesystem::create_directory_symlink(folder / "loop", folder / "loop/again");
  fails("loop", {"cycle"});
}
