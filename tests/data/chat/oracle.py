"""What transformers renders, and what Hearth's driver renders, in one form: (text, generated ranges in bytes) or an error."""
import json
import subprocess

from transformers.utils import chat_template_utils


class Raised(Exception):
    """Python's error: `kind` is the class, `text` its message."""

    def __init__(self, error):
        self.kind, self.text = type(error).__name__, str(error)


def by_transformers(template, variables):
    """(text, [(begin, end)]) with positions in bytes, or raises Raised."""
    variables = json.loads(json.dumps(variables))  # as the other side gets them
    try:
        compiled = chat_template_utils._compile_jinja_template(template)
        given = [variables.pop(key, None) for key in ("messages", "tools", "documents")]
        prompt = variables.pop("add_generation_prompt", False)
        text, ranges = chat_template_utils._render_with_assistant_indices(compiled, *given, prompt, **variables)
    except Exception as error:  # whatever a template runs into
        raise Raised(error) from None
    position = lambda index: len(text[:index].encode())
    return text, [(position(begin), position(end)) for begin, end in ranges]


def by_hearth(driver, tasks):
    """For each (template, [variables]): a list of {"text", "generated"} or {"error"}."""
    lines = "".join(json.dumps({"template": t, "variables": v}) + "\n" for t, v in tasks)
    done = subprocess.run([driver], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def difference(template, variables, ours):
    """Empty if both sides agree; otherwise what differs."""
    try:
        text, ranges = by_transformers(template, variables)
    except Raised as raised:
        if "error" not in ours:
            return f"Python raises {raised.kind}: {raised.text[:200]}; Hearth renders {ours['text'][:200]!r}"
        # Only what a template says itself, and what is undefined, must be worded alike.
        if raised.kind in ("TemplateError", "UndefinedError") and raised.text not in ours["error"]:
            return f"Python raises {raised.kind}: {raised.text[:200]}; Hearth says {ours['error'][:200]}"
        return ""
    if "error" in ours:
        return f"Hearth fails: {ours['error'][:300]}; Python renders {text[:200]!r}"
    if ours["text"] != text:
        at = next((i for i, (a, b) in enumerate(zip(text, ours["text"])) if a != b), min(len(text), len(ours["text"])))
        start = max(0, at - 40)
        return f"at {at}: Python {text[start:at + 60]!r}, Hearth {ours['text'][start:at + 60]!r}"
    if [tuple(r) for r in ours["generated"]] != ranges:
        return f"generated: Python {ranges}, Hearth {ours['generated']}"
    return ""
