"""The engine's blocks, copied by torch through the engine's own views of them.

A block is one row: with the older cache manager `tensor[block]` of its one pool, with the newer one the regions of a
page slot one behind the other. Rows are opaque bytes; nothing looks into them.

Copies are put on the stream of the forward pass. That is all the fencing there is: what a later pass writes into a
block comes after what was read out of it, and what is loaded into a block comes before the pass that needs it. Hence a
block is read into a buffer of pinned memory at once, whether the daemon will want it or not, and nothing refers to a
block of the engine once a hook has returned.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cairn_kv import layout_pattern
from cairn_kv.adapters.identity import NotServed

from .identity import PoolFacts

#: Seed of the pattern that a layout is tried with.
PATTERN_SEED = 0xCA1


class BlockPool(Protocol):
    """Copies between blocks of the engine and memory of the host."""

    facts: PoolFacts
    #: The element type by which two rows are compared.
    dtype: Any

    def read(self, block_ids: Sequence[int], slots: Sequence[int], stream: Any) -> Callable[[], None]:
        """Begins to copy blocks into slots, in the order of ``stream``. What it returns waits for the end."""

    def slot(self, slot: int) -> memoryview:
        """A slot's bytes."""

    def write(self, rows: Sequence[memoryview], block_ids: Sequence[int], stream: Any) -> None:
        """Copies rows into blocks, in the order of ``stream``; the rows are free when it returns."""


class TorchPool:
    """`BlockPool` over tensors of bytes, each [blocks, bytes of a piece]; a row is all pieces of a block."""

    def __init__(self, pieces: Sequence[Any], facts: PoolFacts, dtype: Any, slots: int) -> None:
        import torch

        self.facts = facts
        self.dtype = dtype
        self._pieces = list(pieces)
        self._cuda = self._pieces[0].device.type == "cuda"
        self._slots = torch.empty((slots, facts.row_bytes), dtype=torch.uint8, pin_memory=self._cuda)

    def read(self, block_ids: Sequence[int], slots: Sequence[int], stream: Any) -> Callable[[], None]:
        """Begins to copy blocks into slots."""
        with self._on(stream):
            for block, slot in zip(block_ids, slots, strict=True):
                at = 0
                for piece in self._pieces:
                    page = piece[self._checked(block)]
                    self._slots[slot, at : at + page.numel()].copy_(page, non_blocking=True)
                    at += page.numel()
        if not self._cuda:
            return lambda: None
        import torch

        event = torch.cuda.Event()
        event.record(stream)
        return event.synchronize  # type: ignore[no-any-return]

    def slot(self, slot: int) -> memoryview:
        """A slot's bytes."""
        return memoryview(self._slots[slot].numpy())

    def write(self, rows: Sequence[memoryview], block_ids: Sequence[int], stream: Any) -> None:
        """Copies rows into blocks."""
        import torch

        with self._on(stream):
            for row, block in zip(rows, block_ids, strict=True):
                source = torch.frombuffer(row, dtype=torch.uint8)
                at = 0
                for piece in self._pieces:
                    page = piece[self._checked(block)]
                    page.copy_(source[at : at + page.numel()])
                    at += page.numel()

    def _checked(self, block: int) -> int:
        # A tensor takes −1 for its last block, which belongs to somebody.
        if not 0 <= block < self.facts.blocks:
            raise IndexError(f"block {block} of {self.facts.blocks}")
        return block

    def _on(self, stream: Any) -> Any:
        if not self._cuda or stream is None:
            return contextlib.nullcontext()
        import torch

        return torch.cuda.stream(stream)


def pool_of_tensor(tensor: Any, slots_of: Callable[[int], int]) -> BlockPool:
    """The one pool of the older cache manager: [blocks, layers, keys and values, elements]. Raises NotServed.

    With one plane in place of keys and values the layers are MLA's. ``slots_of`` gives the slots for a row's bytes.
    """
    import torch

    shape = [int(extent) for extent in tensor.shape]
    if len(shape) != 4 or shape[2] not in (1, 2):
        raise NotServed(f"a pool of shape {shape}; [blocks, layers, 1 or 2, elements] is known")
    try:
        piece = tensor.view(torch.uint8).view(shape[0], -1)
    except RuntimeError as error:
        raise NotServed(f"a block of the pool is not one piece: {error}") from error
    row_bytes = int(piece.shape[1])
    facts = PoolFacts(
        blocks=shape[0],
        row_bytes=row_bytes,
        dtype=str(tensor.dtype).removeprefix("torch."),
        kind="mla" if shape[2] == 1 else "full_attention",
        layout={"manager": 1, "block": shape[1:]},
    )
    pool = TorchPool([piece], facts, tensor.dtype, slots_of(row_bytes))
    _prove(pool, [tensor[shape[0] - 1]])
    return pool


def pool_of_layout(layout: Any, slots_of: Callable[[int], int]) -> BlockPool:
    """The regions of the newer cache manager (`KvCacheLayout`). Raises NotServed.

    A page index is scoped to a group of layers, so one group is served, of full attention.
    """
    groups = list(layout.groups)
    if len(groups) != 1:
        raise NotServed(f"{len(groups)} groups of layers; one of full attention is served")
    group = groups[0]
    if group.window_size is not None:
        raise NotServed(f"the layers attend to a window of {group.window_size} tokens only")
    if getattr(group, "replicated_regions", ()):
        raise NotServed("a block has parts that are the same on all ranks beside parts that are not")
    regions = list(group.regions)
    if not regions:
        raise NotServed("the group has no regions")
    counts = {int(region.num_slots) for region in regions}
    if len(counts) != 1:
        raise NotServed(f"regions have different numbers of slots: {sorted(counts)}")
    roles = {str(buffer.role) for region in regions for buffer in region.buffers}
    blocks, row_bytes = counts.pop(), sum(int(region.size) for region in regions)
    facts = PoolFacts(
        blocks=blocks,
        row_bytes=row_bytes,
        dtype=str(layout.dtype).removeprefix("torch."),
        kind="mla" if roles == {"key"} else "full_attention",
        layout={
            "manager": 2,
            "regions": [
                [int(region.size), [[int(one.layer_id), str(one.role), int(one.expansion)] for one in region.buffers]]
                for region in regions
            ],
        },
    )
    pool = TorchPool([region.as_tensor() for region in regions], facts, layout.dtype, slots_of(row_bytes))
    _prove(pool, [region.slot_tensor(blocks - 1) for region in regions])
    return pool


def _prove(pool: BlockPool, views: Sequence[Any]) -> None:
    """Runs patterns through a block that nobody has yet, by our copies and by the engine's views. Raises NotServed."""
    last, row_bytes = pool.facts.blocks - 1, pool.facts.row_bytes
    stored = layout_pattern(PATTERN_SEED, row_bytes)
    _write_views(views, stored)
    pool.read([last], [0], None)()
    found = bytes(pool.slot(0))
    loaded = layout_pattern(PATTERN_SEED + 1, row_bytes)
    pool.write([memoryview(bytearray(loaded))], [last], None)
    seen = _read_views(views)
    _write_views(views, bytes(row_bytes))
    if found != stored or seen != loaded:
        raise NotServed("the layout's proof failed: a block's view and its bytes are not the same")


def _write_views(views: Sequence[Any], row: bytes) -> None:
    import torch

    at = 0
    for view in views:
        held = view.numel() * view.element_size()
        piece = torch.frombuffer(bytearray(row[at : at + held]), dtype=torch.uint8)
        view.copy_(piece.view(view.dtype).view(view.shape))
        at += held


def _read_views(views: Sequence[Any]) -> bytes:
    import torch

    pages = [view.contiguous().view(-1).view(torch.uint8).cpu() for view in views]
    return b"".join(bytes(page.numpy().tobytes()) for page in pages)


def copy_bytes(source: memoryview, target: memoryview) -> None:
    """Copies bytes while other Python threads run, which a slice's assignment does not let."""
    assert len(source) == len(target)
    place = ctypes.c_char.from_buffer(target)
    origin = ctypes.c_char.from_buffer(source)
    ctypes.memmove(ctypes.addressof(place), ctypes.addressof(origin), len(source))
