"""Which files are images: extensions, the formats that the installed Pillow decodes, and names of those that it does not."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


# Pillow's decoders that are used. Others run external programs (EPS: Ghostscript), or have no use in a data set.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF", "DIB", "QOI")
OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # format -> part that Pillow may be built without
EXTENSIONS = {  # in lower case -> the format that its files have
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".dib": "DIB",
    ".mpo": "MPO",
    ".qoi": "QOI",
}
# How files begin whose format has no decoder in Pillow, but a name that a message can say.
SIGNATURES = ((b"%PDF", 0, "PDF"), (b"<svg", 0, "SVG"), (b"<?xml", 0, "SVG or other XML"), (b"ftyphe", 4, "HEIC"))
RECOGNIZED = ("EPS", "PSD", "ICO", "ICNS", "DDS", "SGI", "SUN", "WMF", "FITS", "HDF5")  # by Pillow, but not decoded


def can_decode(extension: str) -> bool:
    """Can files with this extension, such as ".jpg", be decoded by the installed Pillow?"""
    kind = EXTENSIONS.get(extension.lower())
    return kind is not None and (kind not in OPTIONAL or kind in decoded_formats())


@cache
def decoded_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow was built with."""
    from PIL import Image, features

    Image.init()
    known = {**features.modules, **features.codecs}  # an older Pillow does not know AVIF
    missing = {name for name, part in OPTIONAL.items() if part not in known or not features.check(part)}
    return tuple(name for name in FORMATS if name in Image.OPEN and name not in missing)


def why_unidentified(content: io.BytesIO | str | Path, name: str) -> str:
    """Why there is no decoder: another format, which is named if its first bytes say it, or no image at all."""
    from PIL import Image

    try:
        if isinstance(content, io.BytesIO):
            head = content.getvalue()[:32]
        else:
            with Path(content).open("rb") as file:
                head = file.read(32)
    except OSError:
        return f"not an image{name}"
    if not head:
        return f"not an image{name}: the file is empty"
    for start, offset, kind in SIGNATURES:
        if head[offset:].startswith(start):
            return f"image{name} is in the format {kind}, which is not read; convert it to PNG or JPEG"
    for kind in RECOGNIZED:
        accepts = Image.OPEN[kind][1] if kind in Image.OPEN else None
        if accepts is not None and accepts(head[:16]) is True:
            return f"image{name} is in the format {kind}, which is not read; convert it to PNG or JPEG"
    return f"not an image{name}"
