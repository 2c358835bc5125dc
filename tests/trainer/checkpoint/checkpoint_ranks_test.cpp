// Checkpoints of several ranks: flat-sharded and column-sharded state saved by all, read back in any layout.
#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>

#include "parallel/bootstrap.h"
#include "tests/trainer/checkpoint/sample_state.h"
#include "tests/trainer/checkpoint/temp_folder.h"
#include "trainer/checkpoint/find_checkpoint.h"
#include "trainer/checkpoint/safetensors.h"

using namespace hearth;

namespace {

// One MPI job for all cases of the program.
struct World {
  Job job = start_job(LaunchEnvironment::read([](const char* name) { return std::getenv(name); }), {});
  std::unique_ptr<FileSystem> fs = make_posix_file_system();
  Log log{Log::Options{.rank = job.control->rank(),
                       .world_size = job.control->world_size(),
                       .level = LogLevel::Error,
                       .file = ""}};
  static World& get() {
    static World world;
    return world;
  }
};
struct EndOfJob {
  EndOfJob() { World::get(); }
};

// A folder that all ranks share; rank 0 makes and removes it.
struct SharedFolder {
  std::unique_ptr<TempFolder> mine;
  std::string path;
  explicit SharedFolder(ControlPlane& control) {
    if (control.rank() == 0) mine = std::make_unique<TempFolder>();
    path = control.broadcast(mine ? mine->path() : "", "test.folder");
  }
};

}  // namespace

BOOST_GLOBAL_FIXTURE(EndOfJob);

BOOST_AUTO_TEST_CASE(any_layout_reads_what_all_ranks_saved) {
  World& w = World::get();
  ControlPlane& control = *w.job.control;
  BOOST_TEST(control.world_size() > 1);
  const SharedFolder folder(control);
  CheckpointSaver saver(*w.fs, control, w.log, sample::options(folder.path));
  sample::save(saver, control, 4);
  BOOST_REQUIRE(sample::begin_save(saver, control, 8));
  while (saver.in_flight()) saver.poll();  // as a loop would, at its step boundaries
  saver.finish();
  BOOST_TEST(saver.last_committed_step() == 8);
  const auto reader = find_checkpoint(*w.fs, control, w.log, folder.path);
  BOOST_REQUIRE(reader != nullptr);
  BOOST_TEST(reader->step() == 8);
  BOOST_TEST(reader->manifest().world_size == control.world_size());
  for (const int world : {1, 2, 3, 5}) BOOST_TEST(sample::difference(*reader, world) == "");
  // What the manifest says about a slice is what the safetensors header says.
  for (const auto& tensor : reader->manifest().tensors) {
    for (const auto& slice : tensor.slices) {
      const auto& name = reader->manifest().files[static_cast<size_t>(slice.file)].name;
      const SafetensorsFile file(*w.fs, reader->directory() + "/" + name);
      BOOST_REQUIRE(file.find(tensor.info.name) != nullptr);
      BOOST_TEST(file.find(tensor.info.name)->offset == slice.offset);
      BOOST_TEST(file.find(tensor.info.name)->info.numel() == slice.end - slice.begin);
    }
  }
  control.barrier("test.end");
}

BOOST_AUTO_TEST_CASE(one_bad_rank_file_makes_all_ranks_take_the_older_checkpoint) {
  World& w = World::get();
  ControlPlane& control = *w.job.control;
  const SharedFolder folder(control);
  {
    CheckpointSaver saver(*w.fs, control, w.log, sample::options(folder.path));
    for (const int64_t step : {1, 2}) sample::save(saver, control, step);
    saver.finish();
  }
  if (control.rank() == 0) {
    const std::string path = folder.path + "/checkpoints/step_00000002/rank_001.safetensors";
    std::string bytes = w.fs->read_text(path);
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    const auto file = w.fs->create(path, CreateMode::Truncate);
    file->write(bytes);
    file->close();
  }
  control.barrier("test.damaged");
  const auto reader = find_checkpoint(*w.fs, control, w.log, folder.path);
  BOOST_TEST(reader->step() == 1);
  BOOST_TEST(sample::difference(*reader) == "");
  control.barrier("test.end");
}

BOOST_AUTO_TEST_CASE(a_value_that_is_not_finite_on_the_last_rank_stops_all) {
  World& w = World::get();
  ControlPlane& control = *w.job.control;
  const SharedFolder folder(control);
  CheckpointSaver saver(*w.fs, control, w.log, sample::options(folder.path));
  const int last = control.world_size() - 1;
  Snapshot* snapshot = saver.begin(sample::identity(1), sample::pieces(control.rank(), control.world_size()));
  BOOST_REQUIRE(snapshot != nullptr);
  for (size_t i = 0; i < snapshot->pieces().size(); ++i)
    std::memset(snapshot->data(i), control.rank() == last ? 0xff : 0,
                static_cast<size_t>(snapshot->pieces()[i].bytes()));
  saver.commit_async("{}");
  BOOST_CHECK_EXCEPTION(saver.wait(), Error, [&](const Error& error) {
    return error.kind() == ErrorKind::Numeric &&
           error.message().find(fmt::format("rank {}", last)) != std::string::npos;
  });
  BOOST_TEST(list_checkpoints(*w.fs, folder.path).empty());
  control.barrier("test.end");
}

BOOST_AUTO_TEST_CASE(memory_is_reserved_once_and_a_rank_without_any_stops_all) {
  World& w = World::get();
  ControlPlane& control = *w.job.control;
  const SharedFolder folder(control);
  const auto pieces = sample::pieces(control.rank(), control.world_size());
  auto options = sample::options(folder.path);
  int64_t made = 0;
  options.allocator = {[&](int64_t bytes) {
                         ++made;
                         return std::malloc(static_cast<size_t>(bytes));
                       },
                       [](void* memory) { std::free(memory); }};
  {
    CheckpointSaver saver(*w.fs, control, w.log, options);
    saver.reserve(pieces);
    BOOST_TEST(made == 1);
    for (const int64_t step : {1, 2}) sample::save(saver, control, step);
    saver.finish();
    BOOST_TEST(made == 1);
  }
  const auto reader = find_checkpoint(*w.fs, control, w.log, folder.path);
  BOOST_REQUIRE(reader != nullptr);
  BOOST_TEST(sample::difference(*reader) == "");
  const int last = control.world_size() - 1;
  if (control.rank() == last) options.allocator.allocate = [](int64_t) -> void* { return nullptr; };
  CheckpointSaver starved(*w.fs, control, w.log, options);
  BOOST_CHECK_EXCEPTION(starved.reserve(pieces), Error, [&](const Error& error) {
    return error.kind() == ErrorKind::NoSpace &&
           error.message().find(fmt::format("rank {}", last)) != std::string::npos;
  });
  control.barrier("test.end");
}

BOOST_AUTO_TEST_CASE(streaming_save_of_all_ranks_reads_back) {
  World& w = World::get();
  ControlPlane& control = *w.job.control;
  const SharedFolder folder(control);
  const std::string path = folder.path + "/imported";
  save_checkpoint(*w.fs, control, w.log, path, sample::identity(3),
                  sample::pieces(control.rank(), control.world_size()),
                  [](const TensorPiece& piece, int64_t first, int64_t count, void* out) {
                    sample::fill(piece, first, count, 3, out);
                  },
                  "{\"step\": 3}", {{"tokenizer/tokenizer.json", "{\"tok\": 1}"}});
  const auto reader = find_checkpoint(*w.fs, control, w.log, path);
  BOOST_TEST(sample::difference(*reader, 3) == "");
  control.barrier("test.end");
}

BOOST_AUTO_TEST_CASE(python_safetensors_loads_every_rank_file) {
  World& w = World::get();
  ControlPlane& control = *w.job.control;
  const char* python = std::getenv("HEARTH_PYTHON");
  if (python == nullptr) {
    BOOST_TEST_MESSAGE("HEARTH_PYTHON is not set: skipped");
    return;
  }
  const SharedFolder folder(control);
  CheckpointSaver saver(*w.fs, control, w.log, sample::options(folder.path));
  sample::save(saver, control, 1);
  saver.finish();
  if (control.rank() == 0) {
    const auto script = w.fs->create(folder.path + "/check.py", CreateMode::Truncate);
    script->write(R"(import glob, json, os, sys
from safetensors.torch import load_file
folder = sys.argv[1]
manifest = json.load(open(os.path.join(folder, 'manifest.json')))
held = {}
for path in sorted(glob.glob(os.path.join(folder, 'rank_*.safetensors'))):
    for name, tensor in load_file(path).items():
        held[name] = held.get(name, 0) + tensor.numel()
for tensor in manifest['tensors']:
    count = 1
    for extent in tensor['shape']:
        count *= extent
    assert held.get(tensor['name'], 0) == count, (tensor['name'], held)
assert len(held) == 7, sorted(held)
)");
    script->close();
    BOOST_TEST(
        std::system(
            (std::string(python) + " " + folder.path + "/check.py " + saver.last_committed_path()).c_str()) ==
        0);
  }
  control.barrier("test.end");
}
