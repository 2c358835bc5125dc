// Who asks whom where a teacher has ranks of its own: without any other rank.
#include "trainer/objective/teacher_links.h"

#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <map>

using namespace hearth;

namespace {

// pp, dp, cp, tp
Mesh mesh(int pp, int dp, int cp, int tp) {
  return Mesh(Mesh::Sizes{pp, dp, cp, 1, tp});
}

using Ranks = std::vector<int>;

}  // namespace

BOOST_AUTO_TEST_CASE(a_students_replica_asks_one_teacher) {
  // Ranks 0-7 train: pp 2 (stride 4), dp 2 (stride 2), tp 2. Ranks 8-11 serve: pp 2 (stride 2), tp 2.
  const TeacherAssignment a{.students = mesh(2, 2, 1, 2), .teacher = mesh(2, 1, 1, 2), .head_stage = 1};
  BOOST_TEST(!a.serves(7));
  BOOST_TEST(a.serves(8));
  BOOST_TEST(a.rounds() == 2);
  BOOST_TEST(a.question_ranks(0) == (Ranks{4, 8, 9, 10, 11}), boost::test_tools::per_element());
  BOOST_TEST(a.question_ranks(1) == (Ranks{6, 8, 9, 10, 11}), boost::test_tools::per_element());
  BOOST_TEST(a.answer_ranks(0) == (Ranks{8, 4, 5}), boost::test_tools::per_element());
  BOOST_TEST(a.answer_ranks(1) == (Ranks{8, 6, 7}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(ranks_that_share_a_sequence_all_hear_the_answer) {
  const TeacherAssignment a{.students = mesh(1, 1, 2, 2), .teacher = mesh(1, 1, 1, 1)};
  BOOST_TEST(a.question_ranks(0) == (Ranks{0, 4}), boost::test_tools::per_element());
  BOOST_TEST(a.answer_ranks(0) == (Ranks{4, 0, 1, 2, 3}), boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(the_head_of_a_folded_pipeline_is_on_its_first_rank) {
  ExperimentConfig config;
  config.model.num_hidden_layers = 8;
  config.training.global_batch_size = 4;
  config.training.micro_batch_size = 1;
  config.parallel.pipeline_model_parallel_size = 2;
  config.objective.teacher_ranks = 3;
  config.objective.teacher_parallel.tensor_model_parallel_size = 3;
  const Mesh students = mesh(2, 1, 1, 1);
  const auto plain = TeacherAssignment::from_config(config, students);
  BOOST_TEST(plain.head_stage == 1);
  BOOST_CHECK(plain.teacher == mesh(1, 1, 1, 3));
  config.parallel.pipeline_schedule = "zbv";
  BOOST_TEST(TeacherAssignment::from_config(config, students).head_stage == 0);
}

// For every number of students and teachers: each students' replica is served in one round by one teacher,
// groups of one round share no rank, and teachers have equal numbers of students or one less.
BOOST_AUTO_TEST_CASE(every_student_has_its_turn) {
  for (int replicas = 1; replicas <= 6; ++replicas)
    for (int teachers = 1; teachers <= replicas; ++teachers) {
      const TeacherAssignment a{.students = mesh(1, replicas, 1, 2), .teacher = mesh(1, teachers, 1, 2)};
      const int world = a.students.world_size() + a.teacher.world_size();
      std::map<int, int> served;
      for (int round = 0; round < a.rounds(); ++round) {
        std::vector<int> busy(static_cast<size_t>(world));
        for (int replica = 0; replica < replicas; ++replica) {
          const auto ranks = a.question_ranks(replica);
          if (a.replica_in_round(ranks[0], round) != replica) continue;
          ++served[replica];
          for (const int rank : ranks) {
            BOOST_TEST(a.replica_in_round(rank, round) == replica);
            BOOST_TEST(++busy[static_cast<size_t>(rank)] == 1);
          }
          for (const int rank : a.answer_ranks(replica))
            BOOST_TEST(a.replica_in_round(rank, round) == replica);
        }
        const auto idle = static_cast<int>(
            std::count_if(busy.begin() + a.students.world_size(), busy.end(), [](int n) { return n == 0; }));
        BOOST_TEST((idle == 0 || round == a.rounds() - 1));
      }
      BOOST_TEST(static_cast<int>(served.size()) == replicas);
      for (const auto& [replica, times] : served) BOOST_TEST(times == 1);
    }
}
