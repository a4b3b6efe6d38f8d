"""Words from the workers to the scheduler's half, in memory that both map.

The engine carries a step's plan to all ranks and nothing back. What must come back is little and only ever grows, so
each rank has a line of four 64-bit cells that it alone writes, and the scheduler reads them when it wants to know:

``MAPPED``    inode of the staging memory that the rank has mapped: before that it is not claimed that it can load
``COPIED``    serial of the last step whose loads have left the staging memory: its rows are free again
``RELEASED``  blocks of stores that no longer hold a row of the rank's window: the credit for further ones
``VERDICT``   number of the last proof and what came of it

A rank that cannot open the memory (another host, another container) never writes MAPPED, and the scheduler then never
answers a hit: that is what makes the answer binding on all ranks.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from enum import IntEnum

from .metadata import Source

TOKEN_BYTES = 16
LINE_CELLS = 8  # A cache line per rank.


class Cell(IntEnum):
    """A rank's cells."""

    MAPPED = 0
    COPIED = 1
    RELEASED = 2
    VERDICT = 3


class Verdict(IntEnum):
    """What comparing a stored block with the computed one gave. UNKNOWN: it was not compared."""

    UNKNOWN = 0
    SAME = 1
    DIFFERENT = 2


def pack_verdict(number: int, verdict: Verdict) -> int:
    """A VERDICT cell."""
    return number << 2 | verdict


class Mailbox:
    """The scheduler's end."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        size_bytes = 8 * LINE_CELLS * (1 + ranks)
        self.memfd = os.memfd_create("cairn-mailbox", os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, size_bytes)
        self._map = mmap.mmap(self.memfd, size_bytes)
        self.token = os.urandom(TOKEN_BYTES)
        self._map[:TOKEN_BYTES] = self.token
        self._cells = memoryview(self._map).cast("Q")

    def read(self, cell: Cell) -> list[int]:
        """A cell of all ranks."""
        return [self._cells[LINE_CELLS * (1 + rank) + cell] for rank in range(self._ranks)]

    def close(self) -> None:
        """Gives the descriptor back; the mapping goes with the object."""
        os.close(self.memfd)


class Mirror:
    """A rank's end: the mailbox and the staging memory of the scheduler's process."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._token = b""
        self._cells: memoryview | None = None
        self._memories: dict[int, memoryview] = {}

    def follow(self, source: Source | None) -> None:
        """Maps what the step names, and says so. What cannot be opened is tried again with the next step."""
        if source is None or (source.token == self._token and source.memory in self._memories):
            return
        if source.token != self._token:
            mailbox = _map_descriptor(source.pid, source.mailbox, None)
            if mailbox is None or bytes(mailbox[:TOKEN_BYTES]) != source.token:
                return
            self._cells, self._token = mailbox.cast("Q"), source.token
            self._memories.clear()
        memory = _map_descriptor(source.pid, source.staging, source.memory)
        if memory is None or len(memory) < source.size_bytes:
            return
        self._memories = {inode: held for inode, held in self._memories.items() if inode in source.kept}
        self._memories[source.memory] = memory
        self.write(Cell.MAPPED, source.memory)

    def piece(self, memory: int, offset: int, size_bytes: int) -> memoryview:
        """Bytes of a staging memory. The scheduler names only what this rank has said that it mapped."""
        mapped = self._memories.get(memory)
        assert mapped is not None, "a load names staging memory that this rank never mapped"
        piece = mapped[offset : offset + size_bytes]
        assert len(piece) == size_bytes
        return piece

    def write(self, cell: Cell, value: int) -> None:
        """Tells the scheduler; without a mailbox there is nobody who waits for it."""
        if self._cells is not None:
            self._cells[LINE_CELLS * (1 + self._rank) + cell] = value


def _map_descriptor(pid: int, descriptor: int, inode: int | None) -> memoryview | None:
    """Maps a descriptor of a process of this host; None if it is not there, or another file by now."""
    with contextlib.suppress(OSError, ValueError):
        opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            status = os.fstat(opened)
            if inode is None or status.st_ino == inode:
                return memoryview(mmap.mmap(opened, status.st_size))
        finally:
            os.close(opened)
    return None
