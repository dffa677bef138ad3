"""What rows of annotated images have in common, whatever format they are read from."""

from __future__ import annotations

COLUMNS = ("image", "objects")
NOTICES = "annotation_notices"  # key of a row: sentences on its annotations for the report
BOX_FORMAT = "box_format"  # key of a row's objects: what its boxes are, where the format of the file defines it
