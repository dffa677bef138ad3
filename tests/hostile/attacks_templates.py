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


REFUSED = "template"


def attacks() -> Iterator[Attack]:
    inspect = ("inspect", "recipe.yaml")
    yield Attack("a loop", _template(SHOWN + LOOP), REFUSED, seconds=40)
    yield Attack("a loop under inspect", _template(SHOWN + LOOP, inspect), REFUSED, seconds=40)
    yield Attack("a loop that is stopped", _template(SHOWN + LOOP), "stopped", 75, 10, stop_after=1.5)
    yield Attack("a loop under inspect that is stopped", _template(SHOWN + LOOP, inspect), "", -15, 10, stop_after=1.5)
    yield from _of_memory()
    yield from _of_python()
    yield from _of_words()


def _of_memory() -> Iterator[Attack]:
    doubling = "{% set ns = namespace(s=X) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}"
    for text, what in (
        ("{{ 'x' * 20000000000 }}", "20 GB"),
        ("{% for i in range(90000) %}{{ 'x' * 1000000 }}{% endfor %}", "90 GB in pieces"),
        (doubling.replace("X", "'x'"), "doubling"),
        (doubling.replace("X", "[1]"), "doubling a list"),
        ("{{ '%20000000000d' % 1 }}", "width"),
        ("{{ '{:>20000000000}'.format(1) }}", "format"),
        ("{{ 10 ** (10 ** 10) }}", "a power"),
        ("{{ 1 << 99999999999 }}", "a shift"),
        ("{{ ('x' * 100000000) | replace('x', 'x' * 100000) }}", "replace"),
        ("{{ messages | tojson(indent=1000000000) }}", "an indent"),
        ("{{ ('x' * 9000000) | wordwrap(1) }}", "wordwrap"),
        ("{{ 'a' | center(10 ** 9) }}", "center"),
        ("{{ [1] | slice(10 ** 9) | list }}", "slice"),
        ("{{ 'a' | batch(10 ** 9, 'x') | list }}", "batch"),
        ("{{ '{:{}}'.format(1, 10 ** 10) }}", "a width within a width"),
    ):
        yield Attack(f"memory: {what}", _template(SHOWN + text), REFUSED, seconds=60)


def _of_python() -> Iterator[Attack]:
    for text in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('x').__traceback__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{{ strftime_now.__globals__['os'].system('touch PWNED') }}",
    ):
        yield Attack(f"reaching for Python: {text[:40]}", _template(SHOWN + text), REFUSED, seconds=60)
    for text in (
        "{{ messages.__class__ }}",
        "{{ ''['__cl' + 'ass__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ lipsum.__globals__ }}",
    ):
        # Jinja's sandbox answers with nothing, so that the rest of the template is used.
        yield Attack(f"reaching for Python: {text[:40]}", _template(SHOWN + text), "prepared", 0, 60)


def _of_words() -> Iterator[Attack]:
    words = "{{ raise_exception('" + TITLE + ERASE + "') }}"
    yield Attack("its own words with codes", _template(words), r"template.*\\u001b")
    yield Attack("its own words of 10 MB", _template("{{ raise_exception('x' * 10000000) }}"), REFUSED)
    yield Attack("not a template", _template("{% for"), "template|Jinja|syntax")
    deep = "{% if true %}" * 5_000 + SHOWN + "{% endif %}" * 5_000
    yield Attack("blocks 5,000 deep", _template(deep), REFUSED)
    yield Attack("brackets 50,000 deep", _template("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"), REFUSED)
    yield Attack("recursion", _template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + SHOWN), REFUSED)
    yield Attack("an integer of 5,000 digits", _template("{{ " + "9" * 5_000 + " }}" + SHOWN), REFUSED)
    yield Attack("a template of 50 MB", _template(SHOWN + "x" * (50 << 20)), REFUSED, seconds=60)
    yield Attack("a list of odd things", _odd, REFUSED)


def _odd(place: Place) -> Sequence[str]:
    arguments = _template(SHOWN)(place)
    file = place.folder / "model" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": [{"name": 7}, "x"]}))
    return arguments
