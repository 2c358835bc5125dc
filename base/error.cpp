#include "base/error.h"

namespace hearth {

std::string_view name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::Usage:
      return "Usage";
    case ErrorKind::Config:
      return "Config";
    case ErrorKind::BadInput:
      return "BadInput";
    case ErrorKind::Io:
      return "Io";
    case ErrorKind::Corrupt:
      return "Corrupt";
    case ErrorKind::NoSpace:
      return "NoSpace";
    case ErrorKind::Numeric:
      return "Numeric";
    case ErrorKind::Peer:
      return "Peer";
    case ErrorKind::Timeout:
      return "Timeout";
    case ErrorKind::Cuda:
      return "Cuda";
    case ErrorKind::InUse:
      return "InUse";
    case ErrorKind::Preempted:
      return "Preempted";
    case ErrorKind::Internal:
      return "Internal";
  }
  return "Internal";
}

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::Usage:
      return 2;
    case ErrorKind::Config:
      return 3;
    case ErrorKind::BadInput:
      return 4;
    case ErrorKind::Corrupt:
      return 5;
    case ErrorKind::Numeric:
      return 6;
    case ErrorKind::Timeout:
      return 7;
    case ErrorKind::Peer:
      return 8;
    case ErrorKind::Io:
    case ErrorKind::NoSpace:
      return 9;
    case ErrorKind::InUse:
      return 10;
    case ErrorKind::Cuda:
      return 11;
    case ErrorKind::Preempted:
      return 75;
    case ErrorKind::Internal:
      return 70;
  }
  return 70;
}

Error& Error::with(std::string_view key, std::string_view value) {
  details_.emplace_back(key, value);
  render();
  return *this;
}

void Error::render() {
  rendered_ = fmt::format("{}  [kind={} exit={}]", message_, name(kind_), exit_code(kind_));
  for (const auto& [key, value] : details_) rendered_ += fmt::format("\n  {:<12} {}", key, value);
}

}  // namespace hearth
