"""Chat templates: programs that come with a tokenizer. They loop, fill the memory, or reach for Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.hostile.attack import ERASE, TITLE, Attack, Place

SHOWN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


def _template(text: str, arguments: Sequence[str] = ("prepare", "recipe.yaml")) -> Callable[[Place], Sequence[str]]:
    def make(place: Place) -> Sequence[str]:
        model = place.model("llama")
        (model / "chat_template.jinja").unlink(missing_ok=True)
        file = model / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": text}))
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
        place.write("chats.jsonl", (json.dumps({"messages": turns}) + "\n") * 20)

        def change(tree: dict[str, Any]) -> None:
            tree.update(task="causal_lm", data={"train": "chats.jsonl"}, evaluation={}, options={"max_length": 64})
            tree["model"] = {"source": "model"}
            tree["parallel"] = {"processes": 1, "deepspeed": "none"}

        place.recipe(change)
        return arguments

    return make


def attacks() -> Iterator[Attack]:
    yield Attack("a loop", _template(SHOWN + LOOP), "template", seconds=40)
    yield Attack("a loop under inspect", _template(SHOWN + LOOP, ("inspect", "recipe.yaml")), "template", seconds=40)
    yield Attack("a loop that is stopped", _template(SHOWN + LOOP), codes=(75, -15), stop_after=1.5, seconds=10)
    yield Attack(
        "a loop under inspect that is stopped",
        _template(SHOWN + LOOP, ("inspect", "recipe.yaml")),
        codes=(75, -15),
        stop_after=1.5,
        seconds=10,
    )
    for text, what in (
        ("{{ 'x' * 20000000000 }}", "20 GB"),
        ("{% for i in range(90000) %}{{ 'x' * 1000000 }}{% endfor %}", "90 GB in pieces"),
        (
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
            "doubling",
        ),
        (
            "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
            "doubling a list",
        ),
        ("{{ '%20000000000d' % 1 }}", "width"),
        ("{{ '{:>20000000000}'.format(1) }}", "format"),
        ("{{ 'x'.center(20000000000) }}", "center"),
        ("{{ 10 ** 10 ** 10 }}", "a power"),
        ("{{ 1 << 99999999999 }}", "a shift"),
        ("{{ range(100000) | list * 100000 }}", "a list"),
        ("{{ ('x' * 100000000) | replace('x', 'x' * 100000) }}", "replace"),
        ("{{ ['x' * 10000000] * 100000 | join }}", "join"),
        ("{{ messages | tojson(indent=1000000000) }}", "an indent"),
        ("{{ ('x' * 9000000) | wordwrap(1) }}", "wordwrap"),
    ):
        yield Attack(f"memory: {what}", _template(SHOWN + text), codes=(0, 2), seconds=60)
    for text in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.__class__ }}",
        "{{ ''['__cl' + 'ass__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('x').__traceback__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{{ lipsum.__globals__ }}",
        "{{ strftime_now.__globals__['os'].system('touch PWNED') }}",
    ):
        yield Attack(f"reaching for Python: {text[:40]}", _template(SHOWN + text), codes=(0, 2), seconds=60)
    yield Attack("its own words with codes", _template("{{ raise_exception('" + TITLE + ERASE + "') }}"), "template")
    yield Attack("its own words of 10 MB", _template("{{ raise_exception('x' * 10000000) }}"), "template")
    yield Attack("not a template", _template("{% for"), "template|Jinja|syntax")
    yield Attack("blocks 5,000 deep", _template("{% if true %}" * 5_000 + SHOWN + "{% endif %}" * 5_000), codes=(0, 2))
    yield Attack("brackets 50,000 deep", _template("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"), codes=(0, 2))
    yield Attack("recursion", _template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + SHOWN), codes=(0, 2))
    yield Attack("an integer of 5,000 digits", _template("{{ " + "9" * 5_000 + " }}" + SHOWN), codes=(0, 2))
    yield Attack("a template of 50 MB", _template(SHOWN + "x" * (50 << 20)), codes=(0, 2), seconds=60)
    yield Attack("a template that is a list of odd things", _odd, codes=(0, 2))


def _odd(place: Place) -> Sequence[str]:
    arguments = _template(SHOWN)(place)
    file = place.folder / "model" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": [{"name": 7}, "x"]}))
    return arguments
