"""Prefixes of blocks between the daemon and whoever holds them, by blocking calls.

What a block is made of does not matter here: a `gather` puts one into a row of the window, a `scatter` takes one out.
Every method is bounded in time and raises nothing because of the daemon: its absence, death or slowness is a miss, and
the first block that does not arrive verified ends the prefix.

The incarnation proof (docs/protocol.md): as long as a namespace holds blocks of others and this process has not
proved that it computes the same, a look-up is answered by the block to compare. `load` then loads nothing, and `prove`
compares that block, once it has been computed, with the stored one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from cairn_kv import limits
from cairn_kv.client import Session
from cairn_kv.completions import LookupDone
from cairn_kv.protocol import StoreStatus
from cairn_kv.window import Window

Gather = Callable[[int, memoryview], None]
"""Puts a block (its index from the root on) into a row of row_bytes."""

Scatter = Callable[[memoryview, int], None]
"""Takes a block out of a row of row_bytes."""

Same = Callable[[bytes, bytes], bool]
"""Whether a stored row and a computed one hold the same keys and values."""


@dataclass
class Counters:
    """What was counted since the start, for the log and for tests."""

    lookups: int = 0
    failed_lookups: int = 0
    """Look-ups without an answer: no daemon, or none in time."""
    hit_blocks: int = 0
    loaded_blocks: int = 0
    failed_load_blocks: int = 0
    """Blocks that were found and not used: one of them, or one before it, did not arrive verified in time."""
    stored_blocks: int = 0
    """Acknowledged by the daemon, those that it already had included."""
    stored_blocks_short: int = 0
    """Offered and not acknowledged."""
    proofs: int = 0
    proofs_failed: int = 0

    def as_dict(self) -> dict[str, int]:
        """Name to number."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Loaded:
    """``blocks`` from the root on arrived verified. ``proof_wanted``: nothing is given before `prove`."""

    blocks: int
    proof_wanted: bool = False


class PrefixTransfer:
    """One process's prefixes in one namespace. Safe to use from several threads; one call runs at a time."""

    def __init__(self, session: Session, window: Window, timeout_seconds: float, lookup_seconds: float) -> None:
        """``timeout_seconds`` bounds each method's jobs, ``lookup_seconds`` each look-up."""
        self.counters = Counters()
        self._session = session
        self._window = window
        self._timeout_seconds = timeout_seconds
        self._lookup_seconds = lookup_seconds
        self._piece_blocks = min(window.blocks, limits.KEYS_PER_FRAME_MAX)
        self._requests = itertools.count(1)
        self._lock = threading.Lock()

    def load(self, keys: Sequence[bytes], begin: Callable[[int], Scatter]) -> Loaded:
        """Load the longest prefix of a chain that the daemon has.

        `begin` is called once, before the first block, with how many there will be at most.
        """
        if not keys:
            return Loaded(0)
        until = time.monotonic() + self._timeout_seconds
        with self._lock:
            request = next(self._requests)
            try:
                found = self._lookup(request, keys)
                if found.proof is not None:
                    return Loaded(0, proof_wanted=True)
                self.counters.hit_blocks += found.hit
                blocks = self._load(found, keys, begin(found.hit), until) if found.hit else 0
                self.counters.loaded_blocks += blocks
                self.counters.failed_load_blocks += found.hit - blocks
                return Loaded(blocks)
            finally:
                self._session.end_request(request)

    def _lookup(self, request: int, keys: Sequence[bytes]) -> LookupDone:
        found = self._session.lookup(request, keys, timeout_seconds=self._lookup_seconds)
        self.counters.lookups += 1
        self.counters.failed_lookups += found.error is not None
        return found

    def _load(self, found: LookupDone, keys: Sequence[bytes], scatter: Scatter, until: float) -> int:
        at = 0
        while at < found.hit:
            deadline_ms = _deadline_ms(until)
            if deadline_ms is None:
                break
            piece = keys[at : min(at + self._piece_blocks, found.hit)]
            done = self._session.load(self._window, found.lease, at, piece, range(len(piece)), deadline_ms=deadline_ms)
            arrived = min((block.index for block in done.failed), default=len(piece))
            for row in range(arrived):
                scatter(self._window.row(row), at + row)
            at += arrived
            if arrived < len(piece):
                break
        return at

    def prove(self, keys: Sequence[bytes], gather: Gather, same: Same) -> bool | None:
        """Compare the block that the daemon wants proved with the computed one; None: nothing could be compared."""
        until = time.monotonic() + self._timeout_seconds
        with self._lock:
            request = next(self._requests)
            try:
                found = self._lookup(request, keys)
                proof = found.proof
                deadline_ms = _deadline_ms(until)
                if proof is None or deadline_ms is None or keys[proof.depth - 1] != proof.key:
                    return None
                done = self._session.load(
                    self._window, found.lease, proof.depth - 1, [proof.key], [0], deadline_ms=deadline_ms
                )
                if done.failed:
                    return None
                stored = bytes(self._window.row(0))
                computed = bytearray(len(stored))
                gather(proof.depth - 1, memoryview(computed))
                verdict = same(stored, bytes(computed))
                self._session.prove(proof.key, ok=verdict)
                self.counters.proofs += verdict
                self.counters.proofs_failed += not verdict
                return verdict
            finally:
                self._session.end_request(request)

    def save(self, keys: Sequence[bytes], known: int, gather: Gather) -> int:
        """Store a chain whose first `known` blocks the daemon acknowledged before.

        Returns:
            Blocks from the root on that the daemon acknowledged.

        """
        until = time.monotonic() + self._timeout_seconds
        at = known
        rewound = False
        with self._lock:
            while at < len(keys):
                deadline_ms = _deadline_ms(until)
                if deadline_ms is None:
                    break
                count = min(self._piece_blocks, len(keys) - at)
                visible, resident = self._store(keys, at, count, gather, deadline_ms)
                if resident is not None and not rewound and resident < at:
                    at, rewound = resident, True  # What was acknowledged has left the daemon since.
                    continue
                at += visible
                if visible < count:
                    break
            self.counters.stored_blocks += max(0, at - known)
            self.counters.stored_blocks_short += len(keys) - at
        return at

    def _store(
        self, keys: Sequence[bytes], at: int, count: int, gather: Gather, deadline_ms: int
    ) -> tuple[int, int | None]:
        """Return how many blocks of a piece are acknowledged, and where to begin again if its parent is absent."""
        result = self._session.store(
            self._window,
            at,
            keys[at - 1] if at > 0 else None,
            keys[at : at + count],
            range(count),
            gather=lambda index, row: gather(at + index, row),
            deadline_ms=deadline_ms,
        )
        offered = result.offered
        if offered is None:
            return 0, None
        if offered.parent_absent:
            return 0, offered.resident_depth
        refused = (StoreStatus.FULL, StoreStatus.PARENT_ABSENT)
        accepted = next((index for index, status in enumerate(offered.statuses) if status in refused), count)
        return min([accepted, *(block.index for block in result.done.failed)]), None


def _deadline_ms(until: float) -> int | None:
    """Milliseconds that are left, None when none is."""
    left = int((until - time.monotonic()) * 1_000)
    return left if left > 0 else None
