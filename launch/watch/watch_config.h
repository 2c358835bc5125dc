// The file of `hearth watch`: one section, `watch`. As strict as an experiment file: unknown keys, wrong
// types and values out of range are reported all at once with file:line:column. Plain data; thread-safe.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "base/config_visit.h"
#include "base/file_system.h"
#include "data/data_config.h"

namespace hearth {

// When waiting files become a run. Any one condition is enough; a key that is 0 or empty asks for nothing.
struct TriggerConfig {
  int64_t min_new_bytes = 0;
  int64_t min_new_documents = 0;
  int64_t max_age_s = 0;
  std::vector<std::string> schedule;
  template <class V>
  void visit(V&& v) {
    v("min_new_bytes", min_new_bytes, OnResume::MayChange, "volume: bytes of the waiting files, as uploaded");
    v("min_new_documents", min_new_documents, OnResume::MayChange,
      "volume: documents of the waiting files (lines of .jsonl; any other file is one)");
    v("max_age_s", max_age_s, OnResume::MayChange, "age: seconds that the oldest waiting file may wait");
    v("schedule", schedule, OnResume::MayChange,
      "hours of the day, local time, \"HH:MM\": a file that was there by then waits no longer");
  }
  void validate(ConfigErrors& e) const;
};

// Minute of the day of "HH:MM"; -1 where it is none.
int minute_of_day(const std::string& text);

struct WatchConfig {
  std::string experiment, inbox, workspace, tokenizer, base_model, serving;
  std::vector<std::string> launcher;
  std::vector<std::string> prepare_arguments, train_arguments, eval_arguments, export_arguments;
  TriggerConfig trigger;
  double settle_s = 30;
  double poll_interval_s = 10;
  double validation_fraction = 0.05;
  double epochs = 1;
  std::vector<DatasetEntry> replay;
  double replay_share = 0;
  double max_loss_increase = 0;
  std::vector<std::string> old_validation;
  double max_forgetting = 0.02;
  int64_t keep_releases = 3;

  template <class V>
  void visit(V&& v) {
    const auto key = OnResume::MayChange;  // a run that was planned keeps what it was planned with
    v("experiment", experiment, key,
      "experiment file of each run; weights, data and run folder come from here");
    v("inbox", inbox, key,
      "folder that new files arrive in, of the endings that `hearth data prepare` reads");
    v("workspace", workspace, key, "folder for everything that the loop keeps");
    v("tokenizer", tokenizer, key, "tokenizer of the model, as `hearth data prepare` takes it");
    v("base_model", base_model, key, "release 0000: checkpoint, run folder or HF directory");
    v("serving", serving, key, "link that serving engines read; switched to a release at once or not at all");
    v("launcher", launcher, key,
      "words before `hearth train`, `eval` and `export`: [launch/mpirun.sh, \"8\"]");
    v("prepare_arguments", prepare_arguments, key, "more words for `hearth data prepare`");
    v("train_arguments", train_arguments, key, "more words for `hearth train`");
    v("eval_arguments", eval_arguments, key, "more words for `hearth eval`");
    v("export_arguments", export_arguments, key, "more words for `hearth export`");
    v("trigger", trigger, key, "when waiting files become a run");
    v("settle_s", settle_s, key, "a file counts once its size and time did not change for so long");
    v("poll_interval_s", poll_interval_s, key, "pause between two looks into the inbox");
    v("validation_fraction", validation_fraction, key,
      "share of the new documents that judges the candidate");
    v("epochs", epochs, key,
      "passes over the new documents, sets training.train_iters; 0: as the experiment says");
    v("replay", replay, key, "older datasets that are mixed in");
    v("replay_share", replay_share, key, "their share of the samples");
    v("max_loss_increase", max_loss_increase, key,
      "on new held-out documents the candidate's loss may be so much (nats) above the serving release's");
    v("old_validation", old_validation, key, "older held-out datasets");
    v("max_forgetting", max_forgetting, key,
      "on each of them the candidate's loss may be so much (nats) above the best release so far");
    v("keep_releases", keep_releases, key, "newest releases, candidates and checkpoints that are kept");
  }
  void validate(ConfigErrors& e) const;
};

// Throws Error{Config} that lists every mistake.
WatchConfig load_watch_config(FileSystem& fs, const std::string& path);
std::string watch_reference_markdown();  // configs/watch/README.md
WatchConfig parse_watch_config(const std::string& text, const std::string& path);

}  // namespace hearth
