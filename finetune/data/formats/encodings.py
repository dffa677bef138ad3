"""Text in any encoding as a stream of UTF-8 bytes, and the decoding of its lines."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import BinaryIO, cast

from finetune.data.bad_rows import BadRow
from finetune.data.formats.compression import BUFFER_BYTES, READ_ERRORS, check_signature, open_binary, unreadable
from finetune.errors import UserError

UTF8 = "utf-8"
UTF8_MARK = b"\xef\xbb\xbf"
NUL = "contains a NUL byte: the file is damaged, or UTF-16 without a mark (set `encoding: utf-16-le`)"
CHUNK_BYTES = 1 << 16  # transcoded at a time
# Longer marks first: that of UTF-32 starts with that of UTF-16.
MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (UTF8_MARK, UTF8),
)


class _Transcoder(io.RawIOBase):
    """The bytes of a file as UTF-8. What cannot be decoded stays as it is, so that the line is found not to be UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        self._output, self._done = memoryview(b""), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._output and not self._done:
            data = self._file.read(CHUNK_BYTES)
            self._done = not data
            text = self._decoder.decode(data, final=self._done)
            self._output = memoryview(text.encode(UTF8, "surrogateescape"))
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def open_utf8(path: Path, encoding: str = UTF8) -> BinaryIO:
    """Open a text file as a stream of UTF-8 bytes, decompressed. A byte order mark of UTF-16 or UTF-32 is followed.

    Raises: UserError if the file cannot be opened, is not text, or starts with the mark of another encoding.
    """
    file = open_binary(path)
    start = _start(file, path)
    check_signature(start, path)
    marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
    if marked is not None and not is_utf8(encoding) and not _same_family(encoding, marked):
        raise UserError(
            f"starts with the byte order mark of {marked.upper()}, but `encoding:` is {encoding}",
            where=str(path),
            remedy="Remove `encoding:`; a byte order mark is recognized.",
        )
    encoding = marked or encoding
    return file if is_utf8(encoding) else cast(BinaryIO, io.BufferedReader(_Transcoder(file, encoding), BUFFER_BYTES))


def encoding_mark(path: Path) -> str:
    """The encoding, utf-16 or utf-32, whose mark the file starts with, else ""."""
    with open_binary(path) as file:
        start = _start(file, path)
    marked = next((name for mark, name in MARKS if start.startswith(mark)), "")
    return "" if marked == UTF8 else marked


def _start(file: BinaryIO, path: Path) -> bytes:
    try:
        return cast(io.BufferedReader, file).peek(32)[:32]
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def is_utf8(encoding: str) -> bool:
    """Whether this is a name of UTF-8."""
    return codecs.lookup(encoding).name in (UTF8, "utf-8-sig", "ascii")


def _same_family(encoding: str, marked: str) -> bool:
    return codecs.lookup(encoding).name.startswith(codecs.lookup(marked).name)


def decode(line: bytes, encoding: str = UTF8) -> str:
    """Decode a line of `open_utf8`. encoding: of the file, for the message.

    Raises: BadRow with the first invalid byte, and for NUL bytes, which no text has.
    """
    try:
        text = line.decode(UTF8)
        if b"\0" in line:
            raise BadRow(NUL)
        return text
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise BadRow(f"not {encoding.upper()} ({byte}); {encoding_hint(line, encoding)}") from error


def encoding_hint(data: bytes, encoding: str = UTF8) -> str:
    """What to do about bytes that are not in the encoding of the source, as the end of a sentence."""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return "set `encoding:` of the source to the encoding of the file"
    if not is_utf8(encoding):
        return "set `encoding:` of the source to the encoding of the file"
    return "set the encoding of the source, such as `encoding: cp1252` if Excel on Windows wrote the file"
