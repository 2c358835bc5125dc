#include "data/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace hearth {
namespace {

// Whether the name still leads to the locked file: its last holder may have removed it between our open and
// our lock.
bool is_same_file(int fd, const std::string& path) {
  struct stat held {
  }, named{};
  return ::fstat(fd, &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
         held.st_dev == named.st_dev;
}

}  // namespace

FolderLock::FolderLock(const std::string& directory) : path_(directory + "/.prepare.lock") {
  while (true) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    HEARTH_CHECK(fd_ >= 0, Io, "cannot create {}: {}", path_, std::strerror(errno));
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      const int code = errno;
      ::close(fd_);
      HEARTH_CHECK(code == EWOULDBLOCK, Io, "cannot lock {}: {}", path_, std::strerror(code));
      fail(ErrorKind::InUse,
           "{}: another `hearth data prepare` is writing to this folder; wait for it to end", directory);
    }
    if (is_same_file(fd_, path_)) return;
    ::close(fd_);
  }
}

FolderLock::~FolderLock() {
  ::unlink(path_.c_str());  // while it is held, so that nobody else's file is removed
  ::close(fd_);
}

}  // namespace hearth
