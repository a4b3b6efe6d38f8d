"""Windows: rows of memory shared with the daemon, as a sealed memfd.

A window outlives daemon lives: after a reconnect the session registers the same memory again. There is one exception.
When a connection ends while a job owns rows, the daemon may merely be frozen in the middle of a copy, and write on when
it wakes up. Then the window gets another memfd with the same contents, mapped over the same addresses (MAP_FIXED), so
that every `memoryview`, tensor or pointer made of the window before stays valid while nothing that the old daemon still
writes can be seen. What an engine gathers into rows while that happens may be lost in between: hence `generation`,
which grows whenever a connection ends. A STORE of rows that were gathered names the generation read before gathering,
and is refused when it has grown since. Memory pinned for a GPU must be pinned again when it has grown.

The layout proof (docs/protocol.md) runs a pattern through the adapter's own gather and scatter once in the window's
life. Registrations after a reconnect vouch for it: the same process still runs the same code over the same geometry.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
from array import array
from sys import byteorder
from typing import Final, Protocol

from cairn_kv import limits
from cairn_kv.protocol import NamespaceDescriptor

PAGE_BYTES: Final = mmap.PAGESIZE
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_MAP_FIXED: Final = 0x10
_COPY_BYTES: Final = 16 * limits.MIB
_MASK: Final = 2**64 - 1
_CHUNK_WORDS: Final = 32_768

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]


class LayoutAdapter(Protocol):
    """An engine's own way of moving one of its blocks, so that the proof runs the code that will run later."""

    def gather(self, pattern: memoryview, row: memoryview) -> None:
        """Put `pattern` (row_bytes) into a free engine block, then gather that block into `row`."""

    def scatter(self, row: memoryview) -> bytes | bytearray | memoryview:
        """Scatter `row` into a free engine block; return the block's canonical bytes (row_bytes)."""


def layout_pattern(seed: int, size_bytes: int) -> bytes:
    """Return the pattern of `seed`: 64-bit word i is splitmix64(seed · 2^32 + i), the last one cut.

    Words are computed in lanes of 128 bits of one large integer, in which a product of 64-bit numbers has room; so the
    work per word is done by C.
    """
    words = -(-size_bytes // 8)
    parts = [
        _pattern_words((seed << 32) + first, min(_CHUNK_WORDS, words - first))
        for first in range(0, words, _CHUNK_WORDS)
    ]
    return b"".join(parts)[:size_bytes]


def _pattern_words(first: int, count: int) -> bytes:
    lanes = array("Q", bytes(16 * count))
    lanes[::2] = array("Q", [(first + index) & _MASK for index in range(count)])
    if byteorder == "big":
        lanes.byteswap()
    ones = array("Q", bytes(16 * count))
    ones[::2] = array("Q", [1]) * count
    if byteorder == "big":
        ones.byteswap()
    one = int.from_bytes(ones.tobytes(), "little")
    mask = one * _MASK
    z = (int.from_bytes(lanes.tobytes(), "little") + one * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ ((z >> 30) & mask & (one * (_MASK >> 30)))) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ ((z >> 27) & mask & (one * (_MASK >> 27)))) * 0x94D049BB133111EB) & mask
    z ^= (z >> 31) & (one * (_MASK >> 31))
    out = array("Q", z.to_bytes(16 * count, "little"))
    return out[::2].tobytes()


class Window:
    """Rows of shared memory. Row b is `row_bytes` of the namespace at `offset_bytes + b · stride_bytes`.

    Made by `Session.create_window`. `memory` is the whole window and `row(b)` one row, both writable and without copy.
    """

    def __init__(
        self,
        namespace: int,
        descriptor: NamespaceDescriptor,
        blocks: int,
        stride_bytes: int,
        offset_bytes: int,
        adapter: LayoutAdapter | None,
    ) -> None:
        if not 1 <= blocks <= limits.WINDOW_BLOCKS_MAX:
            raise ValueError(f"blocks {blocks}: 1 to {limits.WINDOW_BLOCKS_MAX}")
        if stride_bytes < descriptor.row_bytes or offset_bytes < 0:
            raise ValueError("rows of a window do not overlap and do not begin before it")
        end_bytes = offset_bytes + stride_bytes * (blocks - 1) + descriptor.row_bytes
        if end_bytes > limits.WINDOW_BYTES_MAX:
            raise ValueError(f"{end_bytes} bytes: at most {limits.WINDOW_BYTES_MAX}")
        self.namespace: Final = namespace
        """Position in the session's namespaces."""
        self.descriptor: Final = descriptor
        self.blocks: Final = blocks
        self.stride_bytes: Final = stride_bytes
        self.offset_bytes: Final = offset_bytes
        self.size_bytes: Final = -(-end_bytes // PAGE_BYTES) * PAGE_BYTES
        self.adapter: Final = adapter
        self._generation = 0
        self._memfd = -1
        self._proven = adapter is None
        self._unsettled = False
        self._broken = False
        # Address space alone: the memfd is mapped over it.
        self._map = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory: Final = memoryview(self._map)

    @property
    def generation(self) -> int:
        """Grows whenever a connection ends. Read it before gathering, and name it in the STORE."""
        return self._generation

    @property
    def broken(self) -> bool:
        """Whether the window could not be given new memory: it stays unregistered, and its jobs are misses."""
        return self._broken

    @property
    def proven(self) -> bool:
        """Whether the layout was proven, or rows are opaque bytes that need no proof."""
        return self._proven

    def note_proven(self) -> None:
        """Note that the adapter's gather and scatter passed the proof."""
        self._proven = True

    def registration(self, handle: int, *, proof: bool, make: str = "client") -> dict[str, object]:
        """Body of a REGISTER of this window under a namespace's handle."""
        return {
            "kind": "window",
            "make": make,
            "namespace": handle,
            "sizeBytes": self.size_bytes,
            "offsetBytes": self.offset_bytes,
            "strideBytes": self.stride_bytes,
            "blocks": self.blocks,
            "proof": proof,
        }

    def descriptor_to_send(self) -> int:
        """Return the memfd, which stays ours: what travels is a copy."""
        return self._memfd

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.descriptor.row_bytes

    def row(self, block: int) -> memoryview:
        """Return the bytes of one row.

        Raises:
            IndexError: there is no such row.

        """
        if not 0 <= block < self.blocks:
            raise IndexError(f"row {block} of {self.blocks}")
        at = self.offset_bytes + block * self.stride_bytes
        return self.memory[at : at + self.descriptor.row_bytes]

    def make(self) -> None:
        """Give the window memory of its own.

        Raises:
            OSError: the system refuses it.

        """
        self.adopt(_sealed_memfd(self.size_bytes))

    def adopt(self, memfd: int) -> None:
        """Map a memfd, ours or the daemon's, over the window's addresses, and own it.

        Raises:
            OSError: it cannot be mapped.
            ValueError: it could shrink under us, or is too short.

        """
        try:
            _check_memfd(memfd, self.size_bytes)
            self._map_over(memfd)
        except BaseException:
            os.close(memfd)
            raise
        old, self._memfd = self._memfd, memfd
        if old != -1:
            os.close(old)

    def _map_over(self, memfd: int) -> None:
        anchor = ctypes.c_char.from_buffer(self._map)
        address = ctypes.addressof(anchor)
        del anchor
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_SHARED | _MAP_FIXED
        mapped = _libc.mmap(address, self.size_bytes, protection, flags, memfd, 0)
        if mapped != address:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno))

    def invalidate(self, *, unsettled: bool) -> None:
        """Note that the connection ended; `unsettled`: while a job, or the proof, owned rows."""
        self._generation += 1
        self._unsettled = self._unsettled or unsettled

    def settle(self) -> None:
        """Give the window other memory with the same contents if somebody may still write into this one."""
        if not self._unsettled or self._memfd == -1:
            return
        try:
            fresh = _sealed_memfd(self.size_bytes)
            try:
                _copy(self._memfd, fresh, self.size_bytes)
            except BaseException:
                os.close(fresh)
                raise
            self.adopt(fresh)
        except (OSError, ValueError):
            self._broken = True
        self._unsettled = False

    def release(self) -> None:
        """Close the memfd. Views keep the mapping until they go."""
        if self._memfd != -1:
            os.close(self._memfd)
            self._memfd = -1


def _check_memfd(memfd: int, size_bytes: int) -> None:
    seals = fcntl.fcntl(memfd, fcntl.F_GET_SEALS)
    if seals & _SEALS != _SEALS or os.fstat(memfd).st_size < size_bytes:
        raise ValueError("a window's memory is sealed against shrinking and long enough")


def _sealed_memfd(size_bytes: int) -> int:
    memfd = os.memfd_create("cairn-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memfd, size_bytes)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memfd)
        raise
    return memfd


def _copy(source: int, target: int, size_bytes: int) -> None:
    """Copy inside the kernel, so that the engine's threads run on meanwhile."""
    os.lseek(target, 0, os.SEEK_SET)
    at = 0
    while at < size_bytes:
        with contextlib.suppress(InterruptedError):
            at += os.sendfile(target, source, at, min(_COPY_BYTES, size_bytes - at))
