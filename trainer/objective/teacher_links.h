// A job in two parts: ranks [0, students) train, the last objective.teacher_ranks ranks serve a teacher under
// a layout of their own. Who asks whom, and the communicators for it. Replica s of the students' model asks
// replica s modulo their number of the teacher's, which answers its students in turn.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "parallel/bootstrap.h"
#include "parallel/mesh.h"
#include "trainer/experiment_config.h"

namespace hearth {

// Pure; ranks are those of the job.
struct TeacherAssignment {
  Mesh students, teacher;
  int head_stage = 0;  // pipeline coordinate of the students' head

  // `config` is one that require_layout() accepts, `students` is what it returned.
  static TeacherAssignment from_config(const ExperimentConfig& config, const Mesh& students);

  bool serves(int rank) const { return rank >= students.world_size(); }
  // The students' replica that `rank` asks for, or answers to, in a round of service; -1: none.
  int replica_in_round(int rank, int round) const;
  int rounds() const;  // most students that a replica of the teacher has
  // All who hear the questions of a students' replica. The first one asks: a rank with the head.
  std::vector<int> question_ranks(int replica) const;
  // The rank that speaks for the teacher's replica, then the students' ranks with the head.
  std::vector<int> answer_ranks(int replica) const;

 private:
  std::vector<int> head_ranks(int replica) const;
  int teacher_rank(int replica, int stage, int tensor) const;
};

// Between one replica of the students and the teacher's.
struct TeacherLink {
  std::unique_ptr<Comm> questions;  // host memory, rank 0 asks; null where this rank does not hear them
  std::unique_ptr<Comm> answers;    // the device's memory, rank 0 answers; null where this rank is no end
};
// Collective over the whole job. Of a student at most one, of a teacher's rank one for each of its students,
// in the order of service. A teacher waits for questions without a deadline: its students may save or
// evaluate for long, and their own deadlines end the job where they hang.
std::vector<TeacherLink> make_teacher_links(Job& job, const TeacherAssignment& assignment, at::Device device);

}  // namespace hearth
