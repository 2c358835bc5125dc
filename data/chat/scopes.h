// Which names of a block are undefined until the block sets them. jinja2 decides this before execution: a
// name that a block first assigns, outside of any `if`, is that block's own from its start, so blocks inside
// that read it earlier find it undefined, not what the caller gave under that name.
#pragma once

#include <string>
#include <vector>

#include "data/chat/syntax_tree.h"

namespace hearth::chat {

// Fills the `declared` fields of the tree; returns the names for the whole template.
std::vector<std::string> declare_names(Block& block);

}  // namespace hearth::chat
