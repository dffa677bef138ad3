"""How many pieces of large images and long texts a replica holds at once: --max-waiting counts rows, whatever they become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MOST_PIECES = 16_384
ROWS_AT_ONCE = 4  # that are split before their pieces are counted: those of one row are bounded by its own limits


class PieceRoom:
    """Made on the event loop. count: pieces that are held now."""

    def __init__(self, most: int = MOST_PIECES) -> None:
        self.most, self.count = most, 0
        self._first = asyncio.Lock()  # whoever has it is next: in the order in which they came
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, amount: int) -> AsyncIterator[None]:
        """Wait until there is room for `amount` pieces, and take it until the context ends. More than all the room there
        is come in when it is empty.
        """
        async with self._first:
            while self.count and self.count + amount > self.most:
                self._freed.clear()
                await self._freed.wait()
            self.count += amount
        try:
            yield
        finally:
            self.count -= amount
            self._freed.set()
