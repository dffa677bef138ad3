"""Opens data files for reading bytes, decompressed by the extension of the name that was given, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from finetune.data.formats.standard_input import STDIN, standard_input
from finetune.errors import UserError

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading a broken or truncated file raises
BUFFER_BYTES = 1 << 17
ZSTD_INPUT_BYTES = 2_048  # decompressed at a time: at most 64 MiB, as 4 bytes expand to 128 KiB at most
ZSTD_MAX_WINDOW = 1 << 31  # of `zstd --long=31`, as large dumps use

# First bytes of files that are not text, and what the user can do about them.
SIGNATURES: Mapping[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("is compressed with gzip, but its name does not end in .gz", "Rename it to end in .gz."),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd, but its name does not end in .zst", "Rename it to end in .zst."),
    b"BZh": ("is compressed with bzip2, but its name does not end in .bz2", "Rename it to end in .bz2."),
    b"\xfd7zXZ\0": ("is compressed with xz, but its name does not end in .xz", "Rename it to end in .xz."),
    b"PK\x03\x04": ("is a zip archive or an Excel workbook", "Unpack it, or rename a workbook to end in .xlsx."),
    b"\xd0\xcf\x11\xe0": ("is a workbook of an old version of Excel", "Save it as .xlsx or .csv."),
    b"PAR1": ("is a Parquet file", "Rename it to end in .parquet, or set `format: parquet`."),
    b"ARROW1": ("is an Arrow file", "Rename it to end in .arrow, or set `format: arrow`."),
    b"version https://git-lfs": ("is a pointer of Git LFS, not the data", "Fetch the data with: git lfs pull"),
}


class _ZstdFile(io.RawIOBase):
    """A .zst file of any number of frames. A file that ends within a frame raises EOFError."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_MAX_WINDOW)
        self._file = path.open("rb")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._output:
            data = self._file.read(ZSTD_INPUT_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends within a compressed frame; it is truncated")
                return 0
            self._output = memoryview(self._decompressed(data))
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _decompressed(self, data: bytes) -> bytes:
        output = b""
        while data:
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                output += self._frame.decompress(data)
            except self._error as error:
                raise OSError(f"not valid zstd: {error}") from error
            data = b""
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
        return output

    def close(self) -> None:
        self._file.close()
        super().close()


DECOMPRESSORS: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _ZstdFile,
}


def without_compression(path: Path) -> Path:
    """The path without .gz, .bz2, .xz or .zst."""
    return path.with_suffix("") if path.suffix.lower() in DECOMPRESSORS else path


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading bytes, decompressed if its name says so. The result has `peek`.

    Raises: UserError if it cannot be opened, or is not a regular file: data is read more than once.
    """
    if path == STDIN:
        return standard_input().open()
    decompress = DECOMPRESSORS.get(path.suffix.lower())
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            raise UserError(
                "is not a regular file but a pipe or a device",
                where=str(path),
                remedy="Data is read more than once: write it to a file.",
            )
        return cast(BinaryIO, io.BufferedReader(decompress(path), BUFFER_BYTES) if decompress else path.open("rb"))
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """The UserError for a file that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    remedy = (
        "Check the path and its permissions."
        if isinstance(error, OSError) and error.errno
        else ("The file is damaged or incomplete: download or copy it again.")
    )
    return UserError(f"cannot be read: {reason}", where=str(path), remedy=remedy)


def check_signature(start: bytes, path: Path) -> None:
    """Raises: UserError if a file that should be text starts like something else."""
    for signature, (what, remedy) in SIGNATURES.items():
        if start.startswith(signature):
            raise UserError(what, where=str(path), remedy=remedy)
