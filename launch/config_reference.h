// configs/README.md: every key of the experiment file with its default, what may happen to it at a resume,
// and its meaning, from the same visit() that the parser uses. tests/launch/config_reference_test.cpp keeps
// the file current.
#pragma once

#include <string>

namespace hearth {

std::string config_reference_markdown();

}  // namespace hearth
