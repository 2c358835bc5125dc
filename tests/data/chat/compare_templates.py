#!/usr/bin/env python3
"""Renders chat templates with transformers and with Hearth, and demands equal text, generated ranges and errors.

compare_templates.py --driver PROGRAM [--artefacts FOLDER] [--all]

Without --all: the templates of templates/ beside this file and those that the fetched tokenizers carry. With it: the
seventy templates that llama.cpp collects as well, with a table.
"""
import argparse
import json
import pathlib
import sys
import time

import conversations
import oracle


def carried(artefacts):
    """Templates inside of the tokenizer_config.json and GGUF files that other tests fetch, as far as they are there."""
    for path in sorted(artefacts.glob("*/tokenizer_config.json")):
        template = json.loads(path.read_text()).get("chat_template")
        if isinstance(template, str):
            yield path.parent.name, template
    for path in sorted(artefacts.glob("*/*.gguf")):
        import gguf  # only where there is such a file

        field = gguf.GGUFReader(path).fields.get("tokenizer.chat_template")
        if field is not None:
            yield path.parent.name, field.contents()


def templates(arguments):
    here = pathlib.Path(__file__).parent / "templates"
    for path in sorted(here.glob("*.jinja")):
        yield path.stem, path.read_text()
    yield from carried(arguments.artefacts)
    if arguments.all:
        found = sorted((arguments.artefacts / "chat-templates").glob("*.jinja"))
        if not found:
            sys.exit("no artefact chat-templates (tests/fetch_artefacts.sh chat-templates)")
        for path in found:
            yield path.stem, path.read_text()


def compare(driver, name, template, cases):
    ours = oracle.by_hearth(driver, [(template, [variables for _, variables in cases])])[0]
    problems, num_raised = [], 0
    for (case, variables), answer in zip(cases, ours):
        problem = oracle.difference(template, variables, answer)
        if problem and "strftime_now" in template:  # the minute may have changed between the two
            answer = oracle.by_hearth(driver, [(template, [variables])])[0][0]
            problem = oracle.difference(template, variables, answer)
        num_raised += "error" in answer
        if problem:
            problems.append(f"  {name}: {case}: {problem}")
    return problems, num_raised


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", required=True)
    parser.add_argument("--artefacts", type=pathlib.Path, default=pathlib.Path("/nonexistent"))
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    cases = list(conversations.variables())
    started, all_problems, num_equal, num_templates = time.time(), [], 0, 0
    print(f"{'template':52} {'equal':>7} {'raised':>7}")
    for name, template in templates(arguments):
        problems, num_raised = compare(arguments.driver, name, template, cases)
        print(f"{name:52} {len(cases) - len(problems):3}/{len(cases):3} {num_raised:7}")
        print("\n".join(problems[:5]) + "\n" if problems else "", end="")
        all_problems += problems
        num_templates += 1
        num_equal += not problems
    print(f"{num_equal} of {num_templates} templates equal in {len(cases)} conversations each; {time.time() - started:.0f} s")
    return 1 if all_problems or not num_templates else 0


if __name__ == "__main__":
    sys.exit(main())
