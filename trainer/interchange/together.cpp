#include "trainer/interchange/together.h"

#include <optional>
#include <string>

#include "base/error.h"

namespace hearth {

void run_together(ControlPlane& control, std::string_view site, const std::function<void()>& work) {
  std::optional<Error> own;
  try {
    work();
  } catch (const Error& error) {
    own = error;
  } catch (const std::exception& error) {
    own = Error(ErrorKind::Internal, error.what());
  }
  const std::string mine = own ? std::to_string(static_cast<int>(own->kind())) + " " + own->message() : "";
  const std::vector<std::string> all = control.all_gather(mine, site);
  if (own) throw *own;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].empty()) continue;
    const size_t space = all[rank].find(' ');
    const auto kind = static_cast<ErrorKind>(std::stoi(all[rank].substr(0, space)));
    throw Error(kind, fmt::format("rank {}: {}", rank, all[rank].substr(space + 1)));
  }
}

}  // namespace hearth
