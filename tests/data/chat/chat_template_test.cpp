// The interpreter of chat templates: small cases of what Jinja means, and every refusal with its line.
#include "data/chat/chat_template.h"

#include <boost/test/unit_test.hpp>

#include "base/error.h"

using namespace hearth;
using Json = nlohmann::ordered_json;

namespace {

std::string render(const std::string& source, const Json& variables = Json::object()) {
  return ChatTemplate::parse(source, "t").render(variables).text;
}

}  // namespace

BOOST_AUTO_TEST_CASE(a_conversation) {
  const Json variables = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}};
  BOOST_TEST(render("{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}", variables) ==
             "<user>Hi");
}
