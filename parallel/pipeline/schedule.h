// Pipeline schedules as data: a pure function (kind, stages, chunks, micros) -> what each pipeline rank does,
// in order. No torch, no communication, no clock. Value types; every function is pure and thread-safe.
//
// Words: a *stage* is a pipeline rank (P of them), a *chunk* a piece of the model that a rank holds (V per
// rank), a *virtual stage* the place of a chunk in model order (0 .. P*V-1), a *micro* a micro-batch of the
// step (M of them).
//
// Sources of the lists: see the head of each schedule_<kind>.cpp. Costs and memory of a list: simulator.h.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hearth {

enum class ScheduleKind { OneFOneB, Interleaved, ZbH1, Zbv, DualPipeV };
std::vector<ScheduleKind> schedule_kinds();       // all of them
std::string_view config_name(ScheduleKind kind);  // 1f1b interleaved zb_h1 zbv dualpipev
// The inverse. Throws Error{Config} that lists the names.
ScheduleKind schedule_kind_from_config(std::string_view name);
// Chunks per rank that the kind is defined for: 1 (1f1b, zb_h1), 2 (zbv, dualpipev), or 0: the user's choice,
// at least 2 (interleaved).
int implied_chunks(ScheduleKind kind);

enum class ActionKind {
  Forward,
  Backward,         // gradients of the chunk's input and of its weights
  BackwardInput,    // of its input alone; a BackwardWeight of the same chunk and micro follows later
  BackwardWeight,   // of its weights
  ForwardBackward,  // a Forward and a full Backward of another micro or chunk, to be overlapped
  SendForward,      // activations to the rank of the next virtual stage
  RecvForward,      // activations from the rank of the previous virtual stage
  SendBackward,     // gradients to the rank of the previous virtual stage
  RecvBackward      // gradients from the rank of the next virtual stage
};
std::string_view name(ActionKind kind);  // "Forward", ...

struct Action {
  ActionKind kind;
  int chunk = 0;
  int micro = 0;
  int backward_chunk = -1, backward_micro = -1;  // ForwardBackward only
  bool operator==(const Action&) const = default;
};
std::string describe(const Action& action);  // "ForwardBackward chunk 0 micro 5, chunk 1 micro 2"
bool is_transfer(const Action& action);

struct PipelineSchedule {
  ScheduleKind kind = ScheduleKind::OneFOneB;
  int stages = 1, chunks = 1, micros = 1;
  std::vector<std::vector<Action>> ranks;  // [stages], each in the order of execution

  // Virtual stage that `chunk` of pipeline rank `rank` holds. Interleaved: chunk * P + rank. V shape (zbv,
  // dualpipev): chunk 0 -> rank, chunk 1 -> 2P - 1 - rank.
  int virtual_stage(int rank, int chunk) const;
  struct Place {
    int rank, chunk;
    bool operator==(const Place&) const = default;
  };
  Place place(int virtual_stage) const;
  int virtual_stages() const { return stages * chunks; }

  bool operator==(const PipelineSchedule&) const = default;
};

// Compute actions only. Throws Error{Config} that says what is allowed for counts that the kind cannot take:
// all >= 1; chunks as implied_chunks(); interleaved: micros a multiple of stages; dualpipev: micros >= 2 *
// stages.
PipelineSchedule make_schedule(ScheduleKind kind, int stages, int chunks, int micros);

// Adds the transfers to a schedule of compute actions: a send (chunk and micro are the producer's) after the
// compute action that makes it, where the neighbour virtual stage lives on another rank, and its recv (chunk
// and micro are the consumer's) before the compute action that needs it, earlier where that is safe.
//
// Safe: all ranks keep one order of all transfers and compute actions, by time in a run where every piece
// takes one unit; a transfer has the time of the action that sends. So no list can hang even where a transfer
// stops whatever its rank does after it, as a kernel that waits for a peer may (CUDA promises no progress of
// one stream past another, and hardware queues are shared). check_schedule asks for that.
//
// What an executor must do: Send and Recv only post asynchronous transfers; a compute action waits for the
// transfers that it needs. For each ordered pair of ranks (channel a -> b) there is one FIFO: the k-th send
// that a posts to b is the k-th recv that b posts from a, activations and gradients alike. Where the
// consumer's order differs from the channel's, a recv is posted earlier than it need be.
PipelineSchedule with_transfers(const PipelineSchedule& schedule);

// Throws Error{Internal} naming the first rule broken: each (virtual stage, micro) has one Forward, then
// exactly one of Backward or (BackwardInput, then BackwardWeight), all on the rank that holds it; the lists
// can be run to their end on all ranks, even if each transfer held up both its ends until it is through;
// where there are transfers, each needed one is posted once on both ends, on the right side of its compute
// action, and both ends of each channel agree on the order. A schedule without any transfer is checked as one
// of compute actions.
void check_schedule(const PipelineSchedule& schedule);

}  // namespace hearth
