"""How ranks leave long work in the middle, all of them, when one is asked to stop: an evaluation, generated text included.

Ranks that compute apart (DDP, ZeRO-1 and 2) do not wait for each other here. One that knows of the request leaves its work
and goes to the next meeting at once; the others learn of it from the group's store, or there. Ranks that hold the model
together (ZeRO-3, slices, stages) must leave before the same forward pass: a sum, which is on its way while they compute,
tells them.

    agreement.offer()
    with suppress(Leaving):
        for piece in pieces:             # equally many on all ranks
            agreement.check()
            with agreement.while_generating(): ...
            agreement.offer()
    if agreement.meet(): ...             # all ranks, equally often, also between pieces: the work is abandoned
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune.distributed.engines.engine import Engine
from finetune.distributed.session import PendingSum

LOOK_SECONDS = 0.5  # between two looks at what other ranks have announced
CALLS_EACH = 8  # forward passes from one sum to the next while sharded weights generate: tokens
NAME = "asked to stop"

Asked = Callable[[], bool]


class Leaving(Exception):
    """This rank leaves its work and goes to `meet`; where ranks compute together, every rank raises it at the same place."""


class StopAgreement:
    """All ranks make one for a piece of work, with or without `asked` alike."""

    def __init__(self, engine: Engine, asked: Asked | None) -> None:
        """asked: whether this rank was asked to stop; None: nobody can ask, and nothing is communicated."""
        self._engine, self._session, self._asks = engine, engine.session, asked
        self._together = asked is not None and engine.couples_ranks
        self._asked = False
        self._looked = 0.0
        self._offered: PendingSum | None = None
        self._calls = 0

    def asked(self) -> bool:
        """Whether this rank knows that some rank was asked. Any rank may call it, as often as it likes."""
        if self._asks is None or self._asked:
            return self._asked
        if self._asks():
            self._asked = True
            if self._session.world_size > 1:
                self._session.store.announce(NAME, "")
        elif self._session.world_size > 1 and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            self._asked = self._session.store.announced(NAME) is not None
        return self._asked

    def offer(self) -> None:
        """Before a piece of work: what `check` is to find out while it is under way. All ranks call it equally often."""
        if self._asks is not None and self._together:
            self._offered = self._session.begin_sum(float(self.asked()))

    def check(self) -> None:
        """Within each piece of work, once its forward pass is under way. All ranks call it equally often.

        Raises: Leaving.
        """
        if self._together:
            offered, self._offered = self._offered, None
            if offered is not None and offered.wait()[0] > 0:
                raise Leaving
        elif self.asked():
            raise Leaving

    def meet(self) -> bool:
        """Whether all ranks abandon the work: one of them was asked. All ranks call it equally often, or after Leaving."""
        return self._asks is not None and self._session.any(self.asked())

    @contextmanager
    def while_generating(self) -> Iterator[None]:
        """Inside, the model writes text, token after token; where weights are sharded, with equally many forward passes on
        all ranks. Raises: Leaving, between two tokens. Slices of a model go on to the end of the text.
        """
        if self._asks is None or (self._together and not self._engine.shards_weights):
            yield
            return
        module: Any = self._engine.module
        written = (
            module.get_base_model() if hasattr(module, "get_base_model") else module
        )  # an adapter's base generates
        hook = written.register_forward_pre_hook(self._before_call, prepend=True)
        try:
            yield
        finally:
            hook.remove()

    def _before_call(self, module: Any, arguments: Any) -> None:
        """Raises: Leaving."""
        if not self._together:
            self.check()
            return
        self._calls += 1
        if self._calls % CALLS_EACH == 0:
            self.check()
            self.offer()
