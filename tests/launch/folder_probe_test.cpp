// doctor's look at a folder.
#include "launch/folder_probe.h"

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>

using namespace hearth;

BOOST_AUTO_TEST_CASE(a_temporary_folder_is_usable_and_left_clean) {
  std::string folder = (std::filesystem::temp_directory_path() / "hearth_probe_XXXXXX").string();
  BOOST_REQUIRE(mkdtemp(folder.data()) != nullptr);
  const auto fs = make_posix_file_system();
  const FolderProbe probe = probe_folder(*fs, folder);
  BOOST_TEST(probe.usable(), probe.trouble);
  BOOST_TEST(probe.trouble.empty());
  BOOST_TEST(probe.free_bytes > 0);
  BOOST_TEST(probe.fsync_ms >= 0.0);
  BOOST_TEST(std::filesystem::is_empty(folder));

  std::ofstream(folder + "/file") << "x";
  const FolderProbe broken = probe_folder(*fs, folder + "/file");  // a file is no folder, whoever asks
  BOOST_TEST(!broken.usable());
  BOOST_TEST(!broken.trouble.empty());
  std::filesystem::remove_all(folder);
}
