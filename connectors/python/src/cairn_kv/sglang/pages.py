"""Pages of the engine's host pool to and from rows of a window.

A page is several pieces of host memory (keys and values; with `layer_first` those of each layer). The engine tells
their addresses (`get_page_buffer_meta`), and a row holds them one behind the other, as opaque bytes. memmove lets other
Python threads run.

The addresses are the engine's word. Before the first copy a pattern is written through them into the pool's first page
and looked for in the engine's own flat view of that page, and back; what was there is put back. The engine attaches a
backend while no request is under way, so nobody else uses the page meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cairn_kv.adapters.identity import NotServed
from cairn_kv.window import layout_pattern

#: Seed of the pattern that a layout is tried with.
PATTERN_SEED = 0xCA1

Place = Sequence[tuple[int, int]]
"""Where a page lies: (address, bytes) of its pieces, in the order of the row."""


@dataclass(frozen=True)
class Geometry:
    """A page of the host pool: ``indices`` token slots per page, and the bytes of its buffers in order."""

    indices: int
    buffers: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a page."""
        return sum(self.buffers)


def geometry_of(pool: Any) -> Geometry:
    """Asks the pool for its first page. Raises NotServed for pools whose pages are not of one fixed shape."""
    import torch

    if getattr(pool, "stores_page_envelope", False) or getattr(pool, "shared_allocation_domain", None) is not None:
        raise NotServed(f"{type(pool).__name__}: pages that move, or that several pools share, are not served")
    if not str(getattr(pool, "device", "cpu")).startswith("cpu"):
        raise NotServed(f"the host pool is in {pool.device} memory")
    indices = int(pool.page_size)
    try:
        _, sizes = pool.get_page_buffer_meta(torch.arange(indices, dtype=torch.int64))
    except (AttributeError, ValueError, NotImplementedError, TypeError) as error:
        raise NotServed(f"{type(pool).__name__} does not tell where its pages lie: {error}") from error
    geometry = Geometry(indices, tuple(int(size) for size in sizes))
    if geometry.row_bytes == 0:
        raise NotServed(f"{type(pool).__name__} holds no bytes of its own")
    return geometry


def gather(place: Place, row: memoryview) -> None:
    """Page to row."""
    at = address_of(row)
    for address, size_bytes in place:
        ctypes.memmove(at, address, size_bytes)
        at += size_bytes


def scatter(row: memoryview, place: Place) -> None:
    """Row to page."""
    at = address_of(row)
    for address, size_bytes in place:
        ctypes.memmove(address, at, size_bytes)
        at += size_bytes


def address_of(memory: memoryview) -> int:
    """Where writable memory lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Pages:
    """The host pool's pages.

    ``flat_is_row``: the engine's flat copy of a page has the same order as its buffers, so that both interfaces may
    read what either wrote.
    """

    def __init__(self, pool: Any, geometry: Geometry) -> None:
        """Raises NotServed if the layout's proof fails."""
        self._pool = pool
        self._geometry = geometry
        self.flat_is_row = self._prove()

    def places(self, host_indices: Any, count: int) -> list[Place]:
        """Where `count` pages lie. Raises ValueError if the engine's indices or buffers are not those of as many."""
        if len(host_indices) != count * self._geometry.indices:
            raise ValueError(f"{len(host_indices)} indices for {count} pages of {self._geometry.indices}")
        addresses, sizes = self._pool.get_page_buffer_meta(host_indices)
        buffers = self._geometry.buffers
        if len(addresses) != count * len(buffers) or tuple(sizes) != buffers * count:
            raise ValueError(f"{len(addresses)} buffers for {count} pages of {len(buffers)}")
        step = len(buffers)
        return [
            [(int(addresses[at + part]), buffers[part]) for part in range(step)] for at in range(0, count * step, step)
        ]

    def place_of(self, tensor: Any) -> Place:
        """Where a flat copy lies. Raises ValueError if it is not one page in one piece of host memory."""
        size_bytes = int(tensor.numel()) * int(tensor.element_size())
        if size_bytes != self._geometry.row_bytes or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError(f"a flat page of {size_bytes} bytes; {self._geometry.row_bytes} in one piece are needed")
        return [(int(tensor.data_ptr()), size_bytes)]

    def _prove(self) -> bool:
        import torch

        first = torch.arange(self._geometry.indices, dtype=torch.int64)
        (place,) = self.places(first, 1)
        saved = memoryview(bytearray(self._geometry.row_bytes))
        gather(place, saved)
        try:
            pattern = layout_pattern(PATTERN_SEED, len(saved))
            scatter(memoryview(bytearray(pattern)), place)
            seen = self._flat_page()
            if sorted(self._cut(seen)) != sorted(self._cut(pattern)):
                raise NotServed("the layout's proof failed: a page's addresses and its view are not the same bytes")
            # And the other way: what the engine writes through its view arrives at the addresses.
            self._write_flat(layout_pattern(PATTERN_SEED + 1, len(saved)))
            found = memoryview(bytearray(len(saved)))
            gather(place, found)
            if sorted(self._cut(bytes(found))) != sorted(self._cut(layout_pattern(PATTERN_SEED + 1, len(saved)))):
                raise NotServed("the layout's proof failed: what the engine writes does not arrive at its addresses")
            return seen == pattern
        finally:
            scatter(saved, place)

    def _cut(self, page: bytes) -> list[bytes]:
        """A page's buffers, whose order is the only thing in which the flat copy may differ; all have one size then."""
        if len(set(self._geometry.buffers)) > 1:
            return [page]
        step = self._geometry.buffers[0]
        return [page[at : at + step] for at in range(0, len(page), step)]

    def _flat_page(self) -> bytes:
        import torch

        try:
            page = self._pool.get_data_page(0, flat=True)
        except Exception as error:
            raise NotServed(f"no view of a page to prove the layout with: {error}") from error
        return bytes(page.contiguous().view(torch.uint8).numpy().tobytes())

    def _write_flat(self, page: bytes) -> None:
        import torch

        target = self._pool.get_dummy_flat_data_page()
        flat = torch.frombuffer(bytearray(page), dtype=torch.uint8).view(target.dtype)
        self._pool.set_from_flat_data_page(0, flat)
