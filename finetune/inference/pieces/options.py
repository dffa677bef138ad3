"""What a user asks for when large images are to be cut into tiles and long texts into blocks. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from finetune.errors import UserError
from finetune.metrics.catalogue import needs_text
from finetune.recipe.card import TaskCard
from finetune.tasks import CARDS

SMALLEST_TILE, SMALLEST_BLOCK = 32, 8  # pixels, tokens
LARGEST_OVERLAP = 0.9  # at 0.9, 100 tiles cover a place
MERGES = ("mean", "max", "head_tail")
IMAGES, TEXTS = ("boxes", "images"), ("texts", "words")  # kinds of pieces, see AnswerSpec.pieces


@dataclass(frozen=True)
class PieceOptions:
    """None: the default, which is resolved here.

    tile: side of the tiles of images in pixels; None: images are not cut. overlap: share of a tile's side that neighbors
    share. whole_image: the whole image is answered as well. max_boxes: most boxes of an image that is cut.
    block: tokens of a block of a text that is longer than the model takes, special tokens included; None: texts are not cut.
    stride: tokens that neighboring blocks share. merge: how scores and numbers of pieces become one, one of MERGES.
    most_pieces: of a row; a row that has more is bad. None: any number.
    """

    tile: int | None = None
    overlap: float | None = None
    whole_image: bool | None = None
    max_boxes: int | None = None
    block: int | None = None
    stride: int | None = None
    merge: str | None = None
    most_pieces: int | None = None

    @property
    def asked(self) -> bool:
        """Whether anything is to be cut."""
        return self.tile is not None or self.block is not None

    def describe(self) -> str:
        """A sentence for people; "" if nothing is cut."""
        if self.tile is not None:
            return f"images larger than {self.tile} pixels are answered in tiles (--tile)"
        return (
            f"texts longer than the model takes are answered in blocks of {self.block} tokens (--block)"
            if self.block
            else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """Those that are set, as JSON values: what answers depend on."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def resolve(self, card: TaskCard) -> PieceOptions:
        """All defaults filled in, for a task. Raises: UserError for a value or combination that makes no sense."""
        self.check_values()
        self._check_task(card)
        merge = self.merge or "mean"
        if self.tile is not None:
            whole = True if self.whole_image is None else self.whole_image
            overlap = 0.2 if self.overlap is None else self.overlap
            return PieceOptions(
                self.tile, overlap, whole, self.max_boxes or 1000, merge=merge, most_pieces=self.most_pieces
            )
        if self.block is not None:
            stride = self.block // 4 if self.stride is None else self.stride
            return PieceOptions(block=self.block, stride=stride, merge=merge, most_pieces=self.most_pieces)
        return PieceOptions()

    def check_values(self) -> None:
        """Raises: UserError for a value or combination that makes no sense for any task."""
        for name, needs in (("overlap", "tile"), ("whole_image", "tile"), ("max_boxes", "tile"), ("stride", "block")):
            if getattr(self, name) is not None and getattr(self, needs) is None:
                raise _mistake(name, f"it says how --{needs} cuts, and --{needs} is not set", f"Set --{needs} as well.")
        if self.merge is not None and not self.asked:
            raise _mistake("merge", "nothing is cut", "Set --tile or --block as well.")
        if self.tile is not None and self.tile < SMALLEST_TILE:
            raise _mistake("tile", f"{self.tile} pixels", f"Tiles have {SMALLEST_TILE} pixels at least, such as 640.")
        if self.overlap is not None and not 0 <= self.overlap <= LARGEST_OVERLAP:
            remedy = f"It is a share of a tile's side between 0 and {LARGEST_OVERLAP}, such as 0.2."
            raise _mistake("overlap", f"{self.overlap:g}", remedy)
        if self.max_boxes is not None and self.max_boxes < 1:
            raise _mistake("max_boxes", str(self.max_boxes), "Set 1 or more.")
        if self.block is not None and self.block < SMALLEST_BLOCK:
            raise _mistake(
                "block", f"{self.block} tokens", f"Blocks have {SMALLEST_BLOCK} tokens at least, such as 256."
            )
        if self.block is not None and self.stride is not None and not 0 <= self.stride < self.block:
            remedy = "It is the number of tokens that neighboring blocks share: less than --block."
            raise _mistake("stride", f"{self.stride} tokens with blocks of {self.block}", remedy)
        if self.merge is not None and self.merge not in MERGES:
            raise _mistake("merge", repr(self.merge), f"It is one of {', '.join(MERGES)}.")

    def _check_task(self, card: TaskCard) -> None:
        for name, kinds, what in (("tile", IMAGES, "images"), ("block", TEXTS, "texts")):
            if getattr(self, name) is None:
                continue
            if card.answers.pieces not in kinds:
                writes = needs_text(card.metrics.available)
                because = "it writes one reply to the whole of a prompt" if writes else f"{what} cannot be cut there"
                tasks = ", ".join(one.name for one in CARDS.values() if one.answers.pieces in kinds)
                raise _mistake(name, f"not for {card.name}: {because}", f"Leave it out; it is for {tasks}.")
            if self.merge is not None and self.merge not in card.answers.merges:
                usable = (
                    f"It is one of {', '.join(card.answers.merges)} there." if card.answers.merges else "Leave it out."
                )
                raise _mistake("merge", f"{self.merge} is not for --{name} with {card.name}", usable)


def _mistake(name: str, what: str, remedy: str) -> UserError:
    flag = f"--{name.replace('_', '-')}"
    return UserError(what, where=flag, remedy=remedy)
