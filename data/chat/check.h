// What can be refused before a template is executed: filters and tests that are not known, loop controls
// outside of loops, generation blocks whose place in the output would not be known.
#pragma once

#include "data/chat/lexer.h"
#include "data/chat/syntax_tree.h"

namespace hearth::chat {

struct Checked {
  bool marks_generation = false;
};
// Throws Error{BadInput} with the line.
Checked check_template(const Block& block, const Origin& origin);

}  // namespace hearth::chat
