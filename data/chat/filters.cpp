#include "data/chat/filters.h"

#include <algorithm>

namespace hearth::chat {

namespace {

// Filters of jinja2 that are left out: random, or made for web pages.
constexpr std::string_view kOtherFilters[] = {
    "attr",      "filesizeformat", "forceescape", "groupby",   "pprint",   "random",  "slice",
    "striptags", "urlencode",      "urlize",      "wordcount", "wordwrap", "xmlattr", "batch"};

FilterFunction find_filter(const std::string& name) {
  const FilterFunction found = find_text_filter(name);
  return found != nullptr ? found : find_sequence_filter(name);
}

}  // namespace

Support filter_support(const std::string& name) {
  if (find_filter(name) != nullptr) return Support::Supported;
  const bool known =
      std::find(std::begin(kOtherFilters), std::end(kOtherFilters), name) != std::end(kOtherFilters);
  return known ? Support::NotSupported : Support::Unknown;
}

Value apply_filter(const std::string& name, const Value& subject, const Arguments& arguments,
                   Budget& budget) {
  const FilterFunction filter = find_filter(name);
  if (filter == nullptr) {
    if (filter_support(name) == Support::NotSupported) fault("the filter '{}' is not supported", name);
    fault("No filter named '{}' found.", name);
  }
  budget.spend(1);
  if (subject.is_text()) budget.spend(subject.text().bytes.size() / 4);
  return filter(FilterCall{name, subject, arguments, budget});
}

}  // namespace hearth::chat
