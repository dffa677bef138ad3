"""Proves that images come as paths, bytes, data URIs and base64, that nothing is downloaded and no external program started,
and that messages stay short however long a value is.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.bad_rows import BadRow
from finetune.data.image_formats import can_decode
from finetune.data.image_values import files_state, is_inline, named_file, resolve_image, shorten
from finetune.data.images import decode_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


def saved(form: str, image: Image.Image = NOISE) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


PNG = saved("PNG")
TEXT = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "value",
    [
        f"data:image/png;base64,{TEXT}",
        f"DATA:image/png;charset=utf-8;BASE64,{TEXT}",
        "data:image/png;base64," + TEXT.rstrip("="),
        "data:image/png;base64," + TEXT.replace("+", "-").replace("/", "_"),
        "data:image/png;base64," + TEXT.replace("+", "%2B").replace("=", "%3D"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
        "data:;base64," + TEXT[:76] + "\n" + TEXT[76:],
        TEXT,
        {"bytes": TEXT},
        {"bytes": f"data:image/png;base64,{TEXT}", "path": "a.png"},
        {"bytes": None, "path": f"data:image/png;base64,{TEXT}"},
    ],
    ids=lambda value: repr(value)[:24],
)
def test_an_image_as_text(value: Any) -> None:
    assert np.array_equal(np.asarray(decode_image(value)), np.asarray(NOISE))
    assert resolve_image(value, Path("/folder")) == value and named_file(value) is None


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_bare_base64_of_every_format_is_not_a_path(form: str) -> None:
    text = base64.b64encode(saved(form)).decode()
    assert is_inline(text) and decode_image(text).size == (32, 32)


@pytest.mark.parametrize("value", ["a.png", "iVBORw0KGgo.png", "9j/a.jpg", "a/b c.png", "x" * 200])
def test_paths_are_paths(value: str) -> None:
    assert not is_inline(value)
    assert resolve_image(value, Path("/folder")) == f"/folder/{value}" == named_file(f"/folder/{value}")
    assert resolve_image({"bytes": None, "path": value}, Path("/f")) == {"bytes": None, "path": f"/f/{value}"}


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("https://example.org/a.png", "a URL, https://example.org/a.png; download it"),
        ("s3://bucket/" + "a" * 5000, "a URL, s3://bucket/aaa"),
        ("data:image/png;base64,@@@@" + TEXT, "not valid base64"),
        ("data:image/png;base64," + TEXT[: len(TEXT) // 2], "broken image|cannot be opened"),
        ("data:image/png;base64,", "no image"),
        ("A" * 5000, "not an image"),
        ("b/" * 3000 + "c.png", "cannot be opened"),
        ({"url": "https://example.org/a.png"}, "bytes or path, not url"),
        ({"bytes": b"", "path": "a.png"}, "no image"),
        ({"bytes": 7}, "bytes or a path, not int"),
        ("nul\0byte.png", "cannot be opened|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "in the format EPS, which is not read"),
        (b"%PDF-1.7 ...", "in the format PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "in the format HEIC"),
        (SVG, "in the format SVG"),
        ("data:image/svg+xml;base64," + base64.b64encode(SVG).decode(), "in the format SVG"),
        (saved("ICO"), "in the format ICO"),
        (saved("TGA"), "not an image"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_not_an_image_is_said_in_few_words(value: Any, why: str) -> None:
    with pytest.raises(BadRow, match=why) as told:
        decode_image(value)
    assert len(str(told.value)) < 300 and "AAAA" * 40 not in str(told.value)


def test_no_external_program_draws_an_eps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    started: list[Any] = []
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **options: started.append(args))
    (tmp_path / "a.jpg").write_bytes(saved("EPS"))
    with pytest.raises(BadRow, match=r"a\.jpg is in the format EPS"):
        decode_image(str(tmp_path / "a.jpg"))
    assert not started


def test_empty_files_are_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(BadRow, match=r"a\.jpg: the file is empty"):
        decode_image(str(tmp_path / "a.jpg"))


def test_extensions() -> None:
    for extension in (".jpg", ".JPG", ".jfif", ".png", ".tif", ".webp", ".pfm"):
        assert can_decode(extension)
    for extension in (".heic", ".eps", ".svg", ".txt", "", ".pdf"):
        assert not can_decode(extension)


def test_a_long_value_is_shortened_from_both_ends() -> None:
    assert shorten("a" * 100) == "a" * 100
    assert shorten("a" * 5000 + "z").endswith("aaz") and len(shorten("a" * 5000)) == 100


def test_the_digest_of_files_sees_what_is_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    values = [str(path), {"bytes": PNG, "path": str(path)}, f"data:image/png;base64,{TEXT}", 7, "nul\0"]
    missing = files_state(values)
    path.write_bytes(PNG)
    present = files_state(values)
    assert present != missing and present == files_state(values)
    path.write_bytes(PNG + b"\0")
    assert files_state(values) != present
