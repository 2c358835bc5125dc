// Rewrites a regular expression from Oniguruma's Ruby syntax to PCRE2's. Pure.
#pragma once

#include <string>
#include <string_view>

namespace hearth {

// Throws Error{BadInput} for constructs that have no counterpart (class intersection, \y ...). Syntax errors
// are left for PCRE2 to find.
std::string pcre2_from_oniguruma(std::string_view pattern);

}  // namespace hearth
