"""Words from the workers to the scheduler's half, in memory that both map.

The engine carries a step's plan to all ranks and nothing back. What must come back is little, so each rank has a line
of 64-bit cells that it alone writes, and the scheduler reads them when it wants to know:

``MAPPED``    inode of the staging memory that the rank has mapped: before that it is not claimed that it can load
``COPIED``    serial of the last step whose loads have left the staging memory: its rows are free again
``RELEASED``  blocks of stores that no longer hold a row of the rank's window: the credit for further ones
``VERDICT``   number of the last proof and what came of it
``CUT_OFF``   the last `NOTES` stores whose chain the daemon no longer held from the start, and how much it holds

A rank that cannot open the memory (another host, another container) never writes MAPPED, and the scheduler then never
answers a hit: that is what makes the answer binding on all ranks. Of notes that come faster than the scheduler reads,
the older ones are lost: their blocks are a later miss.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass
from enum import IntEnum

from .metadata import Source

TOKEN_BYTES = 16
LINE_CELLS = 16  # Two cache lines per rank.
#: Cells from CUT_OFF on.
NOTES = 8
#: Bits of a CUT_OFF cell: of the note's own number, by which two equal notes differ, of the chain's, and of the depth.
COUNT_BITS, CHAIN_BITS, DEPTH_BITS = 12, 32, 20


class Cell(IntEnum):
    """A rank's cells."""

    MAPPED = 0
    COPIED = 1
    RELEASED = 2
    VERDICT = 3
    CUT_OFF = 8


class Verdict(IntEnum):
    """What comparing a stored block with the computed one gave. UNKNOWN: it was not compared."""

    UNKNOWN = 0
    SAME = 1
    DIFFERENT = 2


def pack_verdict(number: int, verdict: Verdict) -> int:
    """A VERDICT cell."""
    return number << 2 | verdict


@dataclass(frozen=True)
class CutOff:
    """The daemon holds the first ``resident`` blocks of this chain and not those that a store named as there."""

    chain: int
    resident: int


def chain_number(number: int) -> int:
    """A chain's number as it fits a cell."""
    return number & ((1 << CHAIN_BITS) - 1)


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
        self._seen = [[0] * NOTES for _ in range(ranks)]

    def read(self, cell: Cell) -> list[int]:
        """A cell of all ranks."""
        return [self._cells[LINE_CELLS * (1 + rank) + cell] for rank in range(self._ranks)]

    def cut_off(self) -> list[CutOff]:
        """What has come since it was last asked, of all ranks."""
        notes: list[CutOff] = []
        for rank, seen in enumerate(self._seen):
            start = LINE_CELLS * (1 + rank) + Cell.CUT_OFF
            for at, note in enumerate(self._cells[start : start + NOTES].tolist()):
                if note != seen[at]:
                    seen[at] = note
                    notes.append(CutOff(chain_number(note >> DEPTH_BITS), note & ((1 << DEPTH_BITS) - 1)))
        return notes

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
        self._notes = 0

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

    def note_cut_off(self, note: CutOff) -> None:
        """Tells the scheduler. For one caller at a time."""
        if self._cells is None:
            return
        self._notes += 1
        count = self._notes % (1 << COUNT_BITS)
        depth = min(note.resident, (1 << DEPTH_BITS) - 1)
        cell = LINE_CELLS * (1 + self._rank) + Cell.CUT_OFF + count % NOTES
        self._cells[cell] = (count << CHAIN_BITS | chain_number(note.chain)) << DEPTH_BITS | depth


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
