// The interpreter of chat templates: small cases of what Jinja means, and refusals with their lines.
// What transformers makes of the same is compared in compare_templates.py and compare_expressions.py.
#include "data/chat/chat_template.h"

#include <boost/test/unit_test.hpp>
#include <thread>

#include "base/error.h"

using namespace hearth;
using Json = nlohmann::ordered_json;

namespace {

ChatTemplate::Rendered rendered(const std::string& source, const Json& variables = Json::object()) {
  return ChatTemplate::parse(source, "t").render(variables);
}

void expect(const std::string& source, const std::string& want, const Json& variables = Json::object()) {
  const std::string got = rendered(source, variables).text;
  BOOST_TEST(got == want, source << ": got [" << got << "], expected [" << want << "]");
}

// The message must be exactly this.
void expect_error(const std::string& source, const std::string& want,
                  const Json& variables = Json::object()) {
  try {
    rendered(source, variables);
    BOOST_ERROR("rendered, expected: " + want);
  } catch (const Error& error) {
    BOOST_TEST((error.kind() == ErrorKind::BadInput));
    BOOST_TEST(error.message() == want);
  }
}

void expect_refused(const std::string& source, const std::string& want) {
  try {
    ChatTemplate::parse(source, "t");
    BOOST_ERROR("parsed, expected: " + want);
  } catch (const Error& error) {
    BOOST_TEST((error.kind() == ErrorKind::BadInput));
    BOOST_TEST(error.message() == want);
  }
}

const Json kMessages = Json::parse(R"({"messages": [{"role": "user", "content": "Hi"},
                                                    {"role": "assistant", "content": "你好"}]})");

}  // namespace

BOOST_AUTO_TEST_CASE(white_space_around_marks) {
  expect("a\n  {% if true %}\nb\n  {% endif %}\nc\n",
         "a\nb\nc");  // trim_blocks, lstrip_blocks, the last newline
  expect("a  {%- if true -%}  b  {%- endif -%}  c", "abc");
  expect("  {%+ if true +%}\nx{% endif %}", "  \nx");
  expect("  {{ 1 }}\n\n{{- 2 -}}\n {{ 3 }}", "  123");
  expect("a {# one\n two #}\n  {#- x -#}  b", "a b");
  expect("{% raw %}{{ x }}{% endraw %}", "{{ x }}");
  expect("a\r\nb\r\n", "a\nb");
}

BOOST_AUTO_TEST_CASE(values_are_written_as_python_writes_them) {
  expect("{{ none }} {{ true }} {{ 1.0 }} {{ 1e16 }} {{ 0.1 + 0.2 }}",
         "None True 1.0 1e+16 0.30000000000000004");
  expect("{{ {'a': [1, none, \"it's\"], 2: ('x',)} }}", "{'a': [1, None, \"it's\"], 2: ('x',)}");
  expect("{{ ['\\n', '\\x00', '\\u200b', '\\U0001f600'] }}",
         "['\\n', '\\x00', '\\u200b', '\xf0\x9f\x98\x80']");
  expect("{{ big }} {{ big + 1 }}", "18446744073709551615 18446744073709551616", {{"big", UINT64_MAX}});
  expect("{{ x }}|{{ x is defined }}|{{ [x] }}", "|False|[Undefined]");
}

BOOST_AUTO_TEST_CASE(operators) {
  expect("{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }}",
         "3 -4 2 3.5 64 4");
  expect("{{ 1 < 2 < 3 }} {{ 1 in [1.0] }} {{ 'b' not in 'abc' }} {{ '' or 'x' }} {{ 0 and y.z }}",
         "True True False x 0");
  expect("{{ 'a' ~ 1 ~ none }} {{ 'ab' * 2 }} {{ [1] + [2] }}", "a1None abab [1, 2]");
  expect("{{ 'x' if false }}|{{ 'x' if false else 'y' }}", "|y");
  expect("{{ '%s-%03d' % ('a', 7) }} {{ '{:>4}|{0}'.replace('0', '') }}", "a-007 {:>4}|{}");
}

BOOST_AUTO_TEST_CASE(text_is_indexed_by_characters) {
  expect("{{ s[1] }}{{ s[-1] }}{{ s[::-1] }}{{ s | length }}{{ s[1:2] }}",
         "\u00e9\U0001f600\U0001f600\u00e9a3\u00e9", {{"s", "a\u00e9\U0001f600"}});
  expect("{{ '\u00c9\u03a3\u03a3'.lower() }} {{ '\u00df\u00e9'.upper() }}", "\u00e9\u03c3\u03c2 SS\u00c9");
  expect("{{ ' \u3000x '.strip() }}{{ 'a,b,c'.rsplit(',', 1) }}{{ ' a b '.split() }}",
         "x['a,b', 'c']['a', 'b']");
}

BOOST_AUTO_TEST_CASE(attributes_items_and_methods) {
  expect("{{ m.items is callable }} {{ m['items'] }} {{ m.x.y is defined }}", "True own False",
         Json::parse(R"({"m": {"items": "own", "x": {}}})"));
  expect(
      "{{ messages[0].role }} {{ messages.1.role }} {{ messages[-1]['content'][0] }} {{ messages[5] is "
      "defined }}",
      "user assistant \u4f60 False", kMessages);
  expect_error("{{ [].append(1) }}", "t:1: access to attribute 'append' of 'list' object is unsafe.");
  expect_error("\n{{ messages[0].x.y }}", "t:2: 'dict object' has no attribute 'x'", kMessages);
}

BOOST_AUTO_TEST_CASE(tojson_is_that_of_transformers) {
  const Json variables = {
      {"v", {{"a", "<\u4f60>\"\n"}, {"b", {1, 2.0, nullptr, true}}, {"c", Json::object()}}}};
  expect("{{ v | tojson }}", "{\"a\": \"<\u4f60>\\\"\\n\", \"b\": [1, 2.0, null, true], \"c\": {}}",
         variables);
  expect("{{ v.b | tojson(indent=1) }}{{ v.a | tojson(ensure_ascii=true) }}",
         "[\n 1,\n 2.0,\n null,\n true\n]\"<\\u4f60>\\\"\\n\"", variables);
}

BOOST_AUTO_TEST_CASE(scopes) {
  expect("{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 9 %}{{ x }}{% endfor %}{{ x }}", "19191");
  expect("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
         "3");
  expect(
      "{% macro f(a, b='d') %}{{ a }}{{ b }}{{ x }}{% endmacro %}{% set x = 5 %}{{ f(1) }}{{ f(b=2, a=3) }}",
      "1d5325");
  // A name that the template assigns later is its own from the start, for blocks inside.
  expect("{% for i in [1] %}[{{ x }}]{% endfor %}{% set x = 2 %}{{ x }}", "[]2", {{"x", "given"}});
  expect("{% for i in [1] %}[{{ x }}]{% endfor %}{% if 1 %}{% set x = 2 %}{% endif %}{{ x }}", "[given]2",
         {{"x", "given"}});
}

BOOST_AUTO_TEST_CASE(loops) {
  expect(
      "{% for m in messages if m.role != 'user' %}{{ loop.index }}{{ loop.last }}{% else %}none{% endfor %}",
      "1True", kMessages);
  expect(
      "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif "
      "%}{{ i }}{% endfor %}",
      "023");
  expect(
      "{% for a, (b, c) in [(1, 'xy')] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% for x in nothing %}{% else "
      "%}e{% endfor %}",
      "1xye");
  expect("{% for x in [1, [2, [3]]] recursive %}{{ x if x is number else '(' ~ loop(x) ~ ')' }}{% endfor %}",
         "1(2(3))");
  expect("{% set g = [1, 2] | map('string') %}{{ g | list }}{{ g | list }}", "['1', '2'][]");  // used up
}

BOOST_AUTO_TEST_CASE(generation_blocks_give_byte_ranges) {
  const std::string source =
      "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% "
      "endgeneration %}"
      "{% else %}{{ m.content }}{% endif %};{% endfor %}";
  const auto result = rendered(source, kMessages);
  BOOST_TEST(result.text == "user:Hi;assistant:\u4f60\u597d!;");
  BOOST_REQUIRE(result.generated.size() == 1);
  const auto [begin, end] = result.generated[0];
  BOOST_TEST(result.text.substr(begin, end - begin) == "\u4f60\u597d!");
  BOOST_TEST(ChatTemplate::parse(source, "t").marks_generation());
  BOOST_TEST(!ChatTemplate::parse("x", "t").marks_generation());
  expect_refused("{% macro m() %}\n{% generation %}{% endgeneration %}{% endmacro %}",
                 "t:2: a generation block inside of 'macro' has no place of its own in the output");
}

BOOST_AUTO_TEST_CASE(what_is_refused_before_rendering) {
  expect_refused("a\n{{ x", "t:2: {{ has no end }}");
  expect_refused("\n{% if x %}", "t:2: the block 'if' has no end");
  expect_refused("{% endif %}", "t:1: unknown tag 'endif'");
  expect_refused("\n\n{% include 'x' %}", "t:3: the tag 'include' is not supported in chat templates");
  expect_refused("{{ x | nope }}", "t:1: No filter named 'nope'.");
  expect_refused("{{ x | urlize }}", "t:1: the filter 'urlize' is not supported");
  expect_refused("{{ x is nope }}", "t:1: No test named 'nope'.");
  expect_refused("{{ 1 + }}", "t:1: unexpected '}}'");
  expect_refused("{{ a b }}", "t:1: expected '}}', got 'b'");
  expect_refused("{{ 'a }}", "t:1: a string has no end '");
  expect_refused("{{ 'a\\ud800' }}", "t:1: '\\ud800' in a string is no character");
  expect_refused("{{ (1] }}", "t:1: unexpected ']', expected ')'");
  expect_refused("{{ a ! b }}", "t:1: unexpected character '!'");
  expect_refused("{# x", "t:1: a comment {# has no end #}");
  expect_refused("{% raw %}", "t:1: a block {% raw %} has no end {% endraw %}");
  expect_refused("{% break %}", "t:1: 'break' outside of a loop");
  expect_refused("{% set none = 1 %}", "t:1: cannot assign to 'none'");
  expect_refused("{% macro m(a=1, b) %}{% endmacro %}",
                 "t:1: a parameter without default follows one with a default");
  expect_refused("\xff", "t:1: the template is not valid UTF-8");
  expect_refused("{{ " + std::string(999, '(') + std::string(999, ')') + " }}",
                 "t:1: expressions stand in one another more than 150 deep");
}

BOOST_AUTO_TEST_CASE(what_fails_while_rendering) {
  expect_error("\n{% if true %}\n{{ raise_exception('No ' ~ 'roles') }}{% endif %}", "t:3: No roles");
  expect_error("{{ x.y }}", "t:1: 'x' is undefined");
  expect_error("{{ 'a' + 1 }}", "t:1: can only concatenate str (not \"int\") to str");
  expect_error("{{ 1 + 'a' }}", "t:1: unsupported operand type(s) for +: 'int' and 'str'");
  expect_error("{{ 1 / 0 }}", "t:1: division by zero");
  expect_error("{{ 1 < 'a' }}", "t:1: '<' not supported between instances of 'int' and 'str'");
  expect_error("{% for x in 5 %}{% endfor %}", "t:1: 'int' object is not iterable");
  expect_error("{% if true %}{{ 1 | nope }}{% endif %}", "t:1: No filter named 'nope' found.");
  expect("{% if false %}{{ 1 | nope }}{% endif %}", "");
  expect_error("{{ 'a'.encode() }}", "t:1: the method 'encode' of 'str' is not supported");
  expect_error("{% set x = 1 %}{% set x.y = 2 %}", "t:1: cannot assign attribute on non-namespace object");
  expect_error("{% macro m(a) %}{% endmacro %}\n{{ m(1, 2) }}",
               "t:2: macro 'm' takes not more than 1 argument(s)");
  expect_error("{{ 1 }}", "t:1: the variables must be a JSON object, got array", Json::array());
  expect_error("{{ 1 }}", "t:1: a text among the variables is not valid UTF-8", {{"x", "\xff"}});
}

BOOST_AUTO_TEST_CASE(greedy_templates_end_with_an_error) {
  expect_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
               "t:1: maximum recursion depth exceeded: macros call one another more than 1500 levels deep");
  expect_error("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
               "t:1: the output would pass 67108864 bytes");
  expect_error("{{ range(999999) }}",
               "t:1: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  expect_error("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
               "t:1: the template takes more than 50000000 steps");
  expect_error("{% set n = namespace(x=1) %}{% for i in range(999) %}{% set n.x = [n.x] %}{% endfor %}",
               "t:1: values stand in one another more than 200 levels deep");
}

BOOST_AUTO_TEST_CASE(one_template_in_several_threads) {
  const auto shared =
      ChatTemplate::parse("{% for m in messages %}{{ m.role | upper }}{{ m | tojson }}{% endfor %}", "t");
  const std::string want = shared.render(kMessages).text;
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& count : wrong)
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) count += shared.render(kMessages).text != want;
    });
  for (auto& thread : threads) thread.join();
  for (const int count : wrong) BOOST_TEST(count == 0);
}
