"""Run with an engine's Python: TensorRT-LLM's two kinds of cache as torch tensors, and engines that use them.

usage: torch_cache.py serve
For each manager (1: one pool, 2: regions of page slots), kind of attention and number of ranks, prints the tokens that
a first and a second engine are answered for one prompt; the executor asserts every byte it uses.
       torch_cache.py refuse
Prints why each of several caches is not served.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import trtllm_engine
from daemon import eventually
from trtllm_engine import BLOCK_TOKENS, ROW_BYTES, Cache, Engine, llm_args

trtllm_engine.install()

from cairn_kv.adapters.identity import NotServed  # noqa: E402
from cairn_kv.tensorrt_llm.pool import pool_of_layout, pool_of_tensor  # noqa: E402


class Row:
    """One block of a cache as bytes."""

    def __init__(self, pages: list[torch.Tensor]) -> None:
        self._pages = pages

    def __setitem__(self, _whole: slice, row: bytes) -> None:
        at = 0
        for page in self._pages:
            page.copy_(torch.frombuffer(bytearray(row[at : at + page.numel()]), dtype=torch.uint8))
            at += page.numel()

    def __eq__(self, other: object) -> bool:
        return b"".join(page.numpy().tobytes() for page in self._pages) == other

    __hash__ = None  # type: ignore[assignment]


class PoolCache(Cache):
    """The older manager's: one tensor [blocks, layers, keys and values, elements]."""

    def __init__(self, blocks: int, shard: int, kind: str) -> None:
        super().__init__(0, shard, kind)
        planes = 1 if kind == "mla" else 2
        self.tensor = torch.zeros((blocks, 2, planes, ROW_BYTES // 2 // planes // 2), dtype=torch.bfloat16)
        flat = self.tensor.view(torch.uint8).view(blocks, -1)
        self.blocks = [Row([flat[block]]) for block in range(blocks)]

    def register(self, worker: Any) -> None:
        """The one tensor."""
        worker.register_kv_caches(self.tensor)


class RegionCache(Cache):
    """The newer manager's: two runs of bytes within slots that are longer."""

    def __init__(self, blocks: int, shard: int, kind: str) -> None:
        super().__init__(0, shard, kind)
        memory = torch.zeros(blocks * 2 * ROW_BYTES, dtype=torch.uint8)
        roles = ["key"] if kind == "mla" else ["key", "value"]
        sizes = (ROW_BYTES // 4, ROW_BYTES - ROW_BYTES // 4)
        regions = [
            region(memory, blocks, at, size, layer, roles)
            for layer, (at, size) in enumerate(zip((64, ROW_BYTES), sizes, strict=True))
        ]
        self.layout = layout_of(regions)
        self.blocks = [Row([one.slot_tensor(block) for one in regions]) for block in range(blocks)]

    def register(self, worker: Any) -> None:
        """The layout."""
        worker.register_kv_cache_layout(self.layout)


def region(memory: torch.Tensor, blocks: int, at: int, size: int, layer: int, roles: list[str]) -> Any:
    view = torch.as_strided(memory, (blocks, size), (2 * ROW_BYTES, 1), at)
    return SimpleNamespace(
        size=size,
        num_slots=blocks,
        buffers=tuple(SimpleNamespace(layer_id=layer, role=role, expansion=1) for role in roles),
        as_tensor=lambda: view,
        slot_tensor=lambda slot: view[slot],
    )


def layout_of(regions: list[Any], **over: Any) -> Any:
    group = SimpleNamespace(**{"window_size": None, "regions": tuple(regions), **over})
    return SimpleNamespace(groups=(group,), dtype=torch.bfloat16)


def serve(caches: type[Cache], kind: str, ranks: int) -> list[int]:
    arguments = llm_args(tensor_parallel_size=ranks)
    tokens = [7 * at + ranks for at in range(5 * BLOCK_TOKENS + 1)]
    answered: list[int] = []
    for life in range(2):
        engine = Engine(arguments, ranks=ranks, kind=kind, cache_type=caches, chunk_tokens=3 * BLOCK_TOKENS)
        engine.run([3] * 5)
        answered.append(engine.matched[engine.run(tokens).request_id])
        worker = engine.workers[0]
        eventually("blocks are stored", lambda worker=worker, life=life: life == 1 or counted(worker) >= 5)
        engine.close()
    return answered


def counted(worker: Any) -> float:
    return float(worker.counters().get("stored_blocks", 0))


def refusal(make: Callable[[Any, Callable[[int], int]], Any], cache: Any) -> str:
    try:
        make(cache, lambda _row_bytes: 2)
    except NotServed as reason:
        return str(reason).split(":", maxsplit=1)[0]
    return "served"


def refuse() -> None:
    memory = torch.zeros(8 * 2 * ROW_BYTES, dtype=torch.uint8)
    one = region(memory, 8, 0, 256, 0, ["key", "value"])
    fewer = region(memory, 7, 256, 256, 0, ["key", "value"])
    elsewhere = SimpleNamespace(**{**vars(one), "slot_tensor": lambda slot: one.as_tensor()[slot - 1]})
    tensors = [torch.zeros((4, 2, 64)), torch.zeros((4, 2, 3, 64)), torch.zeros((4, 2, 64, 2)).transpose(2, 3)]
    layouts = [
        SimpleNamespace(groups=(1, 2), dtype=torch.uint8),
        layout_of([one], window_size=128),
        layout_of([one], replicated_regions=(one,)),
        layout_of([]),
        layout_of([one, fewer]),
        layout_of([elsewhere]),
    ]
    makers: list[tuple[Callable[[Any, Callable[[int], int]], Any], Any]] = [
        *((pool_of_tensor, tensor) for tensor in tensors),
        *((pool_of_layout, layout) for layout in layouts),
    ]
    for make, cache in makers:
        print(refusal(make, cache))
    try:
        pool_of_layout(layout_of([one]), lambda _row_bytes: 2).read([-1], [0], None)
    except IndexError as reason:
        print(reason)


if __name__ == "__main__":
    if sys.argv[1] == "refuse":
        refuse()
    else:
        for number, caches in enumerate((PoolCache, RegionCache), start=1):
            for kind in ("full_attention", "mla"):
                for ranks in (1, 2):
                    print(number, kind, ranks, serve(caches, kind, ranks))
