"""Blocks in the engine's memory before the engine is told of them.

The engine asks once what can be loaded, and what it is told it never computes: there is no way to take an answer back
when a block then fails to arrive. A request whose load is never reported hangs; one reported without its bytes is
wrong output; and a daemon can die between any two calls. So the answer is given only when nothing can fail any more:
within the one question, blocks are read out of the daemon, verified, into memory of this process that all ranks have
mapped, and as many are answered as lie there. What then remains is a copy from memory to memory.

All shards are read here, by the one session of the scheduler's half, under a lease that ends with the question. The
memory is that of the session's window. It is replaced if a connection ends while the daemon may still be writing into
it (cairn_kv.window); so a load names the memory by its inode, and none is claimed before every rank has said in the
mailbox that it has mapped that very one. The old memory stays mapped, and what was verified in it stays as it is: only
rows of jobs under way can still be written to.
"""

from __future__ import annotations

import math
import os
import queue
import time
from dataclasses import dataclass

from cairn_kv import Session, Window
from cairn_kv.adapters.identity import Identity
from cairn_kv.blocking import drop_completion
from cairn_kv.completions import Completion, LoadDone
from cairn_kv.errors import CairnError

from .mailbox import Cell, Mailbox
from .metadata import Source

ROW_ALIGNMENT_BYTES = 64
#: Bytes of one LOAD: small enough that what has arrived by the deadline is most of what could.
PIECE_BYTES = 8 << 20


def row_stride(identity: Identity) -> int:
    """Bytes from row to row of a window."""
    return -(-identity.row_bytes // ROW_ALIGNMENT_BYTES) * ROW_ALIGNMENT_BYTES


@dataclass(eq=False)
class Staged:
    """Verified blocks [first, first + len(rows)) of a chain: ``rows[i][s]`` holds shard s. Rows are owned."""

    memory: int
    first: int
    rows: list[list[int]]

    @property
    def end(self) -> int:
        """Depth of the last block."""
        return self.first + len(self.rows)


@dataclass(eq=False)
class _Piece:
    #: Position of its first block in the question, None once nobody waits for it any more.
    first: int | None
    rows: list[int]


class Staging:
    """The scheduler's staging memory; used by the engine's thread alone."""

    def __init__(self, session: Session, window: Window, identity: Identity) -> None:
        self._session = session
        self._window = window
        self._identity = identity
        self.mailbox = Mailbox(identity.world)
        self._free = list(range(window.blocks))
        self._pieces: dict[int, _Piece] = {}
        self._inbox: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        #: Rows that the workers copy from, and the step whose end they wait for.
        self._leaving: list[tuple[int, list[int]]] = []
        #: Blocks before the first that the daemon could not deliver in the last question; None if it could.
        self.failed_depth: int | None = None
        self._piece_blocks = max(1, PIECE_BYTES // identity.row_bytes)

    def memory(self) -> int:
        """Inode of the staging memory as it is now; 0 while it is being replaced, or if it is gone."""
        try:
            return os.fstat(self._window.descriptor_to_send()).st_ino
        except OSError:
            return 0

    def source(self, kept: tuple[int, ...] = ()) -> Source:
        """What the workers are to map; ``kept``: memories before this one that they still load from."""
        return Source(
            pid=os.getpid(),
            mailbox=self.mailbox.memfd,
            token=self.mailbox.token,
            staging=self._window.descriptor_to_send(),
            memory=self.memory(),
            size_bytes=self._window.size_bytes,
            kept=kept,
        )

    def ready(self) -> int:
        """The memory that all ranks have mapped and that is the present one; 0: none, so nothing can be claimed."""
        memory = self.memory()
        return memory if set(self.mailbox.read(Cell.MAPPED)) == {memory} else 0

    def offset(self, row: int) -> int:
        """Where in the memory a row begins."""
        return self._window.offset_bytes + row * self._window.stride_bytes

    def stage(self, lease: int, first: int, keys: bytes, seconds: float) -> Staged | None:
        """Reads blocks of depth first + 1 on; those from the start that arrived in time, None if none did."""
        self.settle()
        self.failed_depth = None
        memory = self.ready()
        shards, key_bytes = self._identity.shards, self._identity.key_bytes
        count = min(len(keys) // key_bytes, len(self._free) // shards)
        if memory == 0 or count == 0:
            return None
        until = time.monotonic() + seconds
        rows = [[self._free.pop() for _ in range(shards)] for _ in range(count)]
        waiting = self._submit(lease, first, keys, rows, seconds)
        landed, failed = self._collect(waiting, count, until)
        self.failed_depth = None if failed is None else first + failed
        arrived = next((at for at, number in enumerate(landed) if number < shards), count)
        busy = {row for tag in waiting for row in self._pieces[tag].rows}
        self._free += [row for block in rows[arrived:] for row in block if row not in busy]
        for tag in waiting:
            self._pieces[tag].first = None
            self._session.submit_cancel(tag, sink=drop_completion)
        staged = Staged(memory, first, rows[:arrived])
        if arrived == 0 or self.memory() != memory:
            self.release(staged)
            return None
        return staged

    def _submit(self, lease: int, first: int, keys: bytes, rows: list[list[int]], seconds: float) -> set[int]:
        key_bytes, deadline_ms = self._identity.key_bytes, max(1, math.ceil(seconds * 1_000))
        tags: set[int] = set()
        for at in range(0, len(rows), self._piece_blocks):
            piece = rows[at : at + self._piece_blocks]
            for shard in range(self._identity.shards):
                own = [block[shard] for block in piece]
                try:
                    tag = self._session.submit_load(
                        self._window,
                        lease,
                        first + at,
                        keys[at * key_bytes : (at + len(piece)) * key_bytes],
                        own,
                        shard=shard,
                        deadline_ms=deadline_ms,
                        sink=self._inbox.put,
                    )
                except CairnError:
                    return tags  # What was not asked for has not landed.
                self._pieces[tag] = _Piece(at, own)
                tags.add(tag)
        return tags

    def _collect(self, waiting: set[int], count: int, until: float) -> tuple[list[int], int | None]:
        """Shards that landed of each block, and the first block of those known by then to have failed.

        Stops at the deadline, and before what lies behind a block that failed.
        """
        landed, end = [0] * count, count
        while any((self._pieces[tag].first or 0) < end for tag in waiting):
            try:
                done = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            assert isinstance(done, LoadDone)
            piece = self._pieces.pop(done.tag)
            if piece.first is None:
                self._free += piece.rows
                continue
            waiting.discard(done.tag)
            failed = {block.index for block in done.failed}
            for index in range(len(piece.rows)):
                if index not in failed:
                    landed[piece.first + index] += 1
            if failed:
                end = min(end, piece.first + min(failed))
        return landed, end if end < count else None

    def leave(self, staged: Staged, serial: int) -> None:
        """The workers copy the rows in the step of this serial; they are free when all have."""
        self._leaving.append((serial, [row for block in staged.rows for row in block]))

    def release(self, staged: Staged) -> None:
        """Nobody will want the rows."""
        self._free += [row for block in staged.rows for row in block]

    def settle(self) -> None:
        """Takes back rows that are free by now: of loads that came too late, of steps that all ranks are done with."""
        while not self._inbox.empty():
            done = self._inbox.get()
            piece = self._pieces.pop(done.tag)
            assert piece.first is None
            self._free += piece.rows
        copied = min(self.mailbox.read(Cell.COPIED))
        while self._leaving and self._leaving[0][0] <= copied:
            self._free += self._leaving.pop(0)[1]

    @property
    def free_rows(self) -> int:
        """Rows that hold nothing."""
        return len(self._free)
