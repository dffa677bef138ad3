"""Real text on every machine: the docstrings of Python's own library, each with the area of the library it comes from.

Sources are parsed, never imported. `python -m finetune.data.sources.docstrings --output DIR` writes them as .jsonl.
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

FEWEST_WORDS = 5
MOST_WORDS = 60
HELD_OUT = 0.1
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib-dynload"}

AREAS: Mapping[str, str] = {  # top-level modules of each area; what fits none of them is left out
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
    """{"text", "label": area, "name": qualified name} of one split, "train" or "validation".

    The text is the first 60 words; of equal texts the first is kept, so none is in both splits. The order is that of
    their hashes: the first hundred rows are of all areas. root: the library.
    """
    found: dict[int, dict[str, Any]] = {}
    for name, area, text in _library(root or Path(sysconfig.get_paths()["stdlib"])):
        found.setdefault(_hash(text), {"text": text, "label": area, "name": name})
    for number in sorted(found):
        if (number % 1000 < HELD_OUT * 1000) == (split == "validation"):
            yield found[number]


@cache
def _library(root: Path) -> tuple[tuple[str, str, str], ...]:
    """Both splits in one pass of some seconds."""
    return tuple(_docstrings(root))


def _hash(text: str) -> int:
    """What orders and splits the texts: the same whatever else the library holds."""
    return int.from_bytes(hashlib.blake2b(text.casefold().encode(), digest_size=8).digest(), "little")


def _docstrings(root: Path) -> Iterator[tuple[str, str, str]]:
    """(qualified name, area, text) of every module, class and function with a docstring of five words or more."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        area = AREA_OF.get(parts[0])
        if area is None or NOT_LIBRARY.intersection(parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        for name, docstring in _walk(path, module):
            words = docstring.split()
            if len(words) >= FEWEST_WORDS:
                yield name, area, " ".join(words[:MOST_WORDS])


def _walk(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a file's definitions, in order; nothing of a file that is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # the library holds a few files that are broken on purpose
        return
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield name, docstring
        for child in reversed(list(ast.iter_child_nodes(node))):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                waiting.append((f"{name}.{child.name}", child))
            elif isinstance(child, ast.stmt):
                waiting.append((name, child))


def main() -> None:
    """Writes train.jsonl and validation.jsonl."""
    parser = argparse.ArgumentParser(description="Write the docstrings of Python's library as labelled text.")
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
