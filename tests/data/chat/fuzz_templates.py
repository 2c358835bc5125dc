#!/usr/bin/env python3
"""Damages templates at random; Hearth must render them or refuse them, and neither crash nor hang.

fuzz_templates.py --driver PROGRAM [--artefacts FOLDER] [--count N] [--seed N]
"""
import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import time

import conversations

PIECES = ["{{", "}}", "{%", "%}", "{#", "#}", "-%}", "{%-", "'", '"', "\\", "(", ")", "[", "]", "{", "}", "|", ".", ",", ":", "=", "==", "+",
          "*", "**", "%", "~", "is", "not", "in", "if", "else", "for", "endfor", "endif", "set", "macro", "endmacro", "call", "filter", "loop",
          "messages", "range(99999)", "9999999999999999999999", "-1", "1.5", "none", "'x' * 99999999", "loop.cycle", "namespace(", "caller()",
          "\u4f60", "\u0000", "{% generation %}", "{% raw %}", "{% break %}", "recursive", "tojson", "[::-1]", "messages * 1000"]

# Each tries to take more than its share. The answer must be an error, and come soon.
GREEDY = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 1000000000000 }}", "{{ [1] * 1000000000000 }}", "{{ '%099999999d' % 1 }}", "{{ '{:99999999}'.format(1) }}", "{{ 9 ** 9 ** 9 ** 9 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(100) }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(150) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(150) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(150) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "{% set ns = namespace() %}{% for i in range(99999) %}{% set ns.x = namespace(y=ns.x) %}{% endfor %}done",
    "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "{{ 'x'.replace('', 'y' * 9999).replace('', 'y' * 9999999) }}",
    "{% set s = 'ab' * 9999999 %}{% for i in range(99999) %}{% if 'zz' in s %}{% endif %}{% endfor %}",
    "{% set s = 'ab' * 9999999 %}{% for i in range(99999) %}{{ s | length }}{% endfor %}",
    "{% set s = '\u4f60' * 9999999 %}{% for i in range(99999) %}{{ s[5] }}{% endfor %}",
    "{% set s = 'ab' * 999999 %}{% for i in range(99999) %}{% if s == s + '' %}{% endif %}{% endfor %}",
    "{% set a = 'ab' * 9999999 %}{% set b = 'ab' * 9999999 %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "{% set a = range(99999) | list %}{% set b = range(99999) | list %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "{% set s = 'ab' * 9999999 %}{% for i in range(99999) %}{{ {s: 1}[s] }}{% endfor %}",
    "{% set s = 'ab' * 9999999 %}{% for i in range(99999) %}{{ s.count('zz') }}{{ s | upper | length }}{% endfor %}",
    "{% set s = 'ab' * 99999 %}{% for i in range(99999) %}{{ s.find('a' * 9999) }}{% endfor %}",
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "{{ " + "not " * 9999 + "1 }}", "{{ " + "-" * 9999 + "1 }}", "{{ 1" + " + 1" * 9999 + " }}",
    "{{ x" + ".y" * 9999 + " }}", "{{ x" + "|list" * 9999 + " }}", "{{ x" + "()" * 9999 + " }}", "{{ 1" + " is none" * 9999 + " }}",
    "{{ 1" + " if 1 else 1" * 9999 + " }}", "{% if 1 %}" * 9999, "{% for x in y %}" * 9999, "{{ [" * 9999, "{{ {1:" * 9999, "{% set " + "(" * 9999,
    "{{ x" + "[1" * 9999 + " }}", "{% set a = 1 %}" * 9999 + "{{ a", "{{ 1" + " ~ 1" * 99999 + " }}", "{% macro m(a=" * 9999, "{{ f(" * 9999,
]


def mutated(source, choose):
    for _ in range(choose.randrange(1, 5)):
        begin = choose.randrange(len(source) + 1)
        end = min(len(source), begin + choose.choice([0, 1, 1, 3, 10, 40]))
        kind = choose.randrange(4)
        if kind == 0:
            source = source[:begin] + source[end:]
        elif kind == 1:
            source = source[:begin] + choose.choice(PIECES) + source[end:]
        elif kind == 2:
            other = choose.randrange(len(source) + 1)
            source = source[:other] + source[begin:end] + source[other:]
        else:  # one word for another
            words = re.findall(r"\w+", source) or ["x"]
            source = source[:begin] + re.sub(r"\w+", lambda m: choose.choice(words), source[begin:], count=1)
    return source


def run(driver, tasks, seconds):
    lines = "".join(json.dumps({"template": t, "variables": v}) + "\n" for t, v in tasks)
    done = subprocess.run([driver], input=lines.encode(), stdout=subprocess.PIPE, timeout=seconds)
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    if done.returncode != 0 or len(answers) != len(tasks):
        print(f"the driver ended with {done.returncode} at {json.dumps(tasks[len(answers)][0]) if len(answers) < len(tasks) else '?'}")
        return None
    return answers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", required=True)
    parser.add_argument("--artefacts", type=pathlib.Path, default=pathlib.Path("/nonexistent"))
    parser.add_argument("--all", action="store_true", help="the templates that llama.cpp collects too")
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for source in GREEDY:
        started = time.time()
        answers = run(arguments.driver, [(source, [{"messages": []}])], 120)
        if answers is None:
            return 1
        print(f"{time.time() - started:6.2f} s  {source[:60]!r}: {answers[0][0].get('error', 'rendered')[:90]}")
    paths = list((pathlib.Path(__file__).parent / "templates").glob("*.jinja"))
    if arguments.all:
        paths += (arguments.artefacts / "chat-templates").glob("*.jinja")
    sources = [path.read_text() for path in sorted(paths)]
    choose = random.Random(arguments.seed)
    cases = [variables for _, variables in conversations.variables()]
    tasks = [(mutated(choose.choice(sources), choose), choose.sample(cases, 3)) for _ in range(arguments.count)]
    answers = run(arguments.driver, tasks, 600)
    if answers is None:
        return 1
    num_errors = sum("error" in answer for group in answers for answer in group)
    print(f"seed {arguments.seed}: {len(tasks)} damaged templates of {len(sources)}, 3 conversations each: {num_errors} of {3 * len(tasks)} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
