// The saver on a failing disk: every operation of a save fails once with every errno; full disks; fsync
// errors; and all states that a power loss may leave (replay of the operation log).
#include <signal.h>
#include <sys/resource.h>

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cerrno>
#include <set>

#include "base/fault_file_system.h"
#include "base/rng.h"
#include "tests/trainer/checkpoint/sample_state.h"
#include "tests/trainer/checkpoint/temp_folder.h"
#include "trainer/checkpoint/find_checkpoint.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;

namespace {

const std::vector<FileOp> kSaveOps{FileOp::Create,        FileOp::Write,     FileOp::Sync,
                                   FileOp::Close,         FileOp::Rename,    FileOp::CreateDirectory,
                                   FileOp::SyncDirectory, FileOp::FreeBytes, FileOp::Remove,
                                   FileOp::List,          FileOp::Open,      FileOp::Read};
const std::vector<int> kErrors{ENOSPC, EDQUOT, EIO, EINTR, EROFS, ESTALE};

struct Bench {
  TempFolder temp;
  std::unique_ptr<FileSystem> real = make_posix_file_system();
  std::unique_ptr<ControlPlane> control = make_single_control_plane();
  Log log{Log::Options{
      .rank = 1, .world_size = 2, .level = LogLevel::Error, .file = ""}};  // rank 1: nothing on stderr
};

// Invariant of every failure: a committed save verifies, and an earlier one is still there.
void check_folder(Bench& bench, int64_t acknowledged, const std::string& run) {
  const auto reader = find_checkpoint(*bench.real, *bench.control, bench.log, run);
  BOOST_REQUIRE(reader != nullptr);
  BOOST_TEST(reader->step() >= acknowledged);
  BOOST_TEST(sample::difference(*reader) == "");
}

}  // namespace

// SQLite's method: fail call n = 1, 2, 3, ... of a kind until a whole save passes without meeting the fault.
BOOST_DATA_TEST_CASE(each_failing_call_leaves_the_old_checkpoint_and_the_next_save_works,
                     bdata::xrange(kSaveOps.size()), op_index) {
  const FileOp op = kSaveOps[op_index];
  for (const int error : kErrors) {
    int64_t n = 1;
    for (;; ++n) {
      BOOST_REQUIRE(n < 200);
      Bench bench;
      FaultFileSystem faulty(*bench.real);
      CheckpointSaver saver(faulty, *bench.control, bench.log, sample::options(bench.temp.path()));
      sample::save(saver, *bench.control, 1);
      saver.finish();
      faulty.clear_faults();  // counts from here
      faulty.set_fault({.op = op, .nth = n, .error = error, .keep_bytes = -1, .lasting = false});
      sample::save(saver, *bench.control, 2);                // one failure is reported, not thrown
      if (saver.last_committed_step() == 2) saver.finish();  // pruning included
      faulty.clear_faults();
      const int64_t acknowledged = saver.last_committed_step();
      BOOST_TEST_CONTEXT(name(op) << " call " << n << " errno " << error) {
        check_folder(bench, acknowledged, bench.temp.path());
        sample::save(saver, *bench.control, 3);
        BOOST_TEST(saver.last_committed_step() == 3);
        saver.finish();
        check_folder(bench, 3, bench.temp.path());
        for (const auto& entry : bench.real->list(bench.temp / "checkpoints"))
          if (op != FileOp::Remove && op != FileOp::List) BOOST_TEST(entry.rfind("tmp.", 0) != 0, entry);
      }
      if (!faulty.fired()) break;
    }
    if (op != FileOp::Remove) BOOST_TEST(n > 1, "the fault never struck: the test tests nothing");
  }
}

BOOST_AUTO_TEST_CASE(two_failed_saves_in_a_row_end_the_run_with_code_9) {
  Bench bench;
  FaultFileSystem faulty(*bench.real);
  CheckpointSaver saver(faulty, *bench.control, bench.log, sample::options(bench.temp.path()));
  sample::save(saver, *bench.control, 1);
  saver.finish();
  faulty.clear_faults();
  faulty.set_fault({.op = FileOp::Write, .nth = 2, .error = ENOSPC, .keep_bytes = -1, .lasting = true});
  sample::save(saver, *bench.control, 2);
  BOOST_TEST(saver.last_committed_step() == 1);
  BOOST_CHECK_EXCEPTION(sample::save(saver, *bench.control, 3), Error, [](const Error& error) {
    return exit_code(error.kind()) == 9 &&
           error.message().find("2 checkpoints in a row failed") != std::string::npos;
  });
  BOOST_CHECK_EXCEPTION(saver.finish(), Error,
                        [](const Error& error) { return exit_code(error.kind()) == 9; });
  check_folder(bench, 1, bench.temp.path());
}

BOOST_AUTO_TEST_CASE(a_full_disk_is_seen_before_anything_is_written) {
  struct NoSpaceLeft final : FileSystem {
    explicit NoSpaceLeft(FileSystem& fs) : inner(fs) {}
    FaultFileSystem inner;
    int64_t free = 4 * 1024;
    std::unique_ptr<WritableFile> create(const std::string& p, CreateMode m) override {
      return inner.create(p, m);
    }
    std::unique_ptr<ReadableFile> open(const std::string& p) override { return inner.open(p); }
    void rename(const std::string& a, const std::string& b) override { inner.rename(a, b); }
    void remove(const std::string& p) override { inner.remove(p); }
    void remove_all(const std::string& p) override { inner.remove_all(p); }
    void create_directories(const std::string& p) override { inner.create_directories(p); }
    void sync_directory(const std::string& p) override { inner.sync_directory(p); }
    bool exists(const std::string& p) override { return inner.exists(p); }
    bool is_directory(const std::string& p) override { return inner.is_directory(p); }
    bool is_symlink(const std::string& p) override { return inner.is_symlink(p); }
    FileStamp stamp(const std::string& p) override { return inner.stamp(p); }
    void create_symlink(const std::string& t, const std::string& p) override { inner.create_symlink(t, p); }
    std::string read_symlink(const std::string& p) override { return inner.read_symlink(p); }
    std::vector<std::string> list(const std::string& p) override { return inner.list(p); }
    int64_t free_bytes(const std::string&) override { return free; }
  };
  Bench bench;
  NoSpaceLeft full(*bench.real);
  CheckpointSaver saver(full, *bench.control, bench.log, sample::options(bench.temp.path()));
  BOOST_TEST(!sample::begin_save(saver, *bench.control, 1));
  BOOST_TEST(full.inner.calls(FileOp::Create) == 0);
  BOOST_CHECK_EXCEPTION(sample::begin_save(saver, *bench.control, 2), Error, [](const Error& error) {
    return error.kind() == ErrorKind::NoSpace && error.message().find("free 4 KiB") != std::string::npos;
  });
  full.free = int64_t{1} << 30;
  sample::save(saver, *bench.control, 3);
  BOOST_TEST(saver.last_committed_step() == 3);
}

// The real system refusing in the middle of a file (a quota behaves alike): the kernel takes a part, then
// EFBIG.
BOOST_AUTO_TEST_CASE(limit_of_the_operating_system_in_the_middle_of_a_file) {
  Bench bench;
  CheckpointSaver saver(*bench.real, *bench.control, bench.log, sample::options(bench.temp.path()));
  sample::save(saver, *bench.control, 1);
  saver.finish();
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit tight{1500, before.rlim_max};
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);  // else the kernel kills the program
  ::setrlimit(RLIMIT_FSIZE, &tight);
  sample::save(saver, *bench.control, 2);
  ErrorKind kind = ErrorKind::Internal;
  try {
    sample::save(saver, *bench.control, 3);
  } catch (const Error& error) {
    kind = error.kind();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, old_handler);
  BOOST_TEST((kind == ErrorKind::NoSpace));
  BOOST_TEST(saver.last_committed_step() == 1);
  check_folder(bench, 1, bench.temp.path());
  BOOST_TEST(bench.real->list(bench.temp / "checkpoints").size() == 2u);  // step_00000001 and latest
}

// Step 7: a second fsync after a failed one proves nothing, so there must be none.
BOOST_AUTO_TEST_CASE(no_file_is_synced_again_after_a_failed_fsync) {
  for (int64_t n = 1; n <= 6; ++n) {
    Bench bench;
    FaultFileSystem faulty(*bench.real);
    CheckpointSaver saver(faulty, *bench.control, bench.log, sample::options(bench.temp.path()));
    faulty.set_fault({.op = FileOp::Sync, .nth = n, .error = EIO, .keep_bytes = -1, .lasting = false});
    sample::save(saver, *bench.control, 1);
    sample::save(saver, *bench.control, 2);
    const auto all = faulty.syncs();
    for (const auto& failed : faulty.failed_syncs())
      BOOST_TEST(std::count(all.begin(), all.end(), failed) == 1, failed);
    if (n <= 5) BOOST_TEST(faulty.failed_syncs().size() == 1u);
  }
}

BOOST_AUTO_TEST_CASE(torn_write_is_never_committed) {
  for (const int64_t keep : {int64_t{0}, int64_t{1}, int64_t{100}}) {
    for (int64_t n = 1; n <= 12; ++n) {
      Bench bench;
      FaultFileSystem faulty(*bench.real);
      CheckpointSaver saver(faulty, *bench.control, bench.log, sample::options(bench.temp.path()));
      sample::save(saver, *bench.control, 1);
      saver.finish();
      faulty.clear_faults();
      faulty.set_fault({.op = FileOp::Write, .nth = n, .error = EIO, .keep_bytes = keep, .lasting = false});
      sample::save(saver, *bench.control, 2);
      BOOST_TEST(faulty.fired());
      BOOST_TEST(saver.last_committed_step() == 1);
      check_folder(bench, 1, bench.temp.path());
    }
  }
}

// The background failure is reported by the next poll, not later, and the run cannot end well.
BOOST_AUTO_TEST_CASE(failure_of_the_last_save_cannot_be_missed) {
  Bench bench;
  FaultFileSystem faulty(*bench.real);
  CheckpointSaver saver(faulty, *bench.control, bench.log, sample::options(bench.temp.path()));
  sample::save(saver, *bench.control, 1);
  saver.finish();
  faulty.clear_faults();
  faulty.set_fault({.op = FileOp::Close, .nth = 1, .error = EIO, .keep_bytes = -1, .lasting = false});
  BOOST_REQUIRE(sample::begin_save(saver, *bench.control, 2));
  BOOST_CHECK_EXCEPTION(saver.finish(), Error, [](const Error& error) {
    return exit_code(error.kind()) == 9 && error.message().find("step 2") != std::string::npos &&
           error.message().find("step_00000001") != std::string::npos;
  });
}

namespace {

// Records four saves with pruning, and how many were acknowledged after each record.
struct Recorded {
  std::vector<FileRecord> records;
  std::vector<int64_t> acknowledged;  // per count of records done: the newest acknowledged step, 0 for none
  std::string root;
};

Recorded record_run(Bench& bench) {
  FaultFileSystem recorder(*bench.real, FaultFileSystem::Recording::On);
  Recorded out;
  out.root = bench.temp / "recorded";
  bench.real->create_directories(out.root);
  std::vector<std::pair<size_t, int64_t>> marks;
  int64_t step = 0;
  auto options = sample::options(out.root);
  options.keep_latest_k = 2;
  options.at_point = [&](std::string_view point) {
    if (point == "ckpt.parent_synced") marks.emplace_back(recorder.records().size(), step);
  };
  {
    CheckpointSaver saver(recorder, *bench.control, bench.log, options);
    for (step = 1; step <= 4; ++step) sample::save(saver, *bench.control, step);
    saver.finish();
  }
  out.records = recorder.records();
  out.acknowledged.assign(out.records.size() + 1, 0);
  for (size_t i = 0; i <= out.records.size(); ++i)
    for (const auto& [at, marked] : marks)
      if (i >= at) out.acknowledged[i] = marked;
  return out;
}

// Counts crash states that lose an acknowledged checkpoint (or load a wrong one).
int64_t losses_over_crash_states(Bench& bench, const Recorded& run, int64_t states, uint64_t seed) {
  const CounterRng rng(seed, "crash");
  int64_t lost = 0;
  for (int64_t s = 0; s < states; ++s) {
    const auto base = static_cast<uint64_t>(s) << 20;
    const size_t done = rng.bits(base) % (run.records.size() + 1);
    const uint64_t bias = rng.bits(base + 1) % 3;  // most survives, half survives, little survives
    const std::string root = bench.temp / ("state" + std::to_string(s));
    bench.real->create_directories(root);
    replay_crash_state(*bench.real, run.records, done, run.root, root, [&](size_t record) {
      const uint64_t draw = rng.bits(base + 2 + record) % 8;
      if (draw == 0) return Survives::Torn;
      return draw <= 1 + 3 * bias ? Survives::No : Survives::Yes;
    });
    std::unique_ptr<CheckpointReader> found;
    try {
      found = find_checkpoint(*bench.real, *bench.control, bench.log, root);
    } catch (const Error&) {  // nothing usable, or not even a folder
    }
    const int64_t loaded = found ? found->step() : 0;
    if (loaded < run.acknowledged[done] || (found && sample::difference(*found) != "")) ++lost;
    found.reset();
    bench.real->remove_all(root);
  }
  return lost;
}

}  // namespace

BOOST_AUTO_TEST_CASE(no_crash_state_loses_an_acknowledged_checkpoint) {
  Bench bench;
  const Recorded run = record_run(bench);
  BOOST_TEST(run.records.size() > 60u);
  BOOST_TEST(run.acknowledged.back() == 4);
  BOOST_TEST_MESSAGE("seed 20240611, 600 states over " << run.records.size() << " operations");
  BOOST_TEST(losses_over_crash_states(bench, run, 600, 20240611) == 0);
}

// The replay must notice when a sync is missing, else the test above proves nothing (the table of
// reliability.md).
BOOST_AUTO_TEST_CASE(replay_notices_every_missing_sync) {
  Bench bench;
  const Recorded whole = record_run(bench);
  const auto without = [&](const std::function<bool(const FileRecord&)>& dropped) {
    Recorded run{{}, {0}, whole.root};
    for (size_t i = 0; i < whole.records.size(); ++i) {
      if (dropped(whole.records[i])) {
        run.acknowledged.back() = whole.acknowledged[i + 1];
        continue;
      }
      run.records.push_back(whole.records[i]);
      run.acknowledged.push_back(whole.acknowledged[i + 1]);
    }
    return losses_over_crash_states(bench, run, 300, 7);
  };
  const auto ends = [](const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
  };
  BOOST_TEST(
      without([&](const FileRecord& r) { return r.op == FileOp::Sync && ends(r.path, ".safetensors"); }) > 0);
  BOOST_TEST(without([&](const FileRecord& r) {
               return r.op == FileOp::Sync && ends(r.path, "manifest.json");
             }) > 0);
  BOOST_TEST(
      without([&](const FileRecord& r) { return r.op == FileOp::Sync && ends(r.path, "state.json"); }) > 0);
  BOOST_TEST(without([&](const FileRecord& r) {
               return r.op == FileOp::SyncDirectory && r.path.find("/tmp.") != std::string::npos &&
                      !ends(r.path, "tokenizer");
             }) > 0);
  BOOST_TEST(without([&](const FileRecord& r) {
               return r.op == FileOp::SyncDirectory && ends(r.path, "/tokenizer");
             }) > 0);
  BOOST_TEST(without([&](const FileRecord& r) {
               return r.op == FileOp::SyncDirectory && ends(r.path, "/checkpoints");
             }) > 0);
}
