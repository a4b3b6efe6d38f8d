"""Blocks of the engine's tensors to and from rows of a window.

The engine keeps a block as one page per layer; a window's row holds the pages of all layers one behind the other, in
the engine's order of layers. Pages are opaque: on CPU their inside depends on the instruction set, so they are copied
whole and nothing looks into them.

A page is copied with memmove, which lets other Python threads run. The engine's own view (`tensor[block]`) is used to
prove the layout once, at registration: a pattern written through the view must arrive in the row, and back. Addresses
computed from strides alone would follow a layout that was guessed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from cairn_kv.adapters.identity import Identity, NotServed


class BlockRows:
    """Copies between blocks of the engine and rows of a window of ``rows_address``, ``stride_bytes`` apart."""

    def __init__(self, identity: Identity, tensors: Mapping[str, Any], rows_address: int, stride_bytes: int) -> None:
        """``tensors`` maps a layer's name to its tensor, whose first dimension is the block. Raises NotServed."""
        if stride_bytes < identity.row_bytes:
            raise ValueError(f"rows of {identity.row_bytes} bytes do not fit a stride of {stride_bytes}")
        self._identity = identity
        self._rows_address = rows_address
        self._stride_bytes = stride_bytes
        self._pages, self.blocks = pages_of(identity, tensors)
        self._views = [tensors[name] for name in identity.layer_names]

    def gather(self, block: int, row: int) -> None:
        """Block to row."""
        at = self._row(block, row)
        page_bytes = self._identity.page_bytes
        for base, stride in self._pages:
            ctypes.memmove(at, base + block * stride, page_bytes)
            at += page_bytes

    def scatter(self, row: int, block: int) -> None:
        """Row to block."""
        at = self._row(block, row)
        page_bytes = self._identity.page_bytes
        for base, stride in self._pages:
            ctypes.memmove(base + block * stride, at, page_bytes)
            at += page_bytes

    def write_through_view(self, block: int, row: bytes) -> None:
        """Writes a row's bytes into a block by the engine's own view of it."""
        page_bytes = self._identity.page_bytes
        for index, view in enumerate(self._views):
            page = view[block]
            piece = bytearray(row[index * page_bytes : (index + 1) * page_bytes])
            source = _torch().frombuffer(piece, dtype=_torch().uint8).view(page.dtype).view(page.shape)
            page.copy_(source)

    def read_through_view(self, block: int) -> bytes:
        """A block's bytes by the engine's own view of it."""
        torch = _torch()
        pages = [view[block].contiguous().view(-1).view(torch.uint8) for view in self._views]
        return b"".join(bytes(page.numpy().tobytes()) for page in pages)

    def _row(self, block: int, row: int) -> int:
        if not 0 <= block < self.blocks:
            raise IndexError(f"block {block} of {self.blocks}")
        if row < 0:
            raise IndexError(f"row {row}")
        return self._rows_address + row * self._stride_bytes


def pages_of(identity: Identity, tensors: Mapping[str, Any]) -> tuple[list[tuple[int, int]], int]:
    """(of each layer: address of block 0 and bytes from one block to the next; number of blocks). Raises NotServed."""
    missing = [name for name in identity.layer_names if name not in tensors]
    if missing or len(tensors) != len(identity.layer_names):
        raise NotServed(f"{len(tensors)} tensors for {len(identity.layer_names)} layers; missing: {missing[:3]}")
    views = [tensors[name] for name in identity.layer_names]
    counts = {int(view.shape[0]) for view in views}
    if len(counts) != 1:
        raise NotServed(f"layers have different numbers of blocks: {sorted(counts)}")
    return [_page_of(view, identity.page_bytes) for view in views], counts.pop()


def _page_of(view: Any, page_bytes: int) -> tuple[int, int]:
    """One layer's page of block 0. Raises NotServed unless a block is one piece."""
    block = view[0]
    if not block.is_contiguous():
        raise NotServed(f"a block of shape {tuple(block.shape)} and stride {tuple(block.stride())} is not one piece")
    held = block.numel() * block.element_size()
    if held != page_bytes:
        raise NotServed(f"a block of one layer holds {held} bytes, the engine declares {page_bytes}")
    return int(view.data_ptr()), int(view.stride(0)) * int(view.element_size())


def _torch() -> Any:
    import torch

    return torch
