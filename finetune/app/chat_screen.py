"""The terminal side of a conversation: what is typed, and replies as they come, broken at words.

In a pipe there are no prompts and no notes on stdout: one line in is one turn, and what comes out is the reply as it is.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from contextlib import suppress

import typer

from finetune.app.chat_keys import Keyboard
from finetune.terminal import printable, say

PROMPT, CONTINUED = "> ", ". "


class ChatScreen:
    """interactive: a person types. shows: a person reads, so that control characters are shown as what they are.

    keyboard: a context around the whole conversation.
    """

    def __init__(self) -> None:
        self.keyboard = Keyboard()
        self.interactive = sys.stdin.isatty()
        self.shows = sys.stdout.isatty()
        self._column = 0
        self._word = ""
        if self.interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  (input() then has a history, and arrow keys)

    def ask(self) -> str:
        """The next turn. A line that ends with a backslash goes on in the next one. Raises: EOFError at the end;
        KeyboardInterrupt.
        """
        if not self.interactive:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\r\n")
        lines = [input(PROMPT)]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(input(CONTINUED))
        return "\n".join(lines)

    def note(self, text: str) -> None:
        """Something about the conversation, beside it."""
        if self.interactive and self.shows:
            lines = textwrap.wrap(f"({printable(text)})", self._columns, break_on_hyphens=False)
            typer.echo(typer.style("\n".join(lines), dim=True))
        else:
            say(text)

    def write(self, piece: str) -> None:
        """A piece of a reply. Words are shown when they are whole, where they fit into the line."""
        if not self.shows:
            print(piece, end="", flush=True)
            return
        for character in printable(piece.replace("\r\n", "\n").replace("\t", "    ")):
            if character in " \n":
                self._flush_word()
                self._put(character)
            else:
                self._word += character
                if _width(self._word) >= self._columns:
                    self._flush_word()
        sys.stdout.flush()

    def end(self) -> None:
        """The reply is over."""
        if self.shows:
            self._flush_word()
            self._column = 0
        print(flush=True)

    @property
    def _columns(self) -> int:
        return max(8, shutil.get_terminal_size().columns - 1)

    def _flush_word(self) -> None:
        if not self._word:
            return
        width = _width(self._word)
        if self._column and self._column + width > self._columns:
            self._put("\n")
        print(self._word, end="")
        self._column += width
        self._word = ""

    def _put(self, character: str) -> None:
        if character == "\n":
            print()
            self._column = 0
        elif self._column + 1 > self._columns:
            self._put("\n")
        else:
            print(character, end="")
            self._column += 1


def _width(text: str) -> int:
    """Columns of a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
