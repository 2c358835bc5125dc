#!/usr/bin/env python3
"""Renders small templates with jinja2 (in transformers' environment) and with Hearth: a list of corners, then random ones.

compare_expressions.py --driver PROGRAM [--count N] [--seed N]

What Hearth refuses as not supported is counted; its share is bounded. Text that holds the address of a Python object
cannot be compared.
"""
import argparse
import json
import random
import re
import sys

import oracle

VARIABLES = {
    "messages": [{"role": "user", "content": "Hi \u4f60\u597d"}, {"role": "assistant", "content": "<b>Yo</b>", "n": 2}],
    "tools": None, "documents": None, "add_generation_prompt": True,
    "i": 7, "z": 0, "f": -2.5, "g": 1e16, "h": 3.0, "big": 18446744073709551615, "neg": -3, "yes": True, "no": False, "nothing": None,
    "s": "Hello, World", "e": "", "w": " \t pad\u3000\n", "c": "\u4f60\u597d \U0001f600 caf\u00e9 \u00c9\u00df \u03a3\u03a3 x", "q": "it's \"q\" \\ \u200b\n",
    "num": " 42 ", "fnum": "1.5e2", "l": [3, 1, 2], "m": ["b", "A", "a", "C"], "mix": [1, "a", None, 2.0, True, [1], {"k": "v"}],
    "d": {"b": 1, "a": [1, 2], "items": "own", "C": None}, "dd": {"x": {"y": {"z": [10, 20]}}}, "pairs": [["p", 1], ["q", 2]],
    "rows": [{"n": "x", "v": 3}, {"n": "y", "v": 1}, {"n": "x", "v": 2}, {"v": None}], "el": [], "ed": {},
}

CORNERS = r"""
{{ 1 }}{{ 1.0 }}{{ 1e22 }}{{ 1e-7 }}{{ 123456789012345678 }}{{ 0.1 + 0.2 }}{{ 1e15 }}{{ -0.0 }}{{ 2.5e-5 }}{{ 1_000 }}
{{ true }}{{ True }}{{ none }}{{ None }}{{ [1, 'a', none, 2.5, true] }}{{ {'a': 1, 2: (1,), none: ()} }}{{ (1, 2) }}{{ 1, 2 }}
{{ 'it\'s' }}{{ ["it's", 'say "x"', 'both \' "', 'tab\t', 'nul\x00', '\u200b', '\U0001f600', 'é'] }}
{{ 'a' 'b' "c" }}{{ "\x41\u00e9\101\q\
x" }}
{{ 7 // 2 }}{{ -7 // 2 }}{{ -7 % 3 }}{{ 7 % -3 }}{{ 7.5 // 2 }}{{ -7.5 % 2 }}{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 2 ** 3 ** 2 }}{{ -2 ** 2 }}{{ 7 / 2 }}{{ 4 / 2 }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 1.0 // 0 }}
{{ 'a' * 3 }}{{ [1] * 2 }}{{ 3 * 'ab' }}{{ 'a' * -1 }}{{ true + true }}{{ -true }}{{ +true }}
{{ 1 < 2 < 3 }}{{ 1 < 2 > 3 }}{{ 1 == 1.0 == true }}{{ 'a' < 'b' }}{{ [1, 2] < [1, 3] }}{{ 1 in [1.0] }}{{ 'x' not in 'abc' }}{{ not 1 in [1] }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ [1] + (1,) }}
{{ none + 'x' }}
{{ 1 in 'abc' }}
{{ 1 in 5 }}
{{ missing }}|{{ missing is defined }}{{ missing or 'x' }}{{ missing ~ 'y' }}{{ missing == missing }}{{ [missing] }}{{ missing | length }}{{ missing | list }}
{{ missing.x }}
{{ missing['x'] }}
{{ missing() }}
{{ missing + 1 }}
{{ 'a' + missing }}
{{ d.missing.more }}
{{ d['missing']['more'] }}
{{ nothing.strip() }}
{{ s.nope() }}
{{ l.append(1) }}
{{ l.append is defined }}{{ d.pop is defined }}{{ d.nope is defined }}{{ s.upper is callable }}
{{ d.update({'x': 1}) }}
{{ s.__class__ }}|{{ s.__class__.__name__ }}
{{ d.items is callable }}{{ d['items'] }}{{ ed['items'] is defined }}{{ ed.items() | list }}{{ d.get('b') }}{{ d.get('x') }}{{ d.get('x', 5) }}
{{ d.items() }}{{ d.keys() }}{{ d.values() }}{{ d.keys()[0] is defined }}{{ d | list }}{{ d | items | list }}
{{ l[0] }}{{ l[-1] }}{{ l[9] is defined }}{{ l['a'] is defined }}{{ l[1:] }}{{ l[::-1] }}{{ l[-2:] }}{{ l[5:] }}{{ l[:-1] }}{{ l[::2] }}{{ l[true] }}{{ l[1.0] is defined }}
{{ l[::0] }}
{{ s[0] }}{{ s[-1] }}{{ s[1:4] }}{{ s[::-1] }}{{ c[0] }}{{ c[3] }}{{ c[:4] }}{{ c[::-2] }}{{ s[99] is defined }}{{ s[5:2] }}{{ s[-99:99] }}{{ l[1:'a'] is defined }}
{{ messages[0].role }}{{ messages.0.role }}{{ messages[0]['content'] }}{{ messages[-1].n }}{{ dd.x.y.z[1] }}{{ dd.x.y.z.0 }}
{{ 'x' if yes }}|{{ 'x' if no }}|{{ 'x' if no else 'y' }}|{{ 1 if no else 2 if no else 3 }}|{{ ('x' if no) is defined }}
{{ yes and 'a' }}{{ no and 'a' }}{{ '' or 0 }}{{ 1 and 2 or 3 }}{{ not '' }}{{ not not 'a' }}
{{ range(3) }}{{ range(5) | list }}{{ range(1, 10, 3) | list }}{{ range(3, 0, -1) | list }}{{ range(10)[-1] }}{{ range(0) | length }}{{ 3 in range(5) }}{{ range(5)[1:3] | list }}
{{ range(200000) }}
{{ range() }}
{{ range(1.5) }}
{{ dict(a=1, b=2) }}{{ dict([['a', 1]]) }}{{ dict({'x': 1}, y=2) }}
{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns['a'] }}{{ ns.b is defined }}
{% set ns = namespace(_a=1) %}
{% set d.x = 1 %}
{% set x.y = 1 %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (a, b) = [3, 4] %}{{ a }}{{ b }}{% set a, (b, x) = [3, 'yz'] %}{{ x }}
{% set a, b = [1] %}
{% set a, b = [1, 2, 3] %}
{% set a, b = 1 %}
{% set t %}  block {{ i }} {% set inner = 1 %}{% endset %}[{{ t }}]{{ inner is defined }}
{% set t | upper | trim %}  block {{ i }} {% endset %}[{{ t }}]
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }};{% endfor %}
{% for x in el %}x{% else %}none{% endfor %}{% for x in missing %}x{% else %}none{% endfor %}
{% for x in nothing %}x{% endfor %}
{% for x in 5 %}x{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for ch in c %}[{{ ch }}]{% endfor %}
{% for x in l if x > 1 %}{{ x }}{{ loop.length }}{{ loop.first }}{% else %}no{% endfor %}{% for x in l if x > 9 %}x{% else %}no{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor %}
{% set x = 0 %}{% for y in l %}{% set x = x + y %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if yes %}{% set x = 2 %}{% endif %}{{ x }}
{% for y in l %}{{ v is defined }}{% set v = y %}{{ v }}{% endfor %}{{ v is defined }}{{ y is defined }}{{ loop is defined }}
{% for a in l %}{% for b in m %}{{ loop.index }}{{ loop.depth }}{% endfor %}{{ loop.index }}{% endfor %}
{% for x in [[1, [2, [3]]], 4] recursive %}{% if x is number %}{{ x }}@{{ loop.depth }}{% else %}({{ loop(x) }}){% endif %}{% endfor %}
{% for x in l %}{{ loop(l) }}{% endfor %}
{% macro m1(a, b=2, c='z') %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m1(1) }}{{ m1(1, c=3) }}{{ m1(b=1, a=0) }}{{ m1() }}{{ m1(1, 2, 3) }}
{% macro m1(a) %}{{ a }}{% endmacro %}{{ m1(1, 2) }}
{% macro m1(a) %}{{ a }}{% endmacro %}{{ m1(b=2) }}
{% macro m1(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m1(1, 2, 3, x=4) }}{{ m1() }}
{% macro m1(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m1(1) }}
{% macro m1(n) %}{{ n }}{% if n > 0 %}{{ m1(n - 1) }}{% endif %}{% endmacro %}{{ m1(5) }}
{% macro m1(n) %}{{ m1(n) }}{% endmacro %}{{ m1(5) }}
{% macro box(t) %}<{{ t }}>{{ caller(1, k=2) }}</{{ t }}>{% endmacro %}{% call(x, k) box('b') %}{{ x }}{{ k }}{{ i }}{% endcall %}
{% macro box() %}{{ caller is defined }}{% endmacro %}{{ box() }}
{% macro box() %}x{% endmacro %}{% call box() %}y{% endcall %}
{% set o = 1 %}{% macro m1() %}{{ o }}{% set o = 5 %}{{ o }}{% endmacro %}{{ m1() }}{{ o }}{% set o = 2 %}{{ m1() }}
{% for x in l %}{% macro m1() %}{{ x }}{{ loop.index }}{% endmacro %}{{ m1() }}{% endfor %}
{% filter upper | replace('A', '4') %}abc {{ s }}{% endfilter %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}
{% print 1, 'a' %}
{% raw %}{{ x }} {% y %}{% endraw %}|{%- raw -%}  a {# b #} {%- endraw %} c
  {# comment #}
a  {# x #}  b
  {%- if yes %}  x  {%- endif %}  
 {% if yes %}
  y
 {% endif %}
  {%+ if yes %}z{% endif +%}
end
{{- 'a' -}}   b   {{- 'c' }}
{{ s | upper }}{{ s | lower }}{{ s | title }}{{ c | upper }}{{ c | lower }}{{ c | title }}{{ c | capitalize }}{{ 'a-b c(d)e' | title }}{{ c.title() }}{{ c.swapcase() }}
{{ w | trim }}|{{ w.strip() }}|{{ w.lstrip() }}|{{ w.rstrip() }}|{{ 'xxaxx' | trim('x') }}|{{ 'xyaxy'.strip('yx') }}|{{ 'xaa'.lstrip('x') }}
{{ s.split() }}{{ s.split(',') }}{{ s.split('l', 1) }}{{ s.rsplit('l', 1) }}{{ s.split(maxsplit=1) }}{{ w.split() }}{{ ''.split() }}{{ ''.split(',') }}{{ ' a  b '.rsplit(none, 1) }}{{ ' a  b c '.split(none, 1) }}
{{ s.split('') }}
{{ 'a\nb\r\nc\n'.splitlines() }}{{ 'a\nb'.splitlines(true) }}{{ s.startswith('He') }}{{ s.endswith(('x', 'ld')) }}{{ s.startswith('W', 7) }}{{ s.find('o') }}{{ s.rfind('o') }}{{ s.find('zz') }}{{ c.find('x') }}{{ s.index('W') }}{{ s.count('l') }}{{ s.count('') }}
{{ s.index('zz') }}
{{ s.startswith(1) }}
{{ s.replace('l', 'L') }}{{ s.replace('l', 'L', 1) }}{{ s.replace('', '-') }}{{ s | replace('l', '') }}{{ s | replace('o', '0', 1) }}{{ 5 | replace(5, 6) }}
{{ ','.join(m) }}{{ m | join }}{{ l | join('-') }}{{ rows | join(',', attribute='v') }}{{ s | join('.') }}
{{ ','.join(l) }}
{{ s.partition(',') }}{{ s.rpartition('o') }}{{ s.partition('zz') }}{{ s.rpartition('zz') }}{{ s.removeprefix('He') }}{{ s.removesuffix('x') }}{{ s.center(20, '*') }}{{ 'ab'.center(5) }}|{{ 'abc'.center(6) }}|{{ s.ljust(14) }}|{{ s.rjust(14) }}|{{ '-5'.zfill(4) }}
{{ 'a'.isupper() }}{{ 'A1'.isupper() }}{{ 'a1'.islower() }}{{ '1'.isdigit() }}{{ 'a1'.isalnum() }}{{ ' '.isspace() }}{{ ''.isalpha() }}
{{ '{} {}'.format(1, 'a') }}{{ '{0}{1}{0}'.format('x', 'y') }}{{ '{a}{b[0]}{c.k}'.format(a=1, b=[2], c={'k': 3}) }}{{ '{{}}'.format() }}{{ '{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}|{:,}|{:x}|{:+d}|{!r:>6}'.format('a', 'b', 'c', 42, 3.14159, 1234567, 255, 5, 'q') }}
{{ '{}'.format() }}
{{ '{'.format(1) }}
{{ '%s is %d, %5.2f%% %r %x %05d|%-5s|%5s' % ('a', 3, 2.5, 'q', 255, 42, 'l', 'r') }}{{ '%s' % 'x' }}{{ '%(a)s' % {'a': 1} }}{{ '%s' | format('y') }}{{ '%s-%s' | format(1, 2) }}
{{ '%s %s' % 'x' }}
{{ '%d' % 'x' }}
{{ 'x' % 'y' }}
{{ d | tojson }}{{ mix | tojson }}{{ c | tojson }}{{ q | tojson }}{{ big | tojson }}{{ f | tojson }}{{ (1, 2) | tojson }}{{ '<>&\'' | tojson }}{{ g | tojson }}
{{ d | tojson(indent=2) }}{{ d | tojson(indent=0) }}{{ ed | tojson(indent=2) }}{{ d | tojson(sort_keys=true) }}{{ c | tojson(ensure_ascii=true) }}{{ d | tojson(separators=(',', ':')) }}{{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}{{ mix | tojson(indent='--') }}
{{ missing | tojson }}
{{ range(3) | tojson }}
{{ d.items() | tojson }}
{{ l | sort }}{{ m | sort }}{{ m | sort(case_sensitive=true) }}{{ l | sort(reverse=true) }}{{ rows[:3] | sort(attribute='v') | map(attribute='v') | list }}{{ rows[:3] | sort(attribute='n,v') | map(attribute='v') | join }}
{{ mix | sort }}
{{ d | dictsort }}{{ {'b': 1, 'A': 2} | dictsort(true) }}{{ {'b': 1, 'a': 2} | dictsort(by='value') }}{{ {'b': 1, 'a': 2} | dictsort(reverse=true) }}
{{ l | first }}{{ l | last }}{{ el | first is defined }}{{ s | first }}{{ s | last }}{{ l | min }}{{ l | max }}{{ l | sum }}{{ rows[:3] | sum('v') }}{{ m | min }}{{ m | max(case_sensitive=true) }}{{ el | max is defined }}
{{ l | reverse | list }}{{ s | reverse }}{{ l | length }}{{ s | count }}{{ d | length }}{{ c | length }}{{ m | unique | list }}{{ rows | unique(attribute='n') | map(attribute='v') | list }}
{{ l | map('string') | list }}{{ m | map('upper') | join(',') }}{{ rows | map(attribute='n', default='-') | list }}{{ rows | selectattr('n') | list | length }}{{ rows | selectattr('n', 'equalto', 'x') | map(attribute='v') | list }}{{ rows | rejectattr('v', 'none') | list | length }}{{ l | select('odd') | list }}{{ l | reject('gt', 1) | list }}{{ mix | select | list }}{{ rows | selectattr('v', '>', 1) | list | length }}
{{ rows | selectattr('v', 'nope') | list }}
{{ l | map('nope') | list }}
{{ l | map | list }}
{{ nothing | selectattr('x') | list }}{{ missing | map('upper') | list }}{% set gen = l | map('string') %}{{ gen | first }}{{ gen | list }}{{ gen | list }}{% if gen %}true{% endif %}
{{ (l | map('string'))[0] is defined }}
{{ l | map('string') | length }}
{{ num | int }}{{ 'x' | int }}{{ 'x' | int(5) }}{{ fnum | int }}{{ 3.9 | int }}{{ -3.9 | int }}{{ none | int }}{{ '0x1f' | int(base=16) }}{{ 'ff' | int(0, 16) }}{{ true | int }}{{ fnum | float }}{{ 'x' | float }}{{ 'inf' | float }}{{ '1_0' | int }}{{ '1__0' | int }}
{{ 2.5 | round }}{{ 3.5 | round }}{{ 2.675 | round(2) }}{{ 5 | round }}{{ 2.1 | round(0, 'ceil') }}{{ 2.19 | round(1, 'floor') }}{{ -3 | abs }}{{ f | abs }}
{{ s | default('x') }}{{ missing | default('x') }}{{ e | default('x') }}{{ e | default('x', true) }}{{ nothing | default('x', boolean=true) }}{{ missing | d }}|{{ d.zz | default(l[9] | default('deep')) }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\nb' | indent('> ') }}|{{ '' | indent }}|{{ 'a\n' | indent }}|
{{ 'hello world foo' | truncate(11) }}{{ 'hello world foo bar' | truncate(9, true) }}{{ s | truncate(5, true, '', 0) }}{{ 'x' | center(5) }}|
{{ '<a>' | escape }}{{ '<a>' | e | e }}{{ '<a>' | safe + '<b>' }}{{ '<b>' + ('<a>' | safe) }}{{ ('<a>' | safe) ~ '<b>' }}{{ ['<' | safe] }}{{ ('<a>' | safe).upper() + '&' }}{{ ('a,b' | safe).split(',')[0] + '<' }}
{{ 1 is number }}{{ true is number }}{{ 1 is integer }}{{ true is integer }}{{ 1.0 is float }}{{ true is boolean }}{{ 's' is string }}{{ l is sequence }}{{ d is sequence }}{{ s is sequence }}{{ missing is sequence }}{{ missing is iterable }}{{ d is mapping }}{{ l is iterable }}{{ s is iterable }}{{ 5 is iterable }}{{ none is none }}{{ d.items() is sequence }}{{ range(3) is sequence }}{{ missing is mapping }}
{{ 4 is even }}{{ 3 is odd }}{{ 6 is divisibleby 3 }}{{ 6 is divisibleby(4) }}{{ 'a' is in 'abc' }}{{ 1 is in [1] }}{{ 1 is eq 1 }}{{ 1 is ne 2 }}{{ 2 is gt 1 }}{{ 1 is sameas 1 }}{{ yes is sameas true }}{{ yes is true }}{{ 1 is true }}{{ no is false }}{{ 'a' is lower }}{{ 'A' is upper }}{{ 'upper' is filter }}{{ 'even' is test }}{{ s.upper is callable }}{{ none is not none }}{{ i is not defined }}{{ missing is undefined }}
{{ 1 is not none and 2 is none or 3 }}{{ not s is string }}{{ (s is string) == true }}{{ -1 | abs }}{{ s | length > 3 }}{{ s ~ 1 + 2 }}{{ 'a' ~ 'b' | upper }}{{ i if i is defined else 0 }}
{{ 'a' is equalto 'a' and 'b' in ['b'] }}{{ 5 is divisibleby i - 2 }}
{{ (1 is none) is none }}{{ 1 is none is none }}
{{ x.y.z if x is defined and x.y is defined else 'safe' }}
{{ caller }}{{ varargs }}{{ kwargs }}{{ loop }}
{{ joiner('|') is callable }}{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}{% set cy = cycler('x', 'y') %}{{ cy.next() }}{{ cy.next() }}{{ cy.next() }}{{ cy.current }}{{ cy.reset() }}{{ cy.current }}
{{ raise_exception('boom ' ~ i) }}
{{ raise_exception() }}
{{ s | nope }}
{% if no %}{{ s | nope }}{% endif %}ok
{% if yes %}{{ s | nope }}{% endif %}
{% if no %}{% for x in l %}{{ x | nope }}{% endfor %}{% endif %}
{{ (s | nope) if no else 'fine' }}
{{ s is nope }}
{% if no %}{{ s is nope }}{% endif %}ok
{% break %}
{% include 'x' %}
{% unknown %}
{% if yes %}
{% endif %}
{{ 1 + }}
{{ 'abc }}
{{ (1 }}
{{ [1, 2 }}
{{ 1 ! 2 }}
{{ a b }}
{{ }}
{# never closed
{% raw %} never closed
{% set true = 1 %}
{% macro m1(a=1, b) %}{% endmacro %}
{% for x in l %}{% endif %}
{% for loop in l %}{{ loop }}{% endfor %}
{{ f(1, a=2, a=3) }}
{{ {'a': 1}['a'] }}{{ {'a': {'b': 2}}.a.b }}{{ [1, [2, 3]][1][0] }}{{ (1, 2, 3)[1:] }}{{ 'abc'[1] }}{{ {1: 'x'}[1.0] }}{{ {1: 'x', true: 'y'} }}{{ {'a': 1, 'a': 2} }}
{{ {[1]: 2} }}
{{ {} == {} }}{{ [] == () }}{{ {'a': 1} == {'a': 1.0} }}{{ 'a' == 1 }}{{ none == false }}{{ 0 == false }}{{ '' == none }}
{{ (1,) + (2,) }}{{ [[1]] + [2] }}{{ () }}{{ (1,) }}{{ [] }}{{ {} }}{{ [1, 2,] }}{{ {'a': 1,} }}
{{ m1 is defined }}{{ dict is callable }}{{ range is defined }}{{ lipsum is defined }}
{{ strftime_now('%%') }}{{ strftime_now('abc') }}
{%- for x in l -%} {{ x }} {%- endfor -%}
{{ '\n' in q }}{{ "a\tb" }}{{ 'a"b' }}{{ "a'b" }}
{{ i.real is defined or true }}
{{ big + 1 }}{{ big * 2 }}{{ neg // 2 }}{{ neg % 2 }}{{ 10 ** 30 }}
{{ 1 if 1 if 0 else 0 else 2 }}
{{ l | batch(2) | list }}
{{ 1 and }}
{%set x=1%}{{x}}{%if x==1%}y{%endif%}
{% set x = 1 if no %}{{ x is defined }}{{ x }}
{% for a, b in pairs %}{{ a }}{{ b }}{% endfor %}{% for a, b in l %}{{ a }}{% endfor %}
{{ '' | first is defined }}{{ e or 'f' }}{{ [e, none, 0] | select | list | length }}
{{ ns | default('x') }}{{ (missing | default({})).a is defined }}{{ (d.zz or {}).y is defined }}
{% generation %}a{{ c }}b{% endgeneration %}c{% generation %}{% endgeneration %}
{% for x in l %}{{ c }}{% generation %}{{ x }}{% set y = 1 %}{% endgeneration %}{{ y is defined }}{% endfor %}
{% generation %}{% break %}{% endgeneration %}
"""


def corner_templates():
    """One a line; a line that does not open what it closes goes with the ones around it."""
    return [line for line in CORNERS.split("\n") if line] + [CORNERS[a.start():a.start() + 400] for a in re.finditer(r"\n  \{# comment", CORNERS)]


class Generator:
    """Random templates that mostly make sense, as most random text would only be refused."""

    NAMES = [name for name in VARIABLES if name not in ("tools", "documents", "add_generation_prompt")] + ["missing"]
    TEXTS = ["s", "e", "w", "c", "q", "num", "fnum", "'ab'", "'l'", "' '", "', '", "'\\n'", "messages[1].content", "'\u4f60'"]
    LISTS = ["l", "m", "mix", "rows", "el", "pairs", "[1, 2, 3]", "range(4)", "s.split('l')", "d.items()", "messages"]
    NUMBERS = ["0", "1", "2", "-1", "3", "i", "f", "h", "neg", "2.5", "true", "l | length", "10"]
    FILTERS = ["upper", "lower", "title", "capitalize", "trim", "length", "list", "first", "last", "string", "int", "float", "abs",
               "tojson", "join(',')", "join", "default('dflt')", "default(1, true)", "sort", "unique | list", "reverse | list", "items | list",
               "dictsort", "min", "max", "sum", "round", "indent(2)", "replace('l', 'L')", "map('string') | list", "select | list",
               "map(attribute='v') | list", "selectattr('v') | list", "rejectattr('n', 'defined') | list", "select('string') | list",
               "tojson(indent=1)", "safe", "escape", "count", "reject('none') | list", "truncate(6)", "center(9)", "tojson(ensure_ascii=true)"]
    TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "iterable", "sequence", "true",
             "false", "odd", "even", "callable", "eq 1", "in l", "divisibleby 2", "lower", "upper", "sameas none", "gt 1", "escaped"]
    TEXT_METHODS = ["strip()", "lstrip()", "rstrip('d')", "split()", "split({t})", "split({t}, {n})", "rsplit({t}, 1)", "splitlines()", "upper()",
                    "title()", "startswith({t})", "endswith(({t}, {t}))", "find({t})", "rfind({t}, {n})", "count({t})", "replace({t}, {t})",
                    "replace({t}, {t}, {n})", "join({l})", "partition({t})", "center({n})", "isdigit()", "islower()", "removeprefix({t})",
                    "swapcase()", "zfill({n})", "format({x}, {x})", "index({t})", "strip({t})"]
    BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "and", "or", "in", "not in"]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, options):
        return self.random.choice(options)

    def expression(self, depth=0):
        if depth > 3 or self.random.random() < 0.25:
            return self.pick([self.pick(self.NAMES), self.pick(self.TEXTS), self.pick(self.LISTS), self.pick(self.NUMBERS), "none"])
        inner = lambda: self.expression(depth + 1)
        kind = self.random.randrange(11)
        if kind == 0:
            return f"({inner()} {self.pick(self.BINARY)} {inner()})"
        if kind == 1:
            return f"({inner()} | {self.pick(self.FILTERS)})"
        if kind == 2:
            return f"({inner()} is {self.pick(['', 'not '])}{self.pick(self.TESTS)})"
        if kind == 3:
            method = self.pick(self.TEXT_METHODS)
            method = re.sub(r"\{(.)\}", lambda m: {"t": lambda: self.pick(self.TEXTS), "n": lambda: self.pick(self.NUMBERS),
                                                   "l": lambda: self.pick(self.LISTS), "x": inner}[m.group(1)](), method)
            return f"{self.pick(self.TEXTS)}.{method}"
        if kind == 4:
            return f"{self.pick(self.LISTS + self.TEXTS)}[{inner()}]"
        if kind == 5:
            # jinja2 folds constants with another rule for wrong indices than it has at run time.
            parts = [self.pick(["", self.pick(["0", "1", "2", "-1", "i", "neg", "true", "f", "l | length"])]) for _ in range(3)]
            return f"{self.pick(self.LISTS + self.TEXTS)}[{':'.join(parts[:self.pick([2, 3])])}]"
        if kind == 6:
            return f"({inner()} if {inner()} else {inner()})"
        if kind == 7:
            return self.pick(["[{}, {}]", "({}, {})", "{{'k': {}, 'j': {}}}"]).format(inner(), inner())
        if kind == 8:
            return f"(not {inner()})" if self.random.random() < 0.5 else f"(-{inner()})"
        if kind == 9 and self.random.random() < 0.3:
            # Powers of powers would keep Python busy for ever.
            return f"({self.pick(self.NUMBERS)} ** {self.pick(['0', '1', '2', '3', '-1', 'h', 'yes', 's'])})"
        if kind == 9:
            return f"({inner()} {self.pick(self.BINARY)} {self.pick(self.NUMBERS)} {self.pick(self.BINARY)} {self.pick(self.TEXTS)})"
        return f"({self.pick(self.NAMES)}.{self.pick(['x', 'role', 'items', 'get', 'b', 'upper', 'a'])})"

    def block(self, depth=0):
        """A statement around others, with random white space and signs."""
        space = lambda: self.pick(["", " ", "\n", "  \n  ", "x", " y\n"])
        begin = lambda: "{%" + self.pick(["", "", "-", "+"]) + " "
        end = lambda: " " + self.pick(["", "", "-", "+"]) + "%}"
        inner = lambda: "".join(self.block(depth + 1) for _ in range(self.random.randrange(1, 3))) if depth < 3 else ""
        tag = lambda text: space() + begin() + text + end() + space()
        kind = self.random.randrange(9)
        if kind <= 2:
            return space() + self.pick(["{{", "{{-", "{{ "]) + " " + self.expression(2) + self.pick([" }}", " -}}", "}}"]) + space()
        if kind == 3:
            return tag(f"if {self.expression(2)}") + inner() + self.pick(["", tag("else") + inner()]) + tag("endif")
        if kind == 4:
            condition = self.pick(["", f" if {self.expression(3)}"])
            stop = self.pick(["", tag("if loop.index > 2") + tag(self.pick(["break", "continue"])) + tag("endif")])
            return tag(f"for v in {self.pick(self.LISTS)}{condition}") + "{{ loop.index }}" + inner() + stop + self.pick(["", tag("else") + "none"]) + tag("endfor")
        if kind == 5:
            return tag(f"set {self.pick(['v', 'i', 's', 'o'])} = {self.expression(2)}")
        if kind == 6:
            return tag("set o") + inner() + tag("endset") + "{{ o }}"
        if kind == 7:
            return tag("macro mm(v, o=1)") + inner() + "{{ v }}{{ o }}" + tag("endmacro") + "{{ mm(" + self.expression(3) + ") }}"
        return space() + "{#" + self.pick(["", "-"]) + " note " + self.pick(["", "-"]) + "#}" + space()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", required=True)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    generator = Generator(arguments.seed)
    templates = corner_templates()
    num_corners = len(templates)
    templates += ["{{ " + generator.expression() + " }}" for _ in range(arguments.count)]
    templates += ["".join(generator.block() for _ in range(3)) for _ in range(arguments.count // 2)]
    answers = oracle.by_hearth(arguments.driver, [(template, [VARIABLES]) for template in templates])
    num_raised = num_unsupported = num_addresses = num_different = 0
    for number, (template, (answer,)) in enumerate(zip(templates, answers)):
        problem = oracle.difference(template, VARIABLES, answer)
        num_raised += "error" in answer
        if problem and "not supported" in answer.get("error", ""):
            num_unsupported += 1
        elif problem and re.search(r"at 0x[0-9a-f]{6}", problem, re.IGNORECASE):
            num_addresses += 1
        elif problem:
            num_different += 1
            where = "corner" if number < num_corners else "random"
            print(f"{where} {json.dumps(template, ensure_ascii=False)}\n    {problem}")
    total = len(templates)
    print(f"seed {arguments.seed}: {total} templates ({num_corners} corners): {total - num_different - num_unsupported - num_addresses} equal "
          f"(errors on both sides included: {num_raised} raise), {num_unsupported} not supported, {num_addresses} show addresses, "
          f"{num_different} different")
    return 1 if num_different or num_unsupported > total // 50 else 0


if __name__ == "__main__":
    sys.exit(main())
