"""Pages through a window: look up, load, store, prove.

Every call here waits, on a thread of HiCache's own, and ends in time: a look-up at its time-out, a job at its deadline
and the moments that making its rows safe takes. A daemon that is away is a miss at once; one that hangs is given up by
its silence, and is away from then on.

The window's rows are divided between reading and writing, because the engine does both at the same time from two
threads. A run of pages that does not fit travels in pieces, each looked up and leased by itself: pages are unchained,
and a lease on a few pages pins nothing that waits.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cairn_kv import Session, Window, limits
from cairn_kv.blocking import drop_completion
from cairn_kv.completions import Completion, LoadDone, LookupDone
from cairn_kv.errors import CairnError, ErrorCode
from cairn_kv.protocol import StoreStatus

from .counters import Counters
from .pages import Place, gather, scatter
from .proof import same_page

#: Fewer rows than these cannot be shared out between writes and two pieces of a read.
ROWS_MIN: Final = 4
#: Request ids are unique in an instance, which several processes may share: a process's number stands in front.
_REQUEST_BITS: Final = 31
_PROCESS_MASK: Final = (1 << 22) - 1


@dataclass(frozen=True)
class _Reading:
    """A piece of a read under way: `count` pages from `first` on, into `rows`."""

    first: int
    count: int
    request: int
    tag: int
    inbox: queue.SimpleQueue[Completion]
    rows: Sequence[int]


class Transfers:
    """One rank's traffic with the daemon."""

    def __init__(self, session: Session, window: Window, dtype: str, counters: Counters) -> None:
        assert window.blocks >= ROWS_MIN
        half = window.blocks // 2
        self._session = session
        self._window = window
        self._dtype = dtype
        self._counters = counters
        self._load_rows = range(half)
        self._store_rows = range(half, 2 * half)
        self._load_lock = threading.Lock()
        self._store_lock = threading.Lock()
        self._requests = itertools.count(1)
        #: The life in which pages that were there before need no proof (any more); None: it is not known.
        self._settled: tuple[str | None, int | None] | None = None

    def find(self, keys: Sequence[bytes], seconds: float) -> int:
        """How many of the keys, from the first on, can be read now."""
        return self._lookup(self._request(), keys, time.monotonic() + seconds, lease=False).hit

    def touch(self, keys: Sequence[bytes]) -> None:
        """Says that pages are in use that the engine has itself: else they would leave before those behind them."""
        if keys:
            self._session.touch(list(keys[-limits.KEYS_PER_FRAME_MAX :]))

    def load(self, keys: Sequence[bytes], places: Sequence[Place], seconds: float) -> int:
        """Reads pages into their places; how many arrived verified, from the first on. Others are not touched."""
        until = time.monotonic() + seconds
        if not self._load_lock.acquire(timeout=seconds):
            return 0
        try:
            return self._load_pieces(keys, places, until)
        finally:
            self._load_lock.release()

    def _load_pieces(self, keys: Sequence[bytes], places: Sequence[Place], until: float) -> int:
        """Two pieces are under way: while one is copied to its places, the daemon fills the rows of the next."""
        step = len(self._load_rows) // 2
        halves = itertools.cycle((self._load_rows[:step], self._load_rows[step:]))
        under_way: deque[_Reading] = deque()
        landed = 0
        try:
            for first in range(0, len(keys), step):
                asked = keys[first : first + step]
                piece = self._begin_load(asked, first, next(halves), until)
                if piece is not None:
                    under_way.append(piece)
                if len(under_way) == 2:
                    landed += self._end_load(under_way.popleft(), places, until)
                if piece is None or piece.count < len(asked) or landed < first:
                    break
            while under_way and landed == under_way[0].first:
                landed += self._end_load(under_way.popleft(), places, until)
        finally:
            for piece in under_way:
                self._session.submit_cancel(piece.tag, sink=drop_completion)
                self._end_load(piece, (), until)
        return landed

    def _begin_load(self, keys: Sequence[bytes], first: int, rows: Sequence[int], until: float) -> _Reading | None:
        """Leases and asks for pages; None if the first of them is not there."""
        request = self._request()
        found = self._lookup(request, keys, until, lease=True)
        if found.hit == 0:
            self._end(request, found)
            return None
        inbox: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        try:
            tag = self._session.submit_load(
                self._window,
                found.lease,
                0,
                list(keys[: found.hit]),
                rows[: found.hit],
                deadline_ms=_milliseconds(until),
                sink=inbox.put,
            )
        except CairnError:
            self._end(request, found)
            raise
        return _Reading(first, found.hit, request, tag, inbox, rows)

    def _end_load(self, piece: _Reading, places: Sequence[Place], until: float) -> int:
        """Waits for a piece and copies what arrived verified, from its first page on; how much."""
        done = self._session.take(piece.inbox, piece.tag, max(0.0, until - time.monotonic()))
        self._session.end_request(piece.request)
        assert isinstance(done, LoadDone)
        verified = 0 if done.error else min((block.index for block in done.failed), default=piece.count)
        mine = places[piece.first : piece.first + verified]
        for row, place in zip(piece.rows, mine, strict=False):
            scatter(self._window.row(row), place)
        self._counters.add("loaded_pages", len(mine))
        self._counters.add("loaded_bytes", len(mine) * self._window.row_bytes)
        return len(mine)

    def store(self, keys: Sequence[bytes], places: Sequence[Place], seconds: float) -> list[bool]:
        """Offers pages and waits until those that the daemon took are visible; which of them are."""
        until = time.monotonic() + seconds
        if not self._store_lock.acquire(timeout=seconds):
            return [False] * len(keys)
        try:
            stored, present = self._store_pieces(keys, places, until)
            if present and self._settled != self._life() and not self._prove(keys, places, until):
                # What was there is hidden from this engine now: its own pages are wanted after all.
                stored, present = self._store_pieces(keys, places, until)
            self._counters.add("present_pages", present)
            return stored
        finally:
            self._store_lock.release()

    def _store_pieces(self, keys: Sequence[bytes], places: Sequence[Place], until: float) -> tuple[list[bool], int]:
        """(which pages are visible, how many of them the daemon had already)."""
        stored = [False] * len(keys)
        present = 0
        for first in range(0, len(keys), len(self._store_rows)):
            piece = keys[first : first + len(self._store_rows)]
            acknowledged, had = self._store_piece(piece, places[first : first + len(piece)], until)
            stored[first : first + len(piece)] = acknowledged
            present += had
            if not all(acknowledged):
                break
        return stored, present

    def _store_piece(self, keys: Sequence[bytes], places: Sequence[Place], until: float) -> tuple[list[bool], int]:
        copied = 0

        def copy(index: int, row: memoryview) -> None:
            nonlocal copied
            gather(places[index], row)
            copied += 1

        result = self._session.store(
            self._window, 0, None, list(keys), self._store_rows, gather=copy, deadline_ms=_milliseconds(until)
        )
        offered, done = result.offered, result.done
        if offered is None or done.error is not None:
            return [False] * len(keys), 0
        failed = {block.index for block in done.failed}
        taken = (StoreStatus.PRESENT, StoreStatus.PENDING, StoreStatus.WANTED)
        self._counters.add("stored_bytes", copied * self._window.row_bytes)
        visible = [status in taken and at not in failed for at, status in enumerate(offered.statuses)]
        return visible, sum(status == StoreStatus.PRESENT for status in offered.statuses)

    def _prove(self, keys: Sequence[bytes], places: Sequence[Place], until: float) -> bool:
        """Compares a stored page of an earlier life with the same page as the engine has just computed it.

        A namespace with such pages answers no hits until one of them is proven, so the engine computes them again and
        writes them: that is the moment at which both versions are here. A verdict holds for the whole instance.

        Returns:
            False if they differ; True also where there was nothing to prove, or no verdict could be reached.

        """
        life, request = self._life(), self._request()
        found = self._lookup(request, keys, until, lease=True)
        try:
            if found.proof is None or not 0 < found.proof.depth <= len(keys):
                if found.hit > 0:
                    self._settled = life
                return True
            at = found.proof.depth - 1
            if found.proof.key != keys[at]:
                return True
            computed = bytearray(self._window.row_bytes)
            gather(places[at], memoryview(computed))
            row = self._store_rows[0]
            done = self._session.load(self._window, found.lease, 0, [keys[at]], [row], deadline_ms=_milliseconds(until))
            if done.error is not None or done.failed:
                return True
            same = same_page(self._window.row(row), computed, self._dtype)
        finally:
            self._end(request, found)
        if not self._session.prove(keys[at], ok=same).ok:
            return True
        self._settled = life
        self._counters.add("proofs" if same else "proofs_failed")
        return same

    def _life(self) -> tuple[str | None, int | None]:
        """The daemon's life, and this engine's at it: with either, what was proven is gone."""
        return self._session.epoch, self._session.instance

    def _lookup(self, request: int, keys: Sequence[bytes], until: float, *, lease: bool) -> LookupDone:
        seconds = max(0.0, until - time.monotonic())
        found = self._session.lookup(request, list(keys), timeout_seconds=seconds, lease=lease)
        if found.proof is not None:
            self._settled = None
        if found.error is not None and found.error.code == ErrorCode.DEADLINE_EXCEEDED:
            self._counters.add("lookup_timeouts")
        return found

    def _end(self, request: int, found: LookupDone) -> None:
        if found.lease:
            self._session.end_request(request)

    def _request(self) -> int:
        number = next(self._requests) % (1 << _REQUEST_BITS)
        return (os.getpid() & _PROCESS_MASK) << _REQUEST_BITS | number


def _milliseconds(until: float) -> int:
    return max(1, int(1_000 * (until - time.monotonic())))
