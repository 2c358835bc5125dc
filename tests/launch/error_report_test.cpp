// What the user sees on stderr.
#include "launch/error_report.h"

#include <boost/test/unit_test.hpp>
#include <new>
#include <stdexcept>

using namespace hearth;

BOOST_AUTO_TEST_CASE(kind_and_code_stand_on_the_first_line_of_a_long_message) {
  const Error error = Error(ErrorKind::Config, "a.yaml: 1 mistake\n  a.yaml:1:2: x: bad").with("step", "7");
  BOOST_TEST(error_report(error, Environment{}) ==
             "error: a.yaml: 1 mistake  [kind=Config exit=3]\n  a.yaml:1:2: x: bad\n  step         7\n");
}

BOOST_AUTO_TEST_CASE(place_is_named_under_a_launcher) {
  Environment environment;
  environment.rank = 3;
  environment.world_size = 12;
  environment.host = "gpu07";
  environment.slurm_job_id = "8841";
  BOOST_TEST(error_report(Error(ErrorKind::Io, "disk"), environment) ==
             "error: disk  [kind=Io exit=9]\n  at           rank 3/12  host gpu07  slurm job 8841\n");
}

BOOST_AUTO_TEST_CASE(control_characters_do_not_reach_the_terminal) {
  const std::string text = error_report(Error(ErrorKind::BadInput, "key \x1b[31m\x07 \x7f"), Environment{});
  BOOST_TEST(text == "error: key \\x1b[31m\\x07 \\x7f  [kind=BadInput exit=4]\n");
}

BOOST_AUTO_TEST_CASE(foreign_exceptions_have_a_kind) {
  BOOST_TEST((as_error(std::bad_alloc()).kind() == ErrorKind::NoSpace));
  BOOST_TEST((as_error(std::runtime_error("odd")).kind() == ErrorKind::Internal));
  BOOST_TEST((as_error(Error(ErrorKind::InUse, "x")).kind() == ErrorKind::InUse));
}
