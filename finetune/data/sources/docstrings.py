"""A text classification dataset available on every machine: docstrings of Python's standard library, by area.

Source files are parsed, never imported. `python -m finetune.data.sources.docstrings --output DIR` writes .jsonl files.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

MIN_WORDS = 5
MAX_WORDS = 60
VALIDATION_FRACTION = 0.1
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib-dynload"}

AREAS: Mapping[str, str] = {  # area -> top-level modules; other modules are left out
    "gui": "tkinter turtle turtledemo curses",
    "mail": "email mailbox imaplib smtplib smtpd poplib nntplib mailcap mimetypes quopri base64 uu binhex",
    "internet": "http urllib wsgiref xmlrpc ssl socket socketserver ftplib telnetlib cgi cgitb ipaddress webbrowser "
    "asyncore asynchat uuid nturl2path netrc xdrlib hmac secrets hashlib",
    "concurrency": "asyncio multiprocessing threading _threading_local concurrent queue subprocess selectors sched "
    "signal contextvars _weakrefset weakref pty",
    "data": "_pydecimal decimal datetime _pydatetime statistics collections _collections_abc numbers random operator "
    "enum fractions heapq bisect functools calendar _strptime zoneinfo graphlib copy copyreg types typing dataclasses "
    "abc _py_abc contextlib colorsys reprlib ctypes pickle pickletools shelve",
    "files": "os tarfile zipfile pathlib shutil tempfile bz2 lzma gzip _pyio io ntpath posixpath genericpath stat "
    "glob fnmatch filecmp fileinput linecache _compression zipapp dbm sqlite3 platform wave aifc sunau chunk sndhdr "
    "imghdr",
    "text": "xml html encodings codecs re sre_parse sre_compile string stringprep textwrap difflib json csv "
    "configparser tomllib plistlib argparse optparse getopt shlex cmd locale gettext pprint _markupbase",
    "development": "unittest doctest pdb bdb pydoc inspect traceback trace logging profile cProfile pstats timeit "
    "tracemalloc warnings code codeop rlcompleter lib2to3 ast dis opcode symtable tokenize tabnanny pyclbr py_compile "
    "compileall modulefinder",
}
AREA_OF = {module: area for area, modules in AREAS.items() for module in modules.split()}


def docstring_rows(split: str, root: Path | None = None) -> Iterator[dict[str, Any]]:
    """Rows {"text": ..., "label": area, "name": qualified name} of one split, "train" or "validation".

    The text is the first 60 words of a docstring. Of equal texts only the first is kept, so no text is in both splits.
    Rows are ordered by a hash of the text, so the first hundred rows contain all areas.
    root: folder of the library; None: that of the running Python.
    """
    by_hash: dict[int, dict[str, Any]] = {}
    for name, area, text in _library(root or Path(sysconfig.get_paths()["stdlib"])):
        by_hash.setdefault(_hash(text), {"text": text, "label": area, "name": name})
    for number in sorted(by_hash):
        if (number % 1000 < VALIDATION_FRACTION * 1000) == (split == "validation"):
            yield by_hash[number]


@cache
def _library(root: Path) -> tuple[tuple[str, str, str], ...]:
    """All docstrings of the library; cached, because reading them takes a few seconds."""
    return tuple(_docstrings(root))


def _hash(text: str) -> int:
    """The hash that orders and splits the texts; it depends on the text only."""
    return int.from_bytes(hashlib.blake2b(text.casefold().encode(), digest_size=8).digest(), "little")


def _docstrings(root: Path) -> Iterator[tuple[str, str, str]]:
    """(qualified name, area, text) of all modules, classes and functions with a docstring of at least five words."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        area = AREA_OF.get(parts[0])
        if area is None or EXCLUDED_FOLDERS.intersection(parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        for name, docstring in _walk(path, module):
            words = docstring.split()
            if len(words) >= MIN_WORDS:
                yield name, area, " ".join(words[:MAX_WORDS])


def _walk(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of the definitions of a file, in order; nothing if it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # the library contains a few files that are invalid on purpose
        return
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        name, node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield name, docstring
        for child in reversed(list(ast.iter_child_nodes(node))):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                pending.append((f"{name}.{child.name}", child))
            elif isinstance(child, ast.stmt):
                pending.append((name, child))


def main() -> None:
    """Command line: write train.jsonl and validation.jsonl."""
    parser = argparse.ArgumentParser(description="Write the docstrings of Python's standard library as labeled texts.")
    parser.add_argument("--output", type=Path, required=True, help="folder for train.jsonl and validation.jsonl")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in docstring_rows(split)]
        path = output / f"{split}.jsonl"
        path.write_text("".join(lines), "utf-8")
        print(f"{path}: {len(lines):,} rows")


if __name__ == "__main__":
    main()
