// Checkpoints of one rank: round trip, retention, damage, crafted manifests, the finder.
#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <filesystem>

#include "base/rng.h"
#include "tests/trainer/checkpoint/sample_state.h"
#include "tests/trainer/checkpoint/temp_folder.h"
#include "trainer/checkpoint/find_checkpoint.h"
#include "trainer/checkpoint/retention.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;

namespace {

struct Run {
  TempFolder temp;
  std::unique_ptr<FileSystem> fs = make_posix_file_system();
  std::unique_ptr<ControlPlane> control = make_single_control_plane();
  Log log{Log::Options{.rank = 0, .world_size = 1, .level = LogLevel::Error, .file = ""}};

  std::string step_path(int64_t step) const { return temp.path() + "/checkpoints/" + checkpoint_name(step); }
  // Saves `steps` with a fresh saver and waits for pruning too.
  void save(const std::vector<int64_t>& steps, int64_t keep = 3) {
    auto options = sample::options(temp.path());
    options.keep_latest_k = keep;
    CheckpointSaver saver(*fs, *control, log, options);
    for (const int64_t step : steps) sample::save(saver, *control, step);
    saver.finish();
  }
  void overwrite(const std::string& path, const std::string& bytes) {
    const auto file = fs->create(path, CreateMode::Truncate);
    file->write(bytes);
    file->close();
  }
  // The reason why the checkpoint is refused, or "".
  std::string refusal(const std::string& path) {
    try {
      CheckpointReader::open(*fs, path, Verify::Everything);
      return "";
    } catch (const Error& error) {
      BOOST_TEST((error.kind() == ErrorKind::Corrupt), error.what());
      return error.message();
    }
  }
};

// The manifest text with `from` replaced by `to` and its own digest made right again.
std::string forge(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  BOOST_REQUIRE_MESSAGE(at != std::string::npos, from << " is not in the manifest");
  text.replace(at, from.size(), to);
  const std::string key = " \"manifest_xxh3_128\": \"";
  const std::string body = text.substr(0, text.find(key));
  return body + key + xxh3_128_hex(body) + "\"\n}\n";
}

struct Forgery {
  std::string from, to, reason;
};
std::ostream& operator<<(std::ostream& out, const Forgery& f) {
  return out << f.from << " -> " << f.to;
}

const std::vector<Forgery> kForgeries{
    {"\"format_version\": 1", "\"format_version\": 2", "format version 2, this Hearth reads version 1"},
    {"\"format\": \"hearth-checkpoint\"", "\"format\": \"other\"", "not a Hearth checkpoint"},
    {"\"step\": 7", "\"step\": -7", "non-negative"},
    {"\"step\": 7", "\"step\": 1e999", "byte"},
    {"\"step\": 7", "\"step\": 7, \"step\": 8", "duplicate key"},
    {"\"step\": 7", "\"step\": 7, \"extra\": 8", "unknown key extra"},
    {" \"step\": 7,\n", "", "step is missing"},
    {"\"name\":\"config.json\"", "\"name\":\"../config.json\"", "refused file name '../config.json'"},
    {"\"name\":\"config.json\"", "\"name\":\"/etc/passwd\"", "refused file name"},
    {"\"name\":\"config.json\"", "\"name\":\"a/config.json\"", "refused file name"},
    {"\"name\":\"config.json\"", "\"name\":\"tokenizer/../../x\"", "refused file name"},
    {"\"name\":\"config.json\"", "\"name\":\"config.json\\u0000x\"", "refused file name"},
    {"\"name\":\"config.json\"", "\"name\":\"state.json\"", "listed twice"},
    {"\"name\":\"config.json\"", "\"name\":\"gone.json\"", "gone.json is missing"},
    {"\"dtype\":\"F32\"", "\"dtype\":\"F33\"", "unknown dtype"},
    {"\"shape\":[6,20]", "\"shape\":[6,21]", "has 126"},
    {"\"shape\":[6,20]", "\"shape\":[4611686018427387904,4]", "more elements than fit"},
    {"\"shape\":[6,20]", "\"shape\":[6,20,1]", "dimensions"},
    {"\"extent\":[6,20]", "\"extent\":[6,21]", "leaves dimension 1"},
    {"\"box_offset\":[0,0],\"extent\":[6,20]", "\"box_offset\":[0,1],\"extent\":[6,20]",
     "leaves dimension 1"},
    {"\"range\":[0,120]", "\"range\":[0,119]", "hold 119 elements"},
    {"\"range\":[0,120]", "\"range\":[0,121]", "of a box of 120"},
    {"\"range\":[0,120]", "\"range\":[5,4]", "range [5, 4)"},
    {"\"file\":0", "\"file\":99", "file number 99"},
    {"\"file\":0", "\"file\":1", "leaves"},
    {"\"offset\":", "\"offset\":9223372036854775807,\"x\":", "unknown key x"},
    {"\"name\":\"model.w\"", "\"name\":\"model.a\"", "out of order"},
};

}  // namespace

BOOST_AUTO_TEST_CASE(what_was_saved_is_loaded) {
  Run run;
  run.save({7});
  const auto reader = CheckpointReader::open(*run.fs, run.step_path(7), Verify::Everything);
  for (const int world : {1, 2, 3, 5, 7}) BOOST_TEST(sample::difference(*reader, world) == "");
  BOOST_TEST((reader->manifest().identity == sample::identity(7)));
  BOOST_TEST(reader->tokenizer_files() == std::vector<std::string>{"tokenizer.json"},
             boost::test_tools::per_element());
  BOOST_TEST(run.fs->read_text(reader->tokenizer_directory() + "/tokenizer.json") == "{\"tok\": 1}");
  BOOST_TEST(run.fs->read_text(run.temp / "checkpoints/latest") == "step_00000007\n");
  BOOST_CHECK_THROW(reader->info("absent"), Error);
}

BOOST_AUTO_TEST_CASE(manifest_text_parses_to_an_equal_value) {
  Run run;
  run.save({7});
  const auto text = run.fs->read_text(run.step_path(7) + "/manifest.json");
  const Manifest manifest = parse_manifest(text, "manifest");
  BOOST_TEST((parse_manifest(serialize(manifest), "again") == manifest));
  BOOST_TEST(serialize(manifest) == text);
}

BOOST_DATA_TEST_CASE(forged_manifest_is_refused, bdata::make(kForgeries), forgery) {
  Run run;
  run.save({7});
  const std::string path = run.step_path(7) + "/manifest.json";
  run.overwrite(path, forge(run.fs->read_text(path), forgery.from, forgery.to));
  const auto reason = run.refusal(run.step_path(7));
  BOOST_TEST(reason.find(forgery.reason) != std::string::npos, "got: " << reason);
}

BOOST_AUTO_TEST_CASE(every_flipped_byte_of_manifest_and_state_is_refused) {
  Run run;
  run.save({7});
  const CounterRng rng(11, "flips");
  for (const std::string name : {"manifest.json", "state.json"}) {
    const std::string path = run.step_path(7) + "/" + name;
    const std::string good = run.fs->read_text(path);
    for (size_t i = 0; i < good.size(); ++i) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ static_cast<char>(1 + rng.bits(i) % 255));
      run.overwrite(path, bad);
      BOOST_TEST_CONTEXT(name << " byte " << i) BOOST_TEST(run.refusal(run.step_path(7)) != "");
    }
    run.overwrite(path, good);
  }
  BOOST_TEST(run.refusal(run.step_path(7)) == "");
}

BOOST_AUTO_TEST_CASE(flipped_bits_of_tensors_are_refused_by_name) {
  Run run;
  run.save({7});
  const std::string path = run.step_path(7) + "/rank_000.safetensors";
  const std::string good = run.fs->read_text(path);
  const CounterRng rng(12, "bits");
  for (uint64_t k = 0; k < 200; ++k) {
    std::string bad = good;
    const size_t at = rng.bits(2 * k) % bad.size();
    bad[at] = static_cast<char>(bad[at] ^ static_cast<char>(1 << (rng.bits(2 * k + 1) % 8)));
    run.overwrite(path, bad);
    BOOST_TEST(run.refusal(run.step_path(7)).find("rank_000.safetensors has digest") != std::string::npos);
  }
}

BOOST_AUTO_TEST_CASE(truncated_files_are_refused_with_both_sizes) {
  Run run;
  run.save({7});
  for (const std::string name : {"manifest.json", "rank_000.safetensors", "state.json"}) {
    const std::string path = run.step_path(7) + "/" + name;
    const std::string good = run.fs->read_text(path);
    for (size_t cut = 0; cut < good.size(); cut += 512) {
      run.overwrite(path, good.substr(0, cut));
      const auto reason = run.refusal(run.step_path(7));
      BOOST_TEST(reason != "");
      if (name != "manifest.json")
        BOOST_TEST(
            reason.find(fmt::format("{} has {} of {} bytes", name, cut, good.size())) != std::string::npos,
            reason);
    }
    run.overwrite(path, good);
  }
}

BOOST_AUTO_TEST_CASE(missing_foreign_swapped_and_linked_files_are_refused) {
  Run run;
  run.save({1, 2});
  const std::string one = run.step_path(1), two = run.step_path(2);
  const std::string first = run.fs->read_text(one + "/rank_000.safetensors");
  const std::string second = run.fs->read_text(two + "/rank_000.safetensors");
  run.overwrite(two + "/rank_000.safetensors", first);  // the same size, another step
  BOOST_TEST(run.refusal(two).find("rank_000.safetensors has digest") != std::string::npos);
  run.overwrite(two + "/rank_000.safetensors", second);
  run.overwrite(two + "/rank_001.safetensors", first);
  BOOST_TEST(run.refusal(two).find("rank_001.safetensors is not in the manifest") != std::string::npos);
  run.fs->remove(two + "/rank_001.safetensors");
  BOOST_TEST(run.refusal(two) == "");
  run.fs->rename(two + "/rank_000.safetensors", two + "/elsewhere");
  BOOST_TEST(run.refusal(two).find("rank_000.safetensors is missing") != std::string::npos);
  std::filesystem::create_symlink("elsewhere", two + "/rank_000.safetensors");
  BOOST_TEST(run.refusal(two).find("symbolic link") != std::string::npos);
  run.fs->remove(two + "/manifest.json");
  BOOST_TEST(run.refusal(two).find("never committed") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(finder_takes_the_newest_that_verifies) {
  Run run;
  BOOST_CHECK_THROW(find_checkpoint(*run.fs, *run.control, run.log, run.temp / "nothing"), Error);
  run.fs->create_directories(run.temp / "checkpoints");
  BOOST_TEST(find_checkpoint(*run.fs, *run.control, run.log, run.temp.path()) == nullptr);
  run.save({5, 10, 15});
  run.overwrite(run.step_path(15) + "/rank_000.safetensors", "torn");
  BOOST_TEST(find_checkpoint(*run.fs, *run.control, run.log, run.temp.path())->step() == 10);
  run.fs->remove(run.step_path(10) + "/manifest.json");
  BOOST_TEST(find_checkpoint(*run.fs, *run.control, run.log, run.temp.path())->step() == 5);
  BOOST_TEST(resolve_model_path(*run.fs, run.log, run.temp.path()).path == run.step_path(5));
  BOOST_TEST(find_checkpoint(*run.fs, *run.control, run.log, run.step_path(5))->step() == 5);
  const auto is_corrupt = [](const Error& error) { return exit_code(error.kind()) == 5; };
  BOOST_CHECK_EXCEPTION(find_checkpoint(*run.fs, *run.control, run.log, run.step_path(10)), Error,
                        is_corrupt);
  run.overwrite(run.step_path(5) + "/state.json", "{\"step\": 6}");
  BOOST_CHECK_EXCEPTION(find_checkpoint(*run.fs, *run.control, run.log, run.temp.path()), Error, is_corrupt);
  BOOST_CHECK_EXCEPTION(resolve_model_path(*run.fs, run.log, run.temp.path()), Error, is_corrupt);
}

BOOST_AUTO_TEST_CASE(retention_keeps_the_newest_that_verify) {
  Run run;
  run.save({1, 2, 3, 4, 5}, 3);
  BOOST_TEST(list_checkpoints(*run.fs, run.temp.path()).size() == 3u);
  // Two newest are bad: they are not counted, so two good ones stay although keep_latest_k is 1.
  for (const int64_t step : {4, 5}) run.overwrite(run.step_path(step) + "/rank_000.safetensors", "torn");
  run.save({6}, 1);
  const std::vector<std::string> want{run.step_path(6), run.step_path(5), run.step_path(4), run.step_path(3)};
  BOOST_TEST(list_checkpoints(*run.fs, run.temp.path()) == want, boost::test_tools::per_element());
  BOOST_TEST(sample::difference(*find_checkpoint(*run.fs, *run.control, run.log, run.temp.path())) == "");
  run.save({7, 8, 9}, 0);  // 0 keeps all
  BOOST_TEST(list_checkpoints(*run.fs, run.temp.path()).size() == 7u);
  for (const auto& name : run.fs->list(run.temp / "checkpoints"))
    BOOST_TEST((name.rfind("tmp.", 0) != 0 && name.rfind("dead.", 0) != 0), name);
}

BOOST_AUTO_TEST_CASE(leftovers_go_at_the_next_start_and_an_older_step_of_the_same_name_is_set_aside) {
  Run run;
  run.save({1, 2});
  run.fs->create_directories(run.temp / "checkpoints/tmp.00000003.1.1");
  run.fs->create_directories(run.temp / "checkpoints/dead.step_00000001.1");
  run.overwrite(run.step_path(2) + "/rank_000.safetensors", "torn");
  run.save({2});  // the run resumed at 1 and came to 2 again
  BOOST_TEST(sample::difference(*CheckpointReader::open(*run.fs, run.step_path(2), Verify::Everything)) ==
             "");
  BOOST_TEST(!run.fs->exists(run.temp / "checkpoints/tmp.00000003.1.1"));
  BOOST_TEST(!run.fs->exists(run.temp / "checkpoints/dead.step_00000001.1"));
  BOOST_TEST(run.fs->exists(run.temp / "checkpoints/aside.step_00000002.1.1"));
  retire_newer_checkpoints(*run.fs, run.log, run.temp.path(), 1, 4);
  BOOST_TEST(list_checkpoints(*run.fs, run.temp.path()).size() == 1u);
}

BOOST_AUTO_TEST_CASE(non_finite_values_are_never_saved) {
  for (const float bad : {std::nanf(""), -INFINITY}) {
    Run run;
    CheckpointSaver saver(*run.fs, *run.control, run.log, sample::options(run.temp.path()));
    sample::save(saver, *run.control, 1);
    Snapshot* snapshot = saver.begin(sample::identity(2), sample::pieces(0, 1));
    BOOST_REQUIRE(snapshot != nullptr);
    for (size_t i = 0; i < snapshot->pieces().size(); ++i)
      sample::fill(snapshot->pieces()[i], 0, snapshot->pieces()[i].elements(), 2, snapshot->data(i));
    std::memcpy(static_cast<std::byte*>(snapshot->data(2)) + 4 * 17, &bad, 4);
    saver.commit_async("{}");
    BOOST_CHECK_EXCEPTION(saver.wait(), Error, [](const Error& error) {
      return error.kind() == ErrorKind::Numeric &&
             error.message().find("model.w: element 17") != std::string::npos;
    });
    BOOST_TEST(saver.last_committed_step() == 1);
    BOOST_CHECK_THROW(saver.finish(), Error);
    BOOST_TEST(list_checkpoints(*run.fs, run.temp.path()).size() == 1u);
  }
}

BOOST_AUTO_TEST_CASE(pieces_that_overlap_or_leave_a_hole_are_our_bug) {
  for (const int variant : {0, 1}) {
    Run run;
    CheckpointSaver saver(*run.fs, *run.control, run.log, sample::options(run.temp.path()));
    auto pieces = sample::pieces(0, 1);
    if (variant == 0) pieces.push_back(pieces[0]);
    if (variant == 1) pieces[0].end -= 1;
    Snapshot* snapshot = saver.begin(sample::identity(2), pieces);
    for (size_t i = 0; i < pieces.size(); ++i)
      std::memset(snapshot->data(i), 0, static_cast<size_t>(pieces[i].bytes()));
    saver.commit_async("{}");
    BOOST_CHECK_EXCEPTION(saver.wait(), Error,
                          [](const Error& e) { return e.kind() == ErrorKind::Internal; });
    BOOST_TEST(list_checkpoints(*run.fs, run.temp.path()).empty());
  }
}

BOOST_AUTO_TEST_CASE(streaming_save_writes_the_same_format) {
  Run run;
  const std::string path = run.temp / "imported/step_00000000";
  const auto read = [](const TensorPiece& piece, int64_t first, int64_t count, void* out) {
    sample::fill(piece, first, count, 0, out);
  };
  const auto store = [&] {
    save_checkpoint(*run.fs, *run.control, run.log, path, sample::identity(0), sample::pieces(0, 1), read,
                    "{\"step\": 0}", {{"tokenizer/tokenizer.json", "{\"tok\": 1}"}});
  };
  store();
  BOOST_TEST(sample::difference(*CheckpointReader::open(*run.fs, path, Verify::Everything)) == "");
  BOOST_CHECK_THROW(store(), Error);  // never over something
  BOOST_TEST(run.fs->list(run.temp / "imported").size() == 1u);
}
