#include "launch/watch/watch_config.h"

#include <algorithm>

#include "base/error.h"
#include "launch/config_parser.h"
#include "launch/config_reader.h"

namespace hearth {
namespace {

struct WatchFile {
  WatchConfig watch;
  template <class V>
  void visit(V&& v) {
    v("watch", watch, OnResume::MayChange, "the loop");
  }
};

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

}  // namespace

int minute_of_day(const std::string& text) {
  if (text.size() != 5 || text[2] != ':') return -1;
  for (const size_t i : {0, 1, 3, 4})
    if (!is_digit(text[i])) return -1;
  const int hour = (text[0] - '0') * 10 + text[1] - '0', minute = (text[3] - '0') * 10 + text[4] - '0';
  return hour < 24 && minute < 60 ? hour * 60 + minute : -1;
}

void TriggerConfig::validate(ConfigErrors& e) const {
  e.require(min_new_bytes >= 0, "min_new_bytes", "must be >= 0, got {}", min_new_bytes);
  e.require(min_new_documents >= 0, "min_new_documents", "must be >= 0, got {}", min_new_documents);
  e.require(max_age_s >= 0, "max_age_s", "must be >= 0, got {}", max_age_s);
  for (size_t i = 0; i < schedule.size(); ++i)
    e.require(minute_of_day(schedule[i]) >= 0, fmt::format("schedule[{}]", i),
              "must be \"HH:MM\" from 00:00 to 23:59, in quotes, got '{}'", schedule[i]);
  e.require(
      min_new_bytes > 0 || min_new_documents > 0 || max_age_s > 0 || !schedule.empty(), "min_new_bytes",
      "no condition is set, so no run would ever start: give min_new_bytes, min_new_documents, max_age_s "
      "or schedule");
}

void WatchConfig::validate(ConfigErrors& e) const {
  const std::pair<const char*, const std::string*> required[] = {
      {"experiment", &experiment}, {"inbox", &inbox},           {"workspace", &workspace},
      {"tokenizer", &tokenizer},   {"base_model", &base_model}, {"serving", &serving}};
  for (const auto& [key, value] : required) e.require(!value->empty(), key, "is required");
  {
    const ConfigErrors::Scope scope(e, "trigger");
    trigger.validate(e);
  }
  const double kDay = 86400;
  e.require(0 <= settle_s && settle_s <= kDay, "settle_s", "must be in [0, 86400], got {}", settle_s);
  e.require(0.01 <= poll_interval_s && poll_interval_s <= kDay, "poll_interval_s",
            "must be in [0.01, 86400], got {}", poll_interval_s);
  e.require(0 < validation_fraction && validation_fraction < 1, "validation_fraction",
            "must be in (0, 1): without held-out documents no candidate can be judged; got {}",
            validation_fraction);
  e.require(0 <= epochs && epochs <= 1000, "epochs", "must be in [0, 1000], got {}", epochs);
  for (size_t i = 0; i < replay.size(); ++i) {
    const ConfigErrors::Scope scope(e, fmt::format("replay[{}]", i));
    replay[i].validate(e);
  }
  e.require(0 <= replay_share && replay_share < 1, "replay_share", "must be in [0, 1), got {}", replay_share);
  e.require(replay.empty() == (replay_share == 0), "replay_share",
            "and replay go together: got {} for {} datasets", replay_share, replay.size());
  e.require(std::isfinite(max_loss_increase), "max_loss_increase", "must be finite, got {}",
            max_loss_increase);
  e.require(std::isfinite(max_forgetting), "max_forgetting", "must be finite, got {}", max_forgetting);
  e.require(keep_releases >= 1, "keep_releases", "must be >= 1, got {}", keep_releases);
}

WatchConfig parse_watch_config(const std::string& text, const std::string& path) {
  std::vector<ConfigProblem> problems;
  YamlNode root = parse_yaml(text, path, problems);
  std::vector<std::string> keys;
  for (auto& flat : flatten_config(WatchFile{})) keys.push_back(std::move(flat.key));
  WatchFile file;
  LoadedConfig loaded;  // for its positions alone
  loaded.path = path;
  ConfigReader(problems, loaded.positions, std::move(keys)).read_struct(root, file, "");
  ConfigErrors errors;
  {
    const ConfigErrors::Scope scope(errors, "watch");
    file.watch.validate(errors);
  }
  for (auto& problem : located(loaded, errors)) {
    const bool known = std::any_of(problems.begin(), problems.end(), [&](const ConfigProblem& other) {
      return problem.key == other.key || problem.key.starts_with(other.key + ".");
    });
    if (!known) problems.push_back(std::move(problem));
  }
  throw_problems(std::move(problems), path);
  return file.watch;
}

std::string watch_reference_markdown() {
  std::string out = R"(# Files of `hearth watch`

One section, `watch`; as strict as an experiment file. `example.yaml` is complete. Relative paths are relative to the
working directory. The six paths at the top and one condition of `trigger` must be given. What the loop does, and how it
is resumed: [launch/watch/README.md](../../launch/watch/README.md).

This page is made from the program's own table: `HEARTH_UPDATE=1 build/tests/launch/watch/launch_watch_watch_loop_test`.

| key | default | meaning |
|---|---|---|
)";
  for (const auto& key : flatten_config(WatchConfig{}))
    out += fmt::format("| `{}` | `{}` | {} |\n", key.key, key.value, key.doc);
  return out;
}

WatchConfig load_watch_config(FileSystem& fs, const std::string& path) {
  HEARTH_CHECK(fs.exists(path), Config, "there is no file '{}'", path);
  HEARTH_CHECK(!fs.is_directory(path), Config, "'{}' is a folder, not a file of `hearth watch`", path);
  return parse_watch_config(fs.read_text(path), path);
}

}  // namespace hearth
