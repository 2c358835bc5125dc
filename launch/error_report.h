// How trouble reaches the user: one block on stderr, `error: what  [kind=... exit=...]`, details below, and
// where.
#pragma once

#include <exception>
#include <string>

#include "base/error.h"
#include "launch/environment.h"

namespace hearth {

// Any exception as an Error: std::bad_alloc is NoSpace (memory), everything foreign is Internal.
Error as_error(const std::exception& exception);

// The whole block, newline at the end. Control characters that came from files or arguments are shown as
// \xNN. The last line `at  rank R/N  host H  slurm job J` is there under a launcher only.
std::string error_report(const Error& error, const Environment& environment);

}  // namespace hearth
