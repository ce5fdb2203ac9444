"""Writes snippets.jsonl.gz: small templates with what Python's jinja2 makes of them.

usage: python3 make_snippets.py > /dev/null    (jinja2 3.1.6, Python 3.11; writes beside itself)

The environment is the one that Hugging Face transformers builds (utils/chat_template_utils.py): sandboxed,
trim_blocks, lstrip_blocks, loop controls, a `generation` tag, tojson without HTML escaping,
raise_exception, and strftime_now, here at 2025-07-10 12:00. First line: the variables. Then one line a
snippet: {"source", "output"} or {"source", "error"}, the error without its Python class. Snippets whose
answer is an address, a complex number or an integer of more than 64 bits are left out, and so are the
messages of syntax errors, which are Jinja's own affair ("error": null).
"""
import datetime
import gzip
import itertools
import json
import os

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                    extensions=[Generation, jinja2.ext.loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = lambda f: datetime.datetime(2025, 7, 10, 12, 0, 0).strftime(f)

VARIABLES = {
    "messages": [
        {"role": "user", "content": "Hi  there\n", "n": 3},
        {"role": "assistant", "content": None,
         "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": [1, 2.5, "x"]}}}]},
        {"role": "tool", "content": "ok é 你好"}],
    "x": 5, "y": -3, "f": 2.5, "s": "Hello World", "e": "", "z": [3, 1, 2],
    "d": {"b": 2, "a": 1, "items": 7}, "t": True, "nn": None, "u": "straße ÀÉ",
    "nested": [[1, [2, "q'\"x"]], {"k": "v\n\t\\"}], "big": 1e22, "small": 1e-7,
    "words": ["Foo", "bar", "Baz", "foo"],
    "people": [{"name": "Bob", "age": 30, "a": {"c": 1}}, {"name": "al", "age": 25, "a": {"c": 2}},
               {"name": "Cy", "age": 30, "a": {"c": 0}}],
    "html": "<a href='x'>&\"</a>", "ws": " \t a  b \n c \r\n"}

VALUES = ["x", "f", "s", "z", "d", "nn", "undef", "people", "'42'", "true", "range(3)", "(1,)", "messages[1]"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "~", "==", "<", ">=", "in", "not in", "and", "or"]
FILTERS = [
    'abs', "attr('a')", "attr('items')", 'batch(2)|list', "batch(2,'-')|list", 'capitalize', 'center',
    'center(11)', 'count', "d('q')", "default('q',true)", 'dictsort', 'dictsort(true)',
    "dictsort(false,'value')", 'dictsort(reverse=true)', 'first', 'float', 'float(3)', 'format(1)',
    "groupby('age')", "groupby('name')", 'groupby(0)', 'indent', 'indent(2)', 'indent(2,true)',
    'indent(2,true,true)', "indent('>>')", 'int', 'int(9)', 'int(base=16)', 'items|list', 'join',
    "join('-')", "join(', ',attribute='name')", 'last', 'length', 'list', 'lower', "map('upper')|list",
    "map(attribute='name')|list", "map(attribute='a.c')|list", "map(attribute='zz',default='D')|list",
    "map('string')|join", 'max', 'min', "max(attribute='age')", "min(attribute='a.c')", 'reject|list',
    "reject('string')|list", "rejectattr('age','equalto',30)|list", "rejectattr('name')|list",
    "replace('l','LL')", "replace('','.')", "replace('o','0',1)", 'replace(1,2)', 'reverse',
    'reverse|list', 'round', 'round(1)', "round(2,'floor')", 'round(-1)', "round(method='ceil')", 'safe',
    'select|list', "select('string')|list", "select('gt',2)|list", "selectattr('age','gt',26)|list",
    "selectattr('name')|list", "selectattr('a.c','==',1)|list", 'slice(2)|list', "slice(3,'x')|list",
    'sort', 'sort(reverse=true)', 'sort(case_sensitive=true)', "sort(attribute='name')",
    "sort(attribute='a.c')", 'string', 'sum', "sum(attribute='age')", 'sum(start=10)', 'title', 'tojson',
    'tojson(indent=2)', 'tojson(ensure_ascii=true)', "tojson(separators=(',',':'))",
    'tojson(sort_keys=true)', 'tojson(indent=0)', 'trim', "trim('Hd')", 'truncate(5)', 'truncate(5,true)',
    "truncate(6,end='!')", 'truncate(8,leeway=0)', 'unique|list', 'unique(true)|list', 'upper',
    'wordcount', 'select', "map('upper')", 'items', "reject('none')|first", "select('defined')|length",
    'nofilter', 'join(1,2,3)', 'map', 'sort|first',
]
TESTS = [
    'defined', 'undefined', 'none', 'boolean', 'true', 'false', 'integer', 'float', 'number', 'string',
    'mapping', 'iterable', 'sequence', 'callable', 'escaped', 'in z', "in 'Hello'", 'eq 5', 'equalto 5',
    '== 5', '!= 5', 'lt 3', 'gt 3', 'ge 5', '<= 5', 'sameas true', 'sameas none', 'odd', 'even',
    'divisibleby 3', 'upper', 'lower', 'filter', 'test', 'nosuch',
]
METHODS = [
    'strip()', "strip('Hd')", 'lstrip()', "rstrip('\\n')", 'split()', "split(' ')", "split('l',1)",
    'split(None,1)', "rsplit('l',1)", 'rsplit()', 'rsplit(None,1)', 'splitlines()', 'splitlines(true)',
    "partition('l')", "rpartition('l')", "partition('q')", "replace('l','')", "replace('l','L',1)",
    "replace('','_')", "startswith('He')", "startswith(('a','H'))", "endswith('d')", "endswith('x')",
    "startswith('l',2)", "removeprefix('He')", "removesuffix('ld')", "join(['a','b'])", 'join(words)',
    'join([1])', "find('l')", "find('l',4)", "find('q')", "rfind('l')", "index('l')", "index('q')",
    "count('l')", "count('')", 'upper()', 'lower()', 'title()', 'capitalize()', 'swapcase()', 'casefold()',
    'center(15)', "center(16,'*')", "ljust(14)~'|'", "rjust(14,'-')", 'zfill(14)', 'isalpha()',
    'isalnum()', 'isdigit()', 'isspace()', 'isupper()', 'islower()', 'nosuch()', 'format(1)', 'append(1)',
    'pop()', "get('a')", "get('zz')", "get('zz',1)", 'items()', 'keys()', 'values()', 'copy()',
    'items()|list', 'keys()|join', 'values()|list', 'index(1)', 'count(3)', 'update({})', '__class__',
    '__init__()', 'name', '0', "encode('x')",
]
WHOLE = [
    '{% for x in [1,2] %}\n a {{ x }}\n{% endfor %}\nb', '  {% if true %}\n  x\n  {% endif %}\n',
    '{%- if true -%}  x  {%- endif -%} y', 'a {%+ if true +%}\n b{% endif %}',
    '\n\n{% set a=1 %}\n\n{{ a }}\n\n', '{# c #}\nx', '  {# c #}  \nx', 'a{#- c -#}\n\n b',
    '{% raw %}{{ x }}{% endraw %}y', '{%- raw -%}\n {% a %} \n{%- endraw -%}\n z',
    '  {% raw %}\n{{x}}\n  {% endraw %}\n z', "{{ '}}' }}", "{{ {'a':{'b':1}} }}", "{{ 'a' 'b' }}",
    "{{- 'a' -}}   b", "a   {{- 'a' }}", 'a\r\nb\rc\n', "{{ 'a\r\nb' }}",
    '{% if x %}a{% elif y %}b{% else %}c{% endif %}',
    '{% if undef %}a{% elif false %}b{% else %}c{% endif %}',
    '{% set q=1 %}{% for i in [1,2] %}{% set q=i %}{{ q }}{% endfor %}{{ q }}',
    '{% set ns=namespace(a=1) %}{% for i in [1,2] %}{% set ns.a=ns.a+i %}{% endfor %}{{ ns.a }}{{ ns }}',
    "{% set ns=namespace({'k':2},b=1) %}{{ ns.k }}{{ ns.b }}{{ ns.c }}|", '{% set d.a=1 %}',
    '{% set a,b=1,2 %}{{ a }}{{ b }}', '{% set (a,b)=[1,2] %}{{ a }}{{ b }}', '{% set a,b=[1] %}',
    '{% set a,b=[1,2,3] %}', '{% set a %}hello {{ x }}{% endset %}[{{ a }}]',
    '{% set a|upper|trim %} hello {{ x }} {% endset %}[{{ a }}]',
    '{% for a,b in d.items() %}{{ a }}={{ b }}{% if not loop.last %},{% endif %}{% endfor %}',
    '{% for a in [] %}x{% else %}none{% endfor %}',
    '{% for a in [1,2,3,4] if a%2==0 %}{{ loop.index }}:{{ a }}/{{ loop.length }}{{ loop.last }} {% endfor %}',
    '{% for a in [1,2,3] %}{% if a==2 %}{% continue %}{% endif %}{{ a }}{% endfor %}',
    '{% for a in [1,2,3] %}{% if a==2 %}{% break %}{% endif %}{{ a }}{% else %}E{% endfor %}',
    '{% for a in [1,2,3] %}{% break %}{% else %}E{% endfor %}',
    '{% for a in [1,2,3] %}{% continue %}{% else %}E{% endfor %}',
    '{% for a in z %}{% with b=a %}{{ b }}{% if b==1 %}{% break %}{% endif %}{% endwith %};{% endfor %}',
    '{% for a in z %}{% with b=a %}{% if b==1 %}{% continue %}{% endif %}{{ b }}{% endwith %};{% endfor %}',
    '{% for a in z %}{{ a }}{% set b %}{% if a==1 %}{% break %}{% endif %}q{% endset %}{{ b }}{% endfor %}',
    '{% for a in z %}{% set b %}{% if a==1 %}{% continue %}{% endif %}q{% endset %}{{ a }}{{ b }}{% endfor %}',
    '{% for a in z %}{% filter upper %}a{{ a }}{% if a==1 %}{% break %}{% endif %}b{% endfilter %}{% endfor %}',
    '{% for a in z %}{% for b in [] %}{% else %}{% if a==1 %}{% break %}{% endif %}{% endfor %}{{ a }}{% endfor %}',
    '{% for a in z %}{% for b in [] %}{% else %}{% continue %}{% endfor %}{{ a }}{% else %}E{% endfor %}',
    '{% for a in nested recursive %}{{ a }}{% endfor %}',
    '{% for a in [[1,[2]],3] recursive %}({% if a is iterable %}{{ loop(a) }}{% else %}{{ a }}d{{ loop.depth }}{{ loop.depth0 }}{% endif %}){% endfor %}',
    '{% for a in [1] %}{{ loop(a) }}{% endfor %}',
    "{% for a in 'abc' %}{{ loop.cycle('x','y') }}{{ loop.changed(a) }}{% endfor %}",
    '{% for a in [1,1,2] %}{{ loop.changed(a) }}{% endfor %}',
    '{% for a in [1,2] %}{% for b in [3,4] %}{{ loop.index }}{{ a }}{{ b }} {% endfor %}{{ loop.index }}{% endfor %}',
    '{% for a in z|sort %}{{ a }}{% endfor %}', '{% for a in 1,2,3 %}{{ a }}{% endfor %}',
    '{% for x in z %}{{ x }}{% endfor %}{{ x }}', '{% for (a,b) in [(1,2)] %}{{ a+b }}{% endfor %}',
    '{% for a,(b,c) in [(1,(2,3))] %}{{ a+b+c }}{% endfor %}', '{% for a in none %}{% endfor %}',
    '{% for a in 5 %}{% endfor %}', '{% for a in undef %}x{% else %}e{% endfor %}',
    '{% for loop in z %}{% endfor %}',
    '{% macro m(a,b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1,3) }}{{ m(b=5,a=4) }}',
    '{% macro m(a,b) %}[{{ a }}{{ b }}]{% endmacro %}{{ m() }}{{ m(1) }}',
    '{% macro m(a) %}{% endmacro %}{{ m(1,2) }}', '{% macro m(a) %}{% endmacro %}{{ m(c=2) }}',
    '{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1,2,k=3) }}',
    '{% macro m(a) %}{{ a }}{% if a>0 %}{{ m(a-1) }}{% endif %}{% endmacro %}{{ m(5) }}',
    '{% macro m() %}{{ caller(7) }}{% endmacro %}{% call(v) m() %}<{{ v }}{{ x }}>{% endcall %}',
    '{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}',
    '{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(3) }}',
    '{% set g=1 %}{% macro m() %}{{ g }}{{ x }}{% endmacro %}{% set g=2 %}{{ m() }}',
    '{% for i in [1,2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}',
    "{% macro m() %}x{% endmacro %}{{ m() + 'y' }}{{ m().upper() }}{{ m.name }}",
    '{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}',
    '{% macro m(a) %}{% set a=9 %}{{ a }}{% endmacro %}{% set a=1 %}{{ m(2) }}{{ a }}', '{{ m() }}',
    '{% macro m(a=1,b) %}{% endmacro %}', '{% with %}{% set w=1 %}{{ w }}{% endwith %}{{ w }}|',
    '{% with a=1,b=2 %}{{ a }}{{ b }}{% endwith %}{{ a }}|',
    '{% with a=x,x=1 %}{{ a }}{{ x }}{% endwith %}{{ x }}', '{% filter upper %}ab{{ s }}{% endfilter %}',
    "{% filter replace('a','b')|upper %}a{% endfilter %}",
    '{% generation %}{% set q=1 %}{{ x }}{% endgeneration %}{{ q }}|', '{{ x if x>3 else y }}',
    '{{ x if x<3 }}|', '{{ (x if x<3).foo }}', '{{ 1 if false else 2 if false else 3 }}',
    '{{ not x }}{{ not not x }}', '{{ x is defined and y is defined }}', '{{ undef.foo }}',
    "{{ undef['a'] }}", '{{ undef() }}', '{{ x() }}', '{{ x.foo.bar }}', '{{ d.zz.yy }}',
    '{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 1 == 1 != 2 }}',
    '{{ 2**3**2 }}{{ -2**2 }}{{ 7//2*2 }}{{ 7%3 }}{{ -7//2 }}{{ -7%3 }}{{ 1-2-3 }}',
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.0 }}", "{{ 'a' + 'b' | upper }}", '{{ -1 | abs }}',
    '{{ x | string | length }}', "{{ messages | selectattr('role','equalto','user') | list | length }}",
    '{{ (messages|first).role }}', "{{ messages[-1]['content'][::-1] }}",
    '{{ s[1:3] }}{{ s[:-1] }}{{ s[::2] }}{{ s[-3:] }}{{ s[10:2] }}{{ s[5:1:-2] }}',
    '{{ z[1:] }}{{ z[::-1] }}{{ z[5:] }}',
    '{{ range(3)|list }}{{ range(1,10,3)|list }}{{ range(5,0,-2)|list }}{{ range(3) }}{{ range(0) }}{{ range(2,5)[1] }}',
    '{{ range(1000000) }}', "{{ dict(a=1,b='x') }}{{ dict([('k',1)]) }}{{ dict({'a':1},b=2) }}",
    "{{ raise_exception('boom ' ~ x) }}",
    "{{ strftime_now('%d %B %Y %H:%M:%S %j %a %A %b %y %p %I %% %-d %e') }}",
    "{{ strftime_now('%Z|%z') }}",
    "{{ [1,2,3,] }}{{ (1,) }}{{ () }}{{ {} }}{{ {'a':1,} }}{{ {1:2,none:3,true:4,1.5:6} }}",
    '{{ {1:2,none:3,true:4,1.5:6}|tojson }}',
    '{{ 1_000 }}{{ 0x1F }}{{ 0b11 }}{{ 0o17 }}{{ 1e3 }}{{ 1.5e-3 }}{{ 1E5 }}',
    '{{ \'\\n\\t\\x41\\u00e9\\\'\\"\\\\\\q\\101\' }}',
    '{{ "it\'s" }}{{ [\'it\\\'s\', \'a"b\', \'a\\\'b"c\'] }}',
    "{{ 'é' }}{{ '你'|length }}{{ ['é','\\x00\\x7f\\xa0\\u200b'] }}",
    "{{ d['a'] }}{{ d.b }}{{ d['zz'] }}|{{ d.get('zz') }}", '{{ x.__class__ }}|',
    "{{ ''.__class__.__mro__ }}", '{{ messages.append(1) }}', '{{ (1,2)|tojson }}{{ range(2)|tojson }}',
    '{{ undef|tojson }}', '{{ messages|tojson(indent=4) }}', '{{ html|tojson }}', '{{ 1/0 }}',
    '{{ 1//0 }}', '{{ 1.0/0 }}', '{{ 5.0//2 }}{{ -5.5//2 }}{{ 5.5%2 }}{{ -5.5%2 }}',
    '{{ 0.1+0.2 }}{{ 1e16 }}{{ 1e15 }}{{ 123456789.123 }}{{ 1e-4 }}{{ 1e-5 }}{{ 100.0 }}{{ 3.0e100 }}',
    "{{ [1,'a',none,true,2.5,{'k':[1]}] }}",
    "{{ 'x' in 'xyz' }}{{ 'a' in d }}{{ 3 in z }}{{ 3 not in z }}",
    '{{ x is not none }}{{ x is none }}{{ nn is none }}',
    "{{ x == 5.0 }}{{ true == 1 }}{{ '1' == 1 }}{{ [1] == [1.0] }}{{ (1,) == [1] }}{{ {'a':1}=={'a':1} }}",
    '{{ m', '{% if %}', '{% foo %}', '{% endif %}', '{% if x %}', '{{ }}', '{{ x | }}', '{{ x. }}',
    '{{ x[ }}', "{{ 'abc }}", '{% for x y %}{% endfor %}', '{{ 1 2 }}', '{{ a b }}', '{# unclosed',
    '{% raw %}x', '{{ x ! y }}', '{{ (1,2 }}', '{{ 1) }}', '{% set x %}', '{% set 1=2 %}',
    '{% set x=1 %}x{% endset %}', '{% macro %}{% endmacro %}', '{% call x %}{% endcall %}',
    "{% include 'a' %}", '{{ x is }}', '{{ x is defined is none }}', '{{ f(a=1,2) }}', '{{ f(*z, **d) }}',
    "{% macro m() %}{{ varargs }}{{ kwargs|length }}{% endmacro %}{{ m(*z, **{'q':1}) }}{{ m(1,*z) }}",
    '{{ 5.foo }}', '{{ 5 .foo }}|', '{{ x.0 }}|{{ z.0 }}{{ z.0.1 }}', '{{ loop }}', '{{ self }}',
    "{{ true and 5 or 6 }}{{ 0 or '' or 7 }}{{ none and 1 }}", '{{ x is eq 5 and y }}',
    '{{ x is divisibleby 5 }}{{ x is divisibleby(2) }}', '{{ [x,y]|max }}', "{{ 'a,b'.split(',')|last }}",
    '{{ z|sum / z|length }}', "{{ s|replace('o','')|upper|trim }}", '{% set x = x+1 %}{{ x }}',
    '{% if x %}{% set k=1 %}{% endif %}{{ k }}',
    '{% for i in z %}{% if loop.first %}{% set tools2 = 1 %}{% endif %}{{ tools2 }}|{% endfor %}',
    '{{ tools }}{{ tools is none }}{{ documents }}{{ add_generation_prompt }}',
    '{%for i in z%}{{i}}{%endfor%}', '{{x}}{{-x-}}{{ x-1 }}{{ x -1 }}',
    '{% if x == 5 -%}\n  yes\n{%- endif %}', '{% if not x == 4 and not y == 3 %}ok{% endif %}',
    "{{ 'a' if x is string else 'b' if x is number else 'c' }}",
    "{% for m in messages %}{{ m.role }}:{{ m['content'] }}:{{ m.tool_calls is defined }}\n{% endfor %}",
    "{{ messages|map(attribute='role')|join(',') }}", "{{ messages|map(attribute='nope')|list }}",
    "{{ (messages|map(attribute='role'))[0] }}|", "{{ messages|map(attribute='role')|length }}",
    "{% set it = z|map('string') %}{{ it|list }}{{ it|list }}", '{% for k in d %}{{ k }}{% endfor %}',
    '{{ d|length }}{{ s|length }}{{ nn|length }}', '{{ d|list }}{{ s|list }}', '{{ nn|trim }}{{ 5|trim }}',
    "{{ undef|trim }}|{{ undef|default('x') }}|{{ undef|length }}|{{ undef|list }}|{{ undef|join }}|{{ undef ~ 'a' }}",
    "{{ undef + 'a' }}", '{{ undef == undef2 }}{{ undef == none }}{{ undef != 1 }}', '{{ undef < 1 }}',
    '{{ not undef }}{{ undef in z }}{{ 1 in undef }}', '{{ [undef] }}',
    "{{ 'x' * 3 }}{{ 3 * 'ab' }}{{ [1]*2 }}{{ 'x' * -1 }}", '{% set f = s.upper %}{{ f() }}',
    '{% filter trim %}  {{ x }} {% endfilter %}',
    "{{ s.replace('l', 'L').lower().split('l')[0].strip('h') }}",
    "{{ {'a': 1}['a'] }}{{ [1,2][1] }}{{ 'abc'[1] }}", '{{ namespace() }}{{ namespace }}',
    "{{ '{} {}'.format(1,'a') }}", "{{ '{1} {0} {{x}}'.format(1,2) }}", "{{ '{a}'.format(a=3) }}",
    "{{ '%s-%d-%5.2f-%x|%-5s|%05d|%+d' % ('a',3,2.5,255,'b',42,7) }}", "{{ '%s' % x }}",
    "{{ '%(a)s' % d }}", "{{ '%d%%' % 5 }}", "{{ '%r' % 'q' }}", "{{ '%5s' % 'é' }}",
    "{{ '%.2s' % 'éab' }}", "{{ '%c' % 65 }}", "{{ '%d' % 'a' }}", "{{ '%s %s' % ('a',) }}",
    "{{ '%s' % ('a','b') }}", "{{ '%i %u' % (3,4) }}", "{{ '%e %g' % (1234.5,0.00001) }}",
]


# Slices of constants by constants of the wrong type: jinja2's optimizer turns their error into an undefined
# value, the same slice of a variable raises. The rest is what Tributary does otherwise on purpose.
LEFT_OUT = [
    "{{ ('42')['42':] }}", "{{ ('42')[::'42'] }}", "{{ ('42')[(1,):] }}", "{{ ('42')[::(1,)] }}",
    "{{ (true)['42':] }}", "{{ (true)[::'42'] }}", '{{ (true)[true:] }}', '{{ (true)[::true] }}',
    '{{ (true)[(1,):] }}', '{{ (true)[::(1,)] }}', "{{ ((1,))['42':] }}", "{{ ((1,))[::'42'] }}",
    '{{ ((1,))[(1,):] }}', '{{ ((1,))[::(1,)] }}', '{{ z is filter }}', '{{ z is test }}',
    '{{ d is filter }}', '{{ d is test }}', '{{ people is filter }}', '{{ people is test }}',
    '{{ messages[1] is filter }}', '{{ messages[1] is test }}', '{{ (undef).__class__ }}',
    '{{ (u).casefold() }}', '{{ self }}', '{{ namespace() }}{{ namespace }}', "{{ '%c' % 65 }}",
]


def sources():
    for a, op, b in itertools.product(VALUES, OPERATORS, VALUES):
        yield "{{ (%s) %s (%s) }}" % (a, op, b)
    for a, b in itertools.product(VALUES, VALUES):
        yield "{{ (%s)[%s] }}" % (a, b)
        yield "{{ (%s)[%s:] }}" % (a, b)
        yield "{{ (%s)[::%s] }}" % (a, b)
    for v, f in itertools.product(VALUES + ["words", "nested", "ws", "html", "u", "-2.5", "2.675"], FILTERS):
        yield "{{ %s|%s }}" % (v, f)
    for v, t in itertools.product(VALUES + ["'Abc'", "s.upper", "namespace(a=1)", "1.0"], TESTS):
        yield "{{ %s is %s }}" % (v, t)
    for v, m in itertools.product(["x", "s", "z", "d", "nn", "undef", "ws", "u", "(1,2,3)"], METHODS):
        yield "{{ (%s).%s }}" % (v, m)
    yield from WHOLE


def answer(source):
    try:
        template = env.from_string(source)
    except jinja2.exceptions.TemplateSyntaxError:
        return {"source": source, "error": None}
    variables = json.loads(json.dumps(VARIABLES))
    try:
        output = template.render(tools=None, documents=None, add_generation_prompt=False, **variables)
        return {"source": source, "output": output}
    except Exception as e:
        return {"source": source, "error": str(e)}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    rows = [{"variables": VARIABLES, "jinja2": jinja2.__version__}]
    for source in dict.fromkeys(sources()):
        row = answer(source)
        if source in LEFT_OUT or " at 0x" in row.get("output", "") or " AT 0X" in row.get("output", ""):
            continue
        rows.append(row)
    with gzip.GzipFile(os.path.join(here, "snippets.jsonl.gz"), "wb", mtime=0) as out:
        for row in rows:
            out.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    print(len(rows) - 1)


if __name__ == "__main__":
    main()
