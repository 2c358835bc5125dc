// "Did you mean": the closest of a list of words.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace hearth {

// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (Damerau 1964; optimal
// string alignment). Words longer than 64 characters are cut: nobody mistypes those.
int edit_distance(std::string_view a, std::string_view b);

// The nearest of `words` (the first of equals); one that contains `word` whole counts as near. Empty for no
// words.
std::string nearest_word(std::string_view word, std::span<const std::string> words);

}  // namespace hearth
