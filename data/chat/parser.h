// Tokens to a syntax tree, with jinja2's grammar: its precedences, its statements. Statements that need other
// files (include, import, extends, block) and unknown tags are refused with the line.
#pragma once

#include <string>
#include <string_view>

#include "data/chat/lexer.h"
#include "data/chat/syntax_tree.h"

namespace hearth::chat {

Block parse_template(std::string_view source, const Origin& origin);

}  // namespace hearth::chat
