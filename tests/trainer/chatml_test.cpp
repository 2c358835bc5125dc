// The default system turn, found in templates of the forms that models carry.
#include "trainer/chatml.h"

#include <boost/test/unit_test.hpp>

using namespace hearth;

BOOST_AUTO_TEST_CASE(one_literal_in_a_loop) {
  BOOST_TEST(
      default_system_message(
          R"({% for m in messages %}{% if loop.first and m['role'] != 'system' %})"
          R"({{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %})"
          R"({{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %})") ==
      "You are kind.");
}

BOOST_AUTO_TEST_CASE(a_turn_with_tools_or_the_conversation_s_own_message_comes_first) {
  BOOST_TEST(
      default_system_message(
          R"({%- if tools %}{{- '<|im_start|>system\n' }}{{- messages[0]['content'] }}{{- '<|im_end|>\n' }})"
          R"({%- elif messages[0].role == 'system' %})"
          R"({{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %})"
          R"({{- '<|im_start|>system\nYou are Qwen. You help.<|im_end|>\n' }}{%- endif %})") ==
      "You are Qwen. You help.");
}

BOOST_AUTO_TEST_CASE(a_real_line_break_in_the_literal) {
  BOOST_TEST(default_system_message("{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}") == "Be brief.");
}

BOOST_AUTO_TEST_CASE(no_default_message) {
  BOOST_TEST(default_system_message("") == "");
  BOOST_TEST(default_system_message(
                 "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}{% endfor %}") == "");
  BOOST_TEST(
      default_system_message(R"({{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'}})") == "");
  BOOST_TEST(default_system_message(R"({{ '<|im_start|>system\n' + content + '<|im_end|>\n' }})") == "");
  BOOST_TEST(default_system_message(R"({{ '<|im_start|>system\n<|im_end|>\n' }})") == "");
  BOOST_TEST(default_system_message(R"({{ '<|im_start|>system\nnever closed)") == "");
}
