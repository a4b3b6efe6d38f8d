"""The tier's way to the daemon: keys of chunks, rows of the engine's CPU tier, and a session that leases by itself.

Look-ups of a tier come per chunk, long before and quite apart from the load that may follow, and say nothing about
what comes before the chunk. So nothing is leased when the engine asks: each piece of a load takes a lease of its own
right before it loads, in the reader thread, and gives it back with the piece. What was evicted in between fails, which
the engine takes for a miss.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING

from cairn_kv.completions import Completion, LookupDone
from cairn_kv.completions import LoadDone as SessionLoadDone
from cairn_kv.errors import CairnError

from .links import WorkerSession
from .worker import LoadDone

if TYPE_CHECKING:
    from cairn_kv import Session, Window
    from cairn_kv.adapters.identity import Identity

#: A key at the daemon. Shorter hashes are filled up in front: the daemon finds blocks by the last bytes of a key.
KEY_BYTES = 32
#: The engine puts the number of a chunk's group behind its hash.
GROUP_BYTES = 4
#: What a load names in place of a lease: blocks that are found, or one that the instance has yet to prove.
FOR_LOAD = 0
FOR_PROOF = 1


def fold_key(key: bytes) -> bytes | None:
    """The daemon's key of a chunk, None for a hash that is too long.

    The group's number is folded into the end of the hash: groups of one hash differ, and those of group 0, the only one
    of most models, keep the engine's own hash, by which routers ask.
    """
    length = len(key) - GROUP_BYTES
    if not GROUP_BYTES <= length <= KEY_BYTES:
        return None
    group = int.from_bytes(key[length:], "big")
    padded = key[:length].rjust(KEY_BYTES, b"\0")
    if group == 0:
        return padded
    end = int.from_bytes(padded[-GROUP_BYTES:], "big") ^ group
    return padded[:-GROUP_BYTES] + end.to_bytes(GROUP_BYTES, "big")


class ChunkRows:
    """Copies between chunks of the engine's CPU tier and rows of a window.

    ``chunks`` is the engine's view: two dimensions of bytes, a chunk per row. Once close() has returned nothing is
    copied any more, whoever asks: the engine unmaps the memory then.
    """

    def __init__(self, chunks: memoryview, rows_address: int, stride_bytes: int) -> None:
        assert chunks.itemsize == 1
        assert chunks.contiguous
        assert chunks.shape is not None
        self.chunks, self.row_bytes = chunks.shape
        assert stride_bytes >= self.row_bytes
        # The address alone is kept: a view that somebody holds on to cannot be released by the engine.
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(chunks))
        self._rows_address = rows_address
        self._stride_bytes = stride_bytes
        self._lock = threading.Lock()
        self._closed = False

    def gather(self, chunk: int, row: int) -> None:
        """Chunk to row."""
        self._copy(self._row(row), self._chunk(chunk))

    def scatter(self, row: int, chunk: int) -> None:
        """Row to chunk."""
        self._copy(self._chunk(chunk), self._row(row))

    def close(self) -> None:
        """Waits for a copy that is running, and lets no other begin."""
        with self._lock:
            self._closed = True

    def _copy(self, to: int, source: int) -> None:
        with self._lock:
            if not self._closed:
                ctypes.memmove(to, source, self.row_bytes)

    def _chunk(self, chunk: int) -> int:
        if not 0 <= chunk < self.chunks:
            raise IndexError(f"chunk {chunk} of {self.chunks}")
        return self._address + chunk * self.row_bytes

    def _row(self, row: int) -> int:
        if row < 0:
            raise IndexError(f"row {row}")
        return self._rows_address + row * self._stride_bytes


class TierSession(WorkerSession):
    """A session that looks up, too (`tiering.TierLink`); `worker.WorkerLink` is the rest."""

    def __init__(self, session: Session, window: Window, identity: Identity, timeout_seconds: float) -> None:
        super().__init__(session, window, identity, 0)
        self._timeout_seconds = timeout_seconds
        self._answers: deque[LookupDone] = deque()
        self._requests = itertools.count(1)

    def lookup(self, keys: bytes) -> int | None:
        """Asks how many of the keys are there, from the first on, and leases nothing; its tag."""
        return self._submit(
            lambda: self._session.submit_lookup(
                next(self._requests), keys, lease=False, timeout_seconds=self._timeout_seconds, sink=self._answered
            )
        )

    def answers(self) -> list[LookupDone]:
        """Answered look-ups; an error is a miss."""
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def touch(self, keys: bytes) -> None:
        """Says that blocks were used."""
        self._session.touch(keys)

    def load(self, lease: int, start_depth: int, keys: bytes, rows: list[int]) -> int | None:
        """Leases the keys and loads what is there into rows; ``lease`` is FOR_LOAD or FOR_PROOF."""
        assert lease == FOR_LOAD or (lease, len(rows)) == (FOR_PROOF, 1)
        request = next(self._requests)

        def found(done: Completion) -> None:
            assert isinstance(done, LookupDone)
            unproven = 1 if lease == FOR_PROOF and done.proof is not None else 0
            self._load_found(done, request, keys, rows, done.hit or unproven)

        # Not bounded as tightly as the engine's look-ups: nobody's answer waits for this one.
        return self._submit(lambda: self._session.submit_lookup(request, keys, sink=found))

    def _load_found(self, done: LookupDone, request: int, keys: bytes, rows: list[int], found: int) -> None:
        """In the reader thread: loads the first ``found`` blocks under the lease of this look-up."""
        missing = set(range(found, len(rows)))

        def loaded(ended: Completion) -> None:
            assert isinstance(ended, SessionLoadDone)
            self._load_ended(done.tag, request, missing | {block.index for block in ended.failed})

        if not done.ok or found == 0:
            self._load_ended(done.tag, request, set(range(len(rows))))
            return
        try:
            self._session.submit_load(self._window, done.lease, 0, keys[: found * KEY_BYTES], rows[:found], sink=loaded)
        except CairnError:  # Too many calls wait: a sink does not raise.
            self._load_ended(done.tag, request, set(range(len(rows))))

    def _load_ended(self, tag: int, request: int, failed: set[int]) -> None:
        self._session.end_request(request)
        self._ended.append(LoadDone(tag, failed))
        self._bell.set()

    def _answered(self, done: Completion) -> None:
        assert isinstance(done, LookupDone)
        self._answers.append(done)
