#include "parallel/pipeline/schedule.h"

#include <fmt/core.h>

#include "base/error.h"
#include "parallel/pipeline/schedule_kinds.h"

namespace hearth {
namespace {

enum class Placement { Loop, VShape };

struct KindRow {
  ScheduleKind kind;
  std::string_view name;
  int chunks;  // implied_chunks()
  Placement placement;
  RankActions actions;
};

constexpr std::array kKinds{
    KindRow{ScheduleKind::OneFOneB, "1f1b", 1, Placement::Loop, one_f_one_b_actions},
    KindRow{ScheduleKind::Interleaved, "interleaved", 0, Placement::Loop, interleaved_actions},
    KindRow{ScheduleKind::ZbH1, "zb_h1", 1, Placement::Loop, zb_h1_actions},
    KindRow{ScheduleKind::Zbv, "zbv", 2, Placement::VShape, zbv_actions},
    KindRow{ScheduleKind::DualPipeV, "dualpipev", 2, Placement::VShape, dualpipev_actions},
};

const KindRow& row(ScheduleKind kind) {
  for (const KindRow& candidate : kKinds)
    if (candidate.kind == kind) return candidate;
  fail(ErrorKind::Internal, "pipeline schedule {} has no row (please report)", static_cast<int>(kind));
}

}  // namespace

std::vector<ScheduleKind> schedule_kinds() {
  std::vector<ScheduleKind> kinds;
  for (const KindRow& known : kKinds) kinds.push_back(known.kind);
  return kinds;
}

std::string_view config_name(ScheduleKind kind) {
  return row(kind).name;
}

ScheduleKind schedule_kind_from_config(std::string_view name) {
  std::string known;
  for (const KindRow& candidate : kKinds) {
    if (candidate.name == name) return candidate.kind;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", candidate.name);
  }
  fail(ErrorKind::Config, "there is no pipeline schedule '{}': use one of {}", name, known);
}

int implied_chunks(ScheduleKind kind) {
  return row(kind).chunks;
}

std::string_view name(ActionKind kind) {
  constexpr std::array<std::string_view, 9> kNames{"Forward",        "Backward",        "BackwardInput",
                                                   "BackwardWeight", "ForwardBackward", "SendForward",
                                                   "RecvForward",    "SendBackward",    "RecvBackward"};
  return kNames[static_cast<size_t>(kind)];
}

std::string describe(const Action& action) {
  std::string text = fmt::format("{} chunk {} micro {}", name(action.kind), action.chunk, action.micro);
  if (action.kind == ActionKind::ForwardBackward)
    text += fmt::format(", chunk {} micro {}", action.backward_chunk, action.backward_micro);
  return text;
}

bool is_transfer(const Action& action) {
  return action.kind >= ActionKind::SendForward;
}

int PipelineSchedule::virtual_stage(int rank, int chunk) const {
  HEARTH_REQUIRE(rank >= 0 && rank < stages && chunk >= 0 && chunk < chunks,
                 "pipeline schedule: no chunk {} on rank {}: there are {} chunks on each of {} ranks", chunk,
                 rank, chunks, stages);
  if (row(kind).placement == Placement::VShape) return chunk == 0 ? rank : 2 * stages - 1 - rank;
  return chunk * stages + rank;
}

PipelineSchedule::Place PipelineSchedule::place(int virtual_stage) const {
  HEARTH_REQUIRE(virtual_stage >= 0 && virtual_stage < virtual_stages(),
                 "pipeline schedule: no virtual stage {}: there are {}", virtual_stage, virtual_stages());
  if (row(kind).placement == Placement::Loop) return {virtual_stage % stages, virtual_stage / stages};
  if (virtual_stage < stages) return {virtual_stage, 0};
  return {2 * stages - 1 - virtual_stage, 1};
}

PipelineSchedule make_schedule(ScheduleKind kind, int stages, int chunks, int micros) {
  const KindRow& chosen = row(kind);
  HEARTH_CHECK(stages >= 1 && chunks >= 1 && micros >= 1, Config,
               "pipeline schedule {}: stages, chunks and micro-batches must be >= 1, got {}, {} and {}",
               chosen.name, stages, chunks, micros);
  HEARTH_CHECK(chosen.chunks == 0 || chunks == chosen.chunks, Config,
               "pipeline schedule {} has {} chunk(s) per rank, got {}", chosen.name, chosen.chunks, chunks);
  PipelineSchedule schedule{.kind = kind, .stages = stages, .chunks = chunks, .micros = micros, .ranks = {}};
  for (int rank = 0; rank < stages; ++rank)
    schedule.ranks.push_back(chosen.actions({stages, chunks, micros}, rank));
  return schedule;
}

}  // namespace hearth
