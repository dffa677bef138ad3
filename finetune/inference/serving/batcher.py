"""Dynamic batching: the examples of all requests wait together, and one thread answers them in chunks of similar cost.

An example that comes while nothing waits is answered at once. While the model works, what comes in waits, so batches grow
with the load and nothing is ever delayed to fill one.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.inference.answering import Answerer, Chunk, Outcome, RowError

IDLE_SECONDS = 0.5
PADDING = 16  # a chunk's padding is at most this part of the budget: about what one more chunk costs

Done = Callable[[int, Outcome], None]
"""Called on the batcher's thread with the place of an example among those of its request, and its outcome."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """An example of a request. place: among those of the request."""

    example: dict[str, Any]
    cost: int
    order: int
    place: int
    request: Pending

    @property
    def key(self) -> tuple[int, int]:
        return self.cost, self.order


class Pending:
    """A request's examples that wait. cancelled: nobody reads the answers any more."""

    def __init__(self, done: Done) -> None:
        self.done, self.cancelled = done, False
        self.waiting: deque[Waiting] = deque()


class Queue:
    """Examples that wait, by request and by cost. Not thread-safe by itself.

    A chunk begins with an example of the request whose turn it is, so that a request of one row does not wait behind one of
    a thousand. Its neighbors in cost, whoever asked them, fill it up to the budget, as long as they are so near that
    padding costs less than a chunk of its own would.
    """

    def __init__(self, budget: int) -> None:
        self.budget = max(1, budget)
        self._requests: OrderedDict[Pending, None] = OrderedDict()
        self._by_cost: list[Waiting] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._by_cost)

    def add(
        self, request: Pending, examples: Sequence[dict[str, Any]], places: Sequence[int], costs: Sequence[int]
    ) -> None:
        """Examples of a request, which are put behind those that it has."""
        for example, place, cost in zip(examples, places, costs, strict=True):
            self._count += 1
            one = Waiting({**example, "id": self._count}, cost, self._count, place, request)
            request.waiting.append(one)
            bisect.insort(self._by_cost, one, key=lambda waiting: waiting.key)
        if request.waiting:
            self._requests[request] = None

    def drop(self, request: Pending) -> None:
        """Take a request's examples out."""
        self._requests.pop(request, None)
        self._by_cost = [one for one in self._by_cost if one.request is not request]
        request.waiting.clear()

    def take(self) -> list[Waiting]:
        """The examples of the next chunk, by cost; [] if none waits."""
        if not self._requests:
            return []
        first = next(iter(self._requests)).waiting[0]
        low = bisect.bisect_left(self._by_cost, first.key, key=lambda waiting: waiting.key)
        high, total = low + 1, first.cost
        while True:
            below = self._by_cost[low - 1] if low > 0 else None
            above = self._by_cost[high] if high < len(self._by_cost) else None
            if below is not None and (above is None or first.cost - below.cost < above.cost - first.cost):
                one, longest, step = below, self._by_cost[high - 1].cost, (-1, 0)
            elif above is not None:
                one, longest, step = above, above.cost, (0, 1)
            else:
                break
            count = high - low + 1
            if total + one.cost > self.budget or longest * count - total - one.cost > self.budget // PADDING:
                break
            low, high, total = low + step[0], high + step[1], total + one.cost
        taken = self._by_cost[low:high]
        del self._by_cost[low:high]
        self._forget(taken)
        return taken

    def _forget(self, taken: Sequence[Waiting]) -> None:
        orders = {one.order for one in taken}
        for request in {id(one.request): one.request for one in taken}.values():
            request.waiting = deque(one for one in request.waiting if one.order not in orders)
            self._requests.pop(request, None)
            if request.waiting:
                self._requests[request] = None  # behind the others


class Batcher:
    """Answers examples on a thread of its own.

    ran: called with the number of rows and the seconds of each chunk. idle: called once when nothing has come for a moment.
    broken: called with the reason why the answerer cannot go on; after that every example fails. All are called on the
    batcher's thread.
    """

    def __init__(
        self,
        answerer: Answerer,
        *,
        ran: Callable[[int, float], None],
        broken: Callable[[BaseException], None],
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._answerer, self._ran, self._broken, self._idle = answerer, ran, broken, idle
        self._queue = Queue(answerer.budget)
        self._changed = threading.Condition()
        self._closed = False
        self._failure: BaseException | None = None
        self._working: dict[tuple[int, int], list[Waiting]] = {}
        self._chunks = 0
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def put(self, examples: Sequence[dict[str, Any]], places: Sequence[int], done: Done) -> Pending:
        """Queue the examples of a request. places: what `done` is given for each."""
        request = Pending(done)
        costs = [self._answerer.cost(example) for example in examples]
        with self._changed:
            if self._failure is None and not self._closed:
                self._queue.add(request, examples, places, costs)
                self._changed.notify()
                return request
        for place in places:
            done(place, _failed(self._failure))
        return request

    def cancel(self, request: Pending) -> None:
        """Take the request's waiting examples out. Those in a chunk are still computed; their answers are dropped."""
        request.cancelled = True
        with self._changed:
            self._queue.drop(request)

    def waiting(self) -> int:
        """Examples that no chunk has taken."""
        return len(self._queue)

    def close(self) -> None:
        """End the thread after the chunk that it works on."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._wait():
            try:
                self._answer()
            except BaseException as error:  # nobody could tell the requests otherwise
                self._fail(error)
                return

    def _wait(self) -> bool:
        """Until there is something to do; False once closed."""
        seconds: float | None = IDLE_SECONDS
        while True:
            with self._changed:
                if not self._closed and not len(self._queue):
                    self._changed.wait(seconds)
                if self._closed or len(self._queue):
                    return not self._closed
            if seconds is not None:
                self._idle()
                seconds = None

    def _answer(self) -> None:
        """Everything that waits, and what comes in meanwhile, until the queue is empty."""
        started = time.perf_counter()
        for chunk, outcomes in self._answerer.run(self._available()):
            taken = self._working.pop(chunk.name)
            now = time.perf_counter()
            self._ran(len(taken), now - started)
            started = now
            for one, outcome in zip(taken, outcomes, strict=True):
                if not one.request.cancelled:
                    one.request.done(one.place, outcome)

    def _available(self) -> Iterator[Chunk]:
        """Chunks until the queue is empty: an answerer that takes the next chunk before it gives back the last one must
        never wait for it.
        """
        while True:
            with self._changed:
                taken = self._queue.take() if not self._closed else []
            if not taken:
                return
            self._chunks += 1
            chunk = Chunk((0, self._chunks), [one.example for one in taken])
            self._working[chunk.name] = taken
            yield chunk

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = error
            lost = [one for taken in self._working.values() for one in taken]
            while taken := self._queue.take():
                lost += taken
        self._working.clear()
        for one in lost:
            if not one.request.cancelled:
                one.request.done(one.place, _failed(error))
        self._broken(error)


def _failed(error: BaseException | None) -> RowError:
    return RowError("failed", f"the model cannot answer any more: {error}" if error else "the server is ending")
