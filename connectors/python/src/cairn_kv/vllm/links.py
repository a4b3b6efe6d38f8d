"""The two halves' sessions with the daemon: `cairn_kv.Session`, seen as each half needs it.

Completions are put into queues by the session's reader thread, so that a half takes them without a lock held for long.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING

from cairn_kv.completions import Completion, FillRefused, LookupDone, PrefetchDone, PrefetchOffered, StoreOffered
from cairn_kv.completions import LoadDone as SessionLoadDone
from cairn_kv.completions import StoreDone as SessionStoreDone
from cairn_kv.errors import CairnError, ErrorCode
from cairn_kv.protocol import StoreStatus

from .answers import Answer, Fetched
from .worker import Event, LoadDone, StoreDone, StoreReply

if TYPE_CHECKING:
    from cairn_kv import Session, Window
    from cairn_kv.adapters.identity import Identity


class SchedulerSession:
    """A session of the scheduler's half (`scheduler.SchedulerLink`)."""

    def __init__(self, session: Session, timeout_seconds: float) -> None:
        self._session = session
        self._timeout_seconds = timeout_seconds

    @property
    def epoch(self) -> str | None:
        """The daemon's life, None while there is none."""
        return self._session.epoch if self._session.connected else None

    def lookup(self, request: int, keys: bytes, *, keep_chain: bool = False) -> int | None:
        """Sends a look-up; None without a daemon, or with too many calls under way."""
        if not self._session.connected:
            return None
        try:
            return self._session.submit_lookup(
                request, keys, keep_chain=keep_chain, timeout_seconds=self._timeout_seconds
            )
        except CairnError:
            return None

    def fetch(self, request: int, seconds: float) -> int | None:
        """Asks for the request's chain, from other nodes' store too; None without a daemon."""
        if not self._session.connected:
            return None
        try:
            return self._session.submit_prefetch(request_id=request, deadline_ms=max(1, int(seconds * 1_000)))
        except CairnError:
            return None

    def answers(self) -> list[Answer | Fetched]:
        """Answered look-ups, an error is a miss; and ended fetches."""
        epoch = self.epoch or ""
        told = (_told(done, epoch) for done in self._session.poll())
        return [one for one in told if one is not None]

    def end(self, request: int) -> None:
        """Gives back what the request leased."""
        self._session.end_request(request)

    def prove(self, key: bytes, same: bool) -> None:
        """The verdict on a stored block. One that cannot be sent is asked for again."""
        with contextlib.suppress(CairnError):
            self._session.submit_prove(key, ok=same)


def _told(done: Completion, epoch: str) -> Answer | Fetched | None:
    if isinstance(done, LookupDone):
        return _answer(done, epoch)
    if isinstance(done, PrefetchDone):
        return Fetched(done.tag, done.resident_blocks)
    if isinstance(done, PrefetchOffered) and done.final:
        return Fetched(done.tag, 0)
    return None


def _answer(done: LookupDone, epoch: str) -> Answer:
    if done.error is not None:
        return Answer(done.tag, 0, 0, epoch)
    proof = done.proof
    if proof is not None:
        return Answer(done.tag, 0, done.lease, epoch, proof.depth, proof.key)
    return Answer(
        done.tag, done.hit, done.lease, epoch, remote=done.remote_prefix_blocks, remote_asking=done.remote_asking
    )


class WorkerSession:
    """A session of a worker's half and its window (`worker.WorkerLink`)."""

    def __init__(self, session: Session, window: Window, identity: Identity, rank: int) -> None:
        self._session = session
        self._window = window
        self._shard = identity.shard_of(rank)
        self._key_bytes = identity.key_bytes
        self._ended: deque[Event] = deque()
        self._bell = threading.Event()
        self._closed = False

    @property
    def epoch(self) -> str | None:
        """The daemon's life that the window is registered with, None while it is not."""
        return self._session.epoch if self._session.registered(self._window) else None

    @property
    def served(self) -> bool | None:
        """Whether the daemon has the window; None while there is no daemon."""
        if self._session.connected:
            return self._session.registered(self._window)
        # Memory that the daemon cannot map is tried again over new connections: the last one's end says why.
        error = self._session.last_error
        return False if error is not None and error.code == ErrorCode.WINDOW_MAP else None

    def load(self, lease: int, start_depth: int, keys: bytes, rows: list[int]) -> int | None:
        """Loads blocks into rows."""
        return self._submit(
            lambda: self._session.submit_load(
                self._window, lease, start_depth, keys, rows, shard=self._shard, sink=self._took
            )
        )

    def store(self, lease: int, start_depth: int, parent_key: bytes, keys: bytes, count: int) -> int | None:
        """Offers blocks; their bytes follow by fill()."""
        assert len(keys) == count * self._key_bytes
        parent = parent_key if start_depth > 0 else None
        return self._submit(
            lambda: self._session.submit_store(
                self._window, start_depth, parent, keys, lease=lease, shard=self._shard, sink=self._took
            )
        )

    def fill(self, job: int, places: list[tuple[int, int]]) -> None:
        """Says that wanted blocks lie in rows. ``job`` is the STORE's tag."""
        indices = [position for position, _ in places]
        rows = [row for _, row in places]
        self._session.submit_fill(job, indices, rows, sink=self._took)

    def cancel(self, job: int) -> None:
        """Gives up a STORE; its end is told by its own event."""
        self._session.submit_cancel(job, sink=lambda _done: None)

    def prove(self, key: bytes, same: bool) -> None:
        """The verdict on a stored block."""
        self._session.submit_prove(key, ok=same, sink=lambda _done: None)

    def row(self, row: int) -> memoryview:
        """A row's bytes."""
        return self._window.row(row)

    def wait(self, seconds: float) -> list[Event]:
        """What ended since the last call."""
        if not self._ended:
            self._bell.wait(seconds)
        self._bell.clear()
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def wake(self) -> None:
        """Ends a wait()."""
        self._bell.set()

    def close(self) -> None:
        """Ends the session, once."""
        if not self._closed:
            self._closed = True
            self._session.close()

    def _submit(self, call: object) -> int | None:
        assert callable(call)
        if not self._session.connected:
            return None
        try:
            tag = call()
        except CairnError:
            return None
        assert isinstance(tag, int)
        return tag

    def _took(self, done: Completion) -> None:
        """In the reader thread, or in ours when a call fails at once."""
        event = _event(done)
        if event is not None:
            self._ended.append(event)
            self._bell.set()
        elif isinstance(done, FillRefused):
            # The daemon's copy queue is full: a store that is given up is a later miss.
            self._session.submit_cancel(done.store_tag, sink=lambda _done: None)


def _event(done: Completion) -> Event | None:
    if isinstance(done, SessionLoadDone):
        return LoadDone(done.tag, {block.index for block in done.failed})
    if isinstance(done, StoreOffered):
        return _store_reply(done)
    if isinstance(done, SessionStoreDone):
        return StoreDone(done.tag, {block.index for block in done.failed})
    return None


def _store_reply(done: StoreOffered) -> StoreReply:
    """``accepted``: positions before the first that the daemon has no room for."""
    statuses = done.statuses
    refused = (StoreStatus.FULL, StoreStatus.PARENT_ABSENT)
    accepted = next((at for at, status in enumerate(statuses) if status in refused), len(statuses))
    return StoreReply(
        tag=done.tag,
        job=done.tag,
        wanted=done.wanted_indices(),
        pending=done.pending,
        accepted=0 if done.parent_absent else accepted,
        parent_absent=done.parent_absent,
        resident=done.resident_depth,
    )
