// A whole workspace in a temporary folder, with children that are functions: prepare is the real one
// (data/prepare.h), training, export and evaluation write and read a number. Time stands still until told.
#pragma once

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fault_file_system.h"
#include "base/hash.h"
#include "data/prepare.h"
#include "launch/watch/lineage.h"
#include "launch/watch/watch_loop.h"
#include "tests/data/data_fixture.h"
#include "tests/trainer/checkpoint/temp_folder.h"

namespace hearth::testing {

class ManualClock final : public Clock {
 public:
  int64_t seconds = 1'700'000'000;  // 22:13:20 UTC
  int64_t now_s() override { return seconds; }
  int64_t monotonic_ms() override { return seconds * 1000; }
  void sleep_ms(int64_t) override { ++seconds; }
  int64_t latest_local(int minute_of_day) override {
    const int64_t today = seconds - seconds % 86400 + minute_of_day * 60;
    return today <= seconds ? today : today - 86400;
  }
};

// A model is a folder with config.json, whose number is its loss on everything; a training takes 1 from it,
// or adds 1 where a document says "poison".
class FakeChildren final : public ChildRunner {
 public:
  explicit FakeChildren(FileSystem& fs) : fs_(fs) {}
  std::vector<std::string> calls;        // "prepare", "train" ...
  std::map<std::string, int> fail_with;  // step -> exit code
  std::function<void(const std::string& step)> before;

  ChildResult run(const ChildCommand& command) override {
    const auto& words = command.words;
    const size_t verb = 1;
    BOOST_REQUIRE(words.at(0) == "hearth");
    const std::string step = words.at(verb) == "data" ? "prepare" : words.at(verb);
    calls.push_back(step);
    if (before) before(step);
    if (const auto code = fail_with.find(step); code != fail_with.end())
      return {code->second, "ordered to fail"};
    try {
      if (step == "prepare") prepare(words);
      if (step == "train") train(words);
      if (step == "export") export_model(words);
      if (step == "eval")
        write_file(command.output,
                   nlohmann::json{{"loss", number(words.at(2))}, {"num_tokens", 7}}.dump() + "\n");
    } catch (const Error& error) {
      return {exit_code(error.kind()), error.message()};
    }
    return {0, ""};
  }
  int64_t count(const std::string& step) const { return std::count(calls.begin(), calls.end(), step); }

 private:
  static std::string after(const std::vector<std::string>& words, const std::string& flag) {
    for (size_t i = 0; i + 1 < words.size(); ++i)
      if (words[i] == flag) return words[i + 1];
    return "";
  }
  static std::string value(const std::vector<std::string>& words, const std::string& key) {
    for (const auto& set : set_values(words))
      if (set.starts_with(key + "=")) return set.substr(key.size() + 1);
    BOOST_FAIL("no " + key);
    return "";
  }
  double number(const std::string& folder) const {
    return nlohmann::json::parse(read_file(folder + "/config.json")).at("loss").get<double>();
  }
  void prepare(const std::vector<std::string>& words) {
    PrepareOptions options;
    options.inputs = {words.at(3)};
    options.tokenizer = after(words, "--tokenizer");
    options.output = after(words, "--output");
    options.num_workers = 1;
    if (const auto fraction = after(words, "--validation-fraction"); !fraction.empty())
      options.validation_fraction = std::stod(fraction);
    prepare_dataset(fs_, options);
  }
  void train(const std::vector<std::string>& words) {
    const std::string save = nlohmann::json::parse(value(words, "checkpoint.save")).get<std::string>();
    const std::string from = nlohmann::json::parse(value(words, "model.init_from")).get<std::string>();
    const std::filesystem::path run(save);
    const std::string data = run.parent_path().parent_path() / "data" / run.filename() / "train";
    bool poison = false;
    const auto dataset = Dataset::open(fs_, data);
    for (int64_t i = 0; i < dataset->num_documents(); ++i) {
      std::string text;
      for (const int32_t id : dataset->document(i)) text += static_cast<char>(id);
      poison = poison || text.find("poison") != std::string::npos;
    }
    const std::string step = save + "/checkpoints/step_00000005";
    write_file(step + "/config.json", nlohmann::json{{"loss", number(from) + (poison ? 1 : -1)}}.dump());
    write_file(step + "/manifest.json", "{}");
  }
  void export_model(const std::vector<std::string>& words) {
    const std::string output = after(words, "--output"), partial = output + ".partial";
    write_file(partial + "/config.json", read_file(words.at(2) + "/config.json"));
    write_file(partial + "/model.safetensors", std::string(1000, 'x'));
    fs_.rename(partial, output);
  }
  FileSystem& fs_;
};

inline constexpr const char* kExperiment = R"(
model: {init_from: left to watch}
data: {seq_length: 64}
training: {train_iters: 1, micro_batch_size: 1, global_batch_size: 4}
)";

struct WatchBench {
  hearth::TempFolder folder;  // in memory: thousands of fsyncs
  std::unique_ptr<FileSystem> fs = make_posix_file_system();
  ManualClock clock;
  FakeChildren children{*fs};
  WatchConfig config;
  Log log{{.level = LogLevel::Error}};
  AtPoint at_point;
  std::function<bool()> stop;
  bool give_up = false;

  WatchBench() {
    write_byte_tokenizer(folder / "tokenizer");
    write_file(folder / "experiment.yaml", kExperiment);
    write_file(folder / "base/config.json", R"({"loss": 100})");
    std::filesystem::create_directories(folder / "inbox");
    config.experiment = folder / "experiment.yaml";
    config.inbox = folder / "inbox";
    config.workspace = folder / "work";
    config.tokenizer = folder / "tokenizer";
    config.base_model = folder / "base";
    config.serving = folder / "live/model";
    config.settle_s = 2;
    config.poll_interval_s = 1;
    config.validation_fraction = 0.3;
    config.trigger.min_new_bytes = 1;
  }
  std::string work(const std::string& name) const { return folder / ("work/" + name); }
  // 12 documents, enough for both parts; other ones for another `seed`.
  void drop(const std::string& name, int seed, const std::string& word = "word") {
    std::string text;
    for (int i = 0; i < 12; ++i)
      text += nlohmann::json{{"text", fmt::format("{} {} of file {} with some more letters to fill a window",
                                                  word, i, seed)}}
                  .dump() +
              "\n";
    write_file(config.inbox + "/" + name, text);
  }
  void run(FileSystem* other = nullptr) {
    FileSystem& used = other ? *other : *fs;
    WatchLoop loop({.config = config,
                    .fs = used,
                    .clock = clock,
                    .children = children,
                    .log = log,
                    .program = "hearth",
                    .at_point = at_point,
                    .stop_requested = stop,
                    .check_lock = {}});
    if (give_up) loop.give_up_run();
    loop.run(WatchMode::UntilIdle);
  }
  std::vector<LineageEvent> events() const { return read_lineage(*fs, work("lineage.jsonl")); }
  LineageIndex index() const { return index_lineage(events()); }
  int64_t count(const std::string& event) const {
    int64_t number = 0;
    for (const auto& entry : events()) number += entry.at("event") == event;
    return number;
  }
  // The release that the link points to; checks that it is whole, whatever was interrupted.
  std::string served() const {
    if (!fs->is_symlink(config.serving)) return "";
    const std::string target = std::filesystem::canonical(config.serving).string();
    BOOST_TEST(std::filesystem::file_size(target + "/model.safetensors") == 1000u);
    BOOST_TEST(nlohmann::json::parse(read_file(target + "/config.json")).contains("loss"));
    return std::filesystem::path(target).filename();
  }
};

}  // namespace hearth::testing
