"""The variables with which the comparison renders every template: one small dictionary for each kind of conversation."""
import itertools

SYSTEM = {"role": "system", "content": "You are brief."}
USER = {"role": "user", "content": "What is 2 + 2?"}
ASSISTANT = {"role": "assistant", "content": "4"}
AGAIN = {"role": "user", "content": "And 3 + 3?"}

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "The city, e.g. \"Z\u00fcrich\" or '\u5317\u4eac'"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "integer", "minimum": 1, "maximum": 18446744073709551615, "description": "How many\ndays"},
        "exact": {"type": ["boolean", "null"], "default": None},
        "step": {"type": "number", "multipleOf": 0.5, "exclusiveMaximum": 1e22},
        "places": {
            "type": "array",
            "items": {"type": "object", "properties": {"lat": {"type": "number"}, "tags": {"type": "array"}}},
        },
        "choice": {"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True},
        "nested": {"type": "object", "properties": {"deep": {"type": "object", "additionalProperties": False}}},
    },
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather <b>now</b> & later.",
                                      "parameters": SCHEMA,
                                      "return": {"type": "string", "description": "The weather"}}},
    {"type": "function", "function": {"name": "now", "description": "The time.",
                                      "parameters": {"type": "object", "properties": {}}}},
]
# Some templates take no more than this.
SIMPLE_TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer", "description": "One"}, "b": {"type": "number"}},
    "required": ["a", "b"]}}}]


def call(name, arguments, call_id="abcdefgh1"):
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}


def tool_talk(arguments, content=""):
    return [
        USER,
        {"role": "assistant", "content": content, "tool_calls": [call("get_weather", arguments)]},
        {"role": "tool", "tool_call_id": "abcdefgh1", "name": "get_weather", "content": "{\"t\": 21.5}"},
        {"role": "assistant", "content": "It is 21.5 degrees."},
        AGAIN,
    ]


ARGUMENTS = {"city": "\u5317\u4eac \U0001f600", "days": 3, "exact": True, "step": 0.5, "nothing": None, "places": [{"lat": -1.25}, []],
             "quote": "a\"b'c\\d\n</x>"}

CONVERSATIONS = {
    "plain": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ASSISTANT, AGAIN],
    "system_turns": [SYSTEM, USER, ASSISTANT, AGAIN, {"role": "assistant", "content": "6"}],
    "chinese": [{"role": "system", "content": "\u4f60\u662f\u52a9\u624b\u3002"},
                {"role": "user", "content": "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \U0001f468\u200d\U0001f469\u200d\U0001f467 caf\u00e9 \u0130 \u00df"},
                {"role": "assistant", "content": "\u55e8 \U0001f600"}, {"role": "user", "content": "\u518d\u89c1"}],
    "spaces": [{"role": "system", "content": "  \n x \t"}, {"role": "user", "content": "\n\n  a\r\nb \u3000\u00a0 "},
               {"role": "assistant", "content": " \u2003"}, {"role": "user", "content": ""}],
    "markup": [{"role": "user", "content": "<think>{{ x }} {% if %} & \"q\" 'r' \\n \u007f \u0001</think> <|im_end|>"},
               {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes & <b>no</b>"}, AGAIN],
    "parts": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
              {"role": "user", "content": [{"type": "text", "text": "What"}, {"type": "text", "text": " now?"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "Nothing."}]}, AGAIN],
    "image": [{"role": "user", "content": [{"type": "image", "image": "x.png"}, {"type": "image_url", "image_url": {"url": "y"}},
                                           {"type": "text", "text": "What is this?"}]}],
    "reasoning": [USER, {"role": "assistant", "content": "4", "reasoning_content": "2 + 2 is\n4.", "thinking": "2 + 2 is\n4.",
                         "reasoning": "2 + 2 is\n4."}, AGAIN],
    "reasoning_last": [USER, {"role": "assistant", "content": "4", "reasoning_content": "2 + 2 is\n4.", "thinking": "2 + 2 is\n4."}],
    "tool_dict": tool_talk(ARGUMENTS),
    "tool_text": tool_talk("{\"city\": \"Bern\"}"),
    "tool_no_content": tool_talk({}, None),
    "tool_with_content": [SYSTEM] + tool_talk(ARGUMENTS, "Let me look."),
    "tool_pair": [USER, {"role": "assistant", "content": "", "tool_calls": [call("now", {}), call("get_weather", ARGUMENTS, "abcdefgh2")]},
                  {"role": "tool", "tool_call_id": "abcdefgh1", "name": "now", "content": "12:00"},
                  {"role": "tool", "tool_call_id": "abcdefgh2", "name": "get_weather", "content": [{"type": "text", "text": "rain"}]}],
    "tool_dict_result": [USER, {"role": "assistant", "tool_calls": [call("now", {})]},
                         {"role": "tool", "name": "now", "content": {"t": [1, 2.0, None, True]}}],
    "developer": [{"role": "developer", "content": "Be brief."}, USER],
    "two_users": [USER, AGAIN],
    "assistant_first": [ASSISTANT, USER],
    "unknown_role": [{"role": "narrator", "content": "Once"}],
    "no_content": [{"role": "user"}],
    "none_content": [{"role": "user", "content": None}, {"role": "assistant", "content": None}],
    "number_content": [{"role": "user", "content": 7}],
    "empty": [],
    "system_only": [SYSTEM],
}

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def variables():
    """(name, variables of one rendering), in a fixed order."""
    for (name, messages), prompt in itertools.product(CONVERSATIONS.items(), (False, True)):
        yield f"{name}{'+' if prompt else ''}", settings(messages, add_generation_prompt=prompt)
    for name in ("plain", "system_turns", "tool_dict", "tool_text", "tool_pair", "tool_no_content", "parts"):
        for prompt in (False, True):
            yield (f"{name} with tools{'+' if prompt else ''}",
                   settings(CONVERSATIONS[name], tools=TOOLS, add_generation_prompt=prompt))
    for name in ("plain", "system_turns", "tool_dict", "tool_text"):
        yield (f"{name} with simple tools", settings(CONVERSATIONS[name], tools=SIMPLE_TOOLS, add_generation_prompt=True,
                                                     functions=SIMPLE_TOOLS, datetime="1 Jan 2025"))
    for key, value in (("enable_thinking", True), ("enable_thinking", False), ("thinking", True), ("thinking", False),
                       ("reasoning_effort", "high"), ("reasoning_effort", "low"), ("builtin_tools", ["browser", "python"]),
                       ("date_string", "1 Jan 2025"), ("controls", {"length": "short"}), ("keep_past_thinking", True),
                       ("tools_in_user_message", False), ("documents", [{"title": "T", "text": "\u6587 & x", "contents": "c"}])):
        for name in ("system_turns", "reasoning", "tool_dict"):
            yield f"{name} {key}={value!r}", settings(CONVERSATIONS[name], tools=TOOLS if "tool" in name else None,
                                                      add_generation_prompt=True, **{key: value})


def settings(messages, tools=None, documents=None, **more):
    return {"messages": messages, "tools": tools, "documents": documents, **TOKENS, **more}
