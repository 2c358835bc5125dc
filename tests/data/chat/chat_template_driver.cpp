// The interpreter of chat templates as a program of its own, which the comparison with transformers runs.
// Usage: chat_template_driver    standard input: one JSON object a line, {"template": ..., "variables":
// [...]}; standard output: one JSON array a line, with {"text": ..., "generated": [[begin, end] ...]} or
// {"error": ...} for each set of variables. A template that cannot be parsed gives its error for each of
// them.
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/error.h"
#include "data/chat/chat_template.h"

using namespace hearth;
using Json = nlohmann::ordered_json;

namespace {

Json rendered(const ChatTemplate& chat_template, const Json& variables) {
  const auto result = chat_template.render(variables);
  Json ranges = Json::array();
  for (const auto& [begin, end] : result.generated) ranges.push_back({begin, end});
  return {{"text", result.text}, {"generated", ranges}};
}

Json answer(const Json& task) {
  Json answers = Json::array();
  std::optional<ChatTemplate> chat_template;
  for (const auto& variables : task.at("variables")) {
    try {
      if (!chat_template)
        chat_template = ChatTemplate::parse(task.at("template").get<std::string>(), "template");
      answers.push_back(rendered(*chat_template, variables));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::BadInput) throw;  // anything else is a mistake of ours
      answers.push_back({{"error", error.message()}});
    }
  }
  return answers;
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  try {
    for (std::string line; std::getline(std::cin, line);)
      std::cout << answer(Json::parse(line)).dump() << std::endl;
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "chat_template_driver: %s\n", error.what());
    return 1;
  }
}
