#include "trainer/objective/teacher_links.h"

#include <algorithm>
#include <optional>

#include "trainer/device.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

constexpr double kNoDeadlineS = 1e9;  // 30 years

}  // namespace

TeacherAssignment TeacherAssignment::from_config(const ExperimentConfig& config, const Mesh& students) {
  const PipelineSchedule schedule = pipeline_schedule(config, students);
  return {.students = students,
          .teacher = teacher_mesh(config.objective),
          .head_stage = schedule.place(schedule.virtual_stages() - 1).rank};
}

int TeacherAssignment::rounds() const {
  const int replicas = teacher.size(MeshAxis::Dp);
  return (students.size(MeshAxis::Dp) + replicas - 1) / replicas;
}

int TeacherAssignment::replica_in_round(int rank, int round) const {
  const int replicas = teacher.size(MeshAxis::Dp);
  if (serves(rank)) {
    const int asks = round * replicas + teacher.coordinate(rank - students.world_size(), MeshAxis::Dp);
    return asks < students.size(MeshAxis::Dp) ? asks : -1;
  }
  const int own = students.coordinate(rank, MeshAxis::Dp);
  return own / replicas == round ? own : -1;
}

int TeacherAssignment::teacher_rank(int replica, int stage, int tensor) const {
  return students.world_size() +
         teacher.rank({stage, replica % teacher.size(MeshAxis::Dp), /*cp=*/0, /*ep=*/0, tensor});
}

std::vector<int> TeacherAssignment::head_ranks(int replica) const {
  return students.group(students.rank({head_stage, replica, /*cp=*/0, /*ep=*/0, /*tp=*/0}),
                        {MeshAxis::Cp, MeshAxis::Tp});
}

std::vector<int> TeacherAssignment::question_ranks(int replica) const {
  std::vector<int> ranks{head_ranks(replica).front()};
  for (int stage = 0; stage < teacher.size(MeshAxis::Pp); ++stage)
    for (int tensor = 0; tensor < teacher.size(MeshAxis::Tp); ++tensor)
      ranks.push_back(teacher_rank(replica, stage, tensor));
  return ranks;
}

std::vector<int> TeacherAssignment::answer_ranks(int replica) const {
  std::vector<int> ranks = head_ranks(replica);
  ranks.insert(ranks.begin(), teacher_rank(replica, /*stage=*/0, /*tensor=*/0));
  return ranks;
}

std::vector<TeacherLink> make_teacher_links(Job& job, const TeacherAssignment& assignment,
                                            at::Device device) {
  const int rank = job.control->rank();
  const auto ordinal = device.is_cuda() ? std::optional<int>(device.index()) : std::nullopt;
  const auto waits_at_most = assignment.serves(rank) ? std::optional(kNoDeadlineS) : std::nullopt;
  // Every rank of the job makes as many groups; in those that it is no end of it is alone.
  const auto make = [&](std::vector<int> ranks, bool mine, CommOptions options) -> std::unique_ptr<Comm> {
    options.ranks = mine ? std::move(ranks) : std::vector<int>{rank};
    auto comm = make_comm(job, options);
    return mine ? std::move(comm) : nullptr;
  };
  std::vector<TeacherLink> links;
  for (int round = 0; round < assignment.rounds(); ++round) {
    const int replica = assignment.replica_in_round(rank, round);
    const auto is_in = [&](const std::vector<int>& ranks) {
      return std::find(ranks.begin(), ranks.end(), rank) != ranks.end();
    };
    const auto asking = replica < 0 ? std::vector<int>{} : assignment.question_ranks(replica);
    const auto answering = replica < 0 ? std::vector<int>{} : assignment.answer_ranks(replica);
    TeacherLink link;
    link.questions = make(asking, is_in(asking),
                          {.group = "questions", .ranks = {}, .cuda_device = {}, .timeout_s = waits_at_most});
    link.answers = make(answering, is_in(answering),
                        {.group = "answers", .ranks = {}, .cuda_device = ordinal, .timeout_s = {}});
    if (link.answers) link.answers->set_compute_stream(compute_stream(device));
    if (link.questions || link.answers) links.push_back(std::move(link));
  }
  return links;
}

}  // namespace hearth
