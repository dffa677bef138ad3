"""Single rows of a terminal report: their tokens with what is learned of them, their images and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from finetune.inspection.characters import visible
from finetune.inspection.shown import ShownRow, ShownSequence, Token
from finetune.inspection.terminal_lines import Style, chunks, fit, heading, wrap
from finetune.units import format_number

SHOWN_TOKENS = 400  # of a sequence, where several rows are shown
ROLE_WIDTH = 11


def row_lines(rows: Sequence[ShownRow], style: Style, whole: bool) -> Iterator[str]:
    """The rows of a report, under a heading. whole: with all their tokens."""
    yield from heading("Rows", style)
    if any(row.sequences for row in rows):
        added = f"{style.added[0]}added by the template or tokenizer{style.added[1]}"
        legend = f"{style.begin}learned{style.end}  {added}  tokens are separated by {style.bar}"
        yield from (style.paint(line, "faint") for line in wrap(f"  {legend}", style.width, "  "))
    for row in rows:
        yield ""
        head = f"{row.split} row {row.id} · {visible(row.place)} · {row.why}"
        yield style.paint(fit(f"{style.rule * 2} {head} ", style.width), "title")
        if row.problem:
            yield from wrap(f"  not used: {visible(row.problem)}", style.width, "  ")
        if row.labels and row.picture is None:
            yield from wrap(f"  label  {visible(', '.join(row.labels))}", style.width, "         ")
        for sequence in row.sequences:
            yield from _sequence(sequence, style, len(sequence.tokens) if whole else SHOWN_TOKENS)
        if row.picture is not None:
            yield from _picture(row, style)


def _picture(row: ShownRow, style: Style) -> Iterator[str]:
    picture = row.picture
    assert picture is not None
    yield from wrap(f"  image  {picture.summary}", style.width, "         ")
    if picture.mixed:
        yield f"  mixed  {visible(picture.mixed)}"
    elif picture.labels and not picture.boxes:
        yield from wrap(f"  label  {visible(', '.join(picture.labels))}", style.width, "         ")
    for box in picture.boxes:
        corners = ", ".join(f"{value:.1f}" for value in box.corners)
        yield from wrap(f"  box    {visible(box.label)} [{corners}]", style.width, "         ")


def _sequence(sequence: ShownSequence, style: Style, limit: int) -> Iterator[str]:
    learned = f", {sequence.learned:,} learned" if sequence.learned else ""
    name = f"{visible(sequence.name)}: " if sequence.name else ""
    yield f"  {name}{format_number(sequence.length, 'token')}{learned}"
    left = limit
    for speaker, tokens in sequence.turns:
        yield from _turn(speaker, tokens[:left], style)
        left -= len(tokens[:left])
        if not left:
            break
    hidden = sequence.length - min(limit, len(sequence.tokens))
    if hidden:
        more = "" if sequence.hidden else " (--row shows them)"
        yield from wrap(
            f"  {'':{ROLE_WIDTH}} ... {format_number(hidden, 'more token')}{more}", style.width, " " * (ROLE_WIDTH + 3)
        )
    if sequence.cut_tokens:
        text = visible(sequence.cut_text, line_feed=style.feed, tab=style.tab)
        cut = f"  {'cut':{ROLE_WIDTH}} {format_number(sequence.cut_tokens, 'token')}: {text}"
        yield from (style.paint(line, "faint") for line in wrap(cut, style.width, " " * (ROLE_WIDTH + 3)))


def _turn(speaker: str, tokens: Sequence[Token], style: Style) -> Iterator[str]:
    """The tokens of one turn, wrapped between tokens, in brackets if they are learned, and if a template adds them."""
    indent = " " * (ROLE_WIDTH + 3)
    room = max(16, style.width - len(indent))
    line, used, head = "", 0, f"  {style.paint(f'{visible(speaker):{ROLE_WIDTH}}', speaker)} "
    for token, text in zip(tokens, _marked(tokens, style), strict=True):
        for piece in chunks(text, room):
            if used and used + cell_len(piece) > room:
                yield head + line
                line, used, head = "", 0, indent
            line += style.paint(piece, "learned" if token.learned else token.role)
            used += cell_len(piece)
    yield head + line


def _marked(tokens: Sequence[Token], style: Style) -> Iterator[str]:
    """The text of each token with its brackets and bars: "⟦One", "│ two", "‹<|im_end|>›⟧"."""
    for index, token in enumerate(tokens):
        before = tokens[index - 1] if index else None
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        learns = before is not None and before.learned == token.learned
        stays = after is not None and after.learned == token.learned
        opens = token.added and not (before is not None and before.added and learns)
        closes = token.added and not (after is not None and after.added and stays)
        text = style.begin if token.learned and not learns else ""
        text += (
            style.added[0]
            if opens
            else ""
            if before is None or not learns or before.added != token.added
            else style.bar
        )
        text += visible(token.text, line_feed=style.feed, tab=style.tab) + (
            f"/{visible(token.tag)}" if token.tag else ""
        )
        text += style.added[1] if closes else ""
        yield text + (style.end if token.learned and not stays else "")
