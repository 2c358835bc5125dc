// The file of timed matrix products: what is kept is found by the next process, and nothing in it can do
// harm.
#include "kernels/gemm_plan_file.h"

#include <boost/test/unit_test.hpp>

#include "tests/trainer/checkpoint/temp_folder.h"

namespace hearth {
namespace {

using kernels::GemmAlgorithm;
using kernels::GemmPlanFile;

constexpr GemmAlgorithm kFirst{1, 2, 3, 4, 5, 6, 7, 0xffffffffffffffffull}, kSecond{8, 7, 6, 5, 4, 3, 2, 1};

BOOST_AUTO_TEST_CASE(a_plan_is_found_by_the_next_process_and_the_last_one_counts) {
  const TempFolder folder;
  const auto fs = make_posix_file_system();
  const std::string path = folder.path() + "/new/folder/plans.txt";
  GemmPlanFile file(*fs, path);
  BOOST_TEST(!file.find("card:bf16:NT:1x2x3").has_value());
  file.keep("card:bf16:NT:1x2x3", kFirst);
  file.keep("card:bf16:NN:1x2x3", kFirst);
  file.keep("card:bf16:NT:1x2x3", kSecond);
  BOOST_TEST((file.find("card:bf16:NT:1x2x3") == kSecond));
  const GemmPlanFile next(*fs, path);
  BOOST_TEST((next.find("card:bf16:NT:1x2x3") == kSecond));
  BOOST_TEST((next.find("card:bf16:NN:1x2x3") == kFirst));
  BOOST_TEST(!next.find("card:bf16:TN:1x2x3").has_value());
}

BOOST_AUTO_TEST_CASE(lines_that_are_torn_or_foreign_are_skipped) {
  const TempFolder folder;
  const auto fs = make_posix_file_system();
  const std::string path = folder.path() + "/plans.txt";
  GemmPlanFile(*fs, path).keep("good", kFirst);
  const std::string good = fs->read_text(path);
  std::string torn = good.substr(0, good.size() / 2);
  fs->write_atomically(path, "\n\nshort 0000000000000001\nbad " + std::string(16, 'x') + good.substr(21) +
                                 "long " + good.substr(5, good.size() - 6) + " 0000000000000009\n" + good +
                                 torn);
  const GemmPlanFile file(*fs, path);
  BOOST_TEST((file.find("good") == kFirst));
  for (const char* key : {"short", "bad", "long"}) BOOST_TEST(!file.find(key).has_value());
}

BOOST_AUTO_TEST_CASE(a_folder_that_cannot_be_written_costs_only_the_keeping) {
  const auto fs = make_posix_file_system();
  GemmPlanFile file(*fs, "/proc/nothing/plans.txt");
  file.keep("key", kSecond);
  BOOST_TEST((file.find("key") == kSecond));
}

}  // namespace
}  // namespace hearth
