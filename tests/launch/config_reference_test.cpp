// configs/README.md is what the program's tables say. HEARTH_UPDATE=1 writes it.
#include "launch/config_reference.h"

#include <boost/test/unit_test.hpp>
#include <cstdlib>

#include "base/file_system.h"

using namespace hearth;

BOOST_AUTO_TEST_CASE(reference_is_current) {
  const auto fs = make_posix_file_system();
  const std::string path = HEARTH_SOURCE_DIR "/configs/README.md";
  if (std::getenv("HEARTH_UPDATE") != nullptr) fs->write_atomically(path, config_reference_markdown());
  BOOST_TEST(fs->read_text(path) == config_reference_markdown(),
             "configs/README.md is behind the config structs; run this test with HEARTH_UPDATE=1");
}
