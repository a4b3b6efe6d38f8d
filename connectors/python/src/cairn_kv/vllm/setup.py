"""Puts a half of the connector together: identity, session, window, layout proof."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any

from cairn_kv import CairnError, Session, Window, layout_pattern
from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity, NotServed
from cairn_kv.adapters.proof import comparison_of

from .device import DeviceBlocks, Driver
from .identity import identity_of
from .links import SchedulerSession, WorkerSession
from .options import Options
from .rows import BlockRows
from .scheduler import SchedulerSide
from .worker import ROWS_MIN, WorkerSide

#: How long an engine's start waits for the daemon; without one it starts all the same.
CONNECT_SECONDS = 2.0
ROW_ALIGNMENT_BYTES = 64
#: Seed of the pattern that a layout is tried with before the daemon tries it with its own.
PATTERN_SEED = 0xCA1


def describe_engine(vllm_config: Any, kv_cache_config: Any) -> Identity:
    """What this engine's blocks are. Raises NotServed."""
    import vllm

    return identity_of(vllm_config, kv_cache_config, str(vllm.__version__), _machine())


def _machine() -> str:
    """What decides about a block's bytes beside the engine's own configuration."""
    import torch

    if torch.cuda.is_available():
        return f"cuda torch {torch.__version__}"
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return f"cpu {torch.backends.cpu.get_cpu_capability()}{' AMX' if tiles else ''} torch {torch.__version__}"


def open_scheduler(
    identity: Identity, engine_id: str, options: Options, stats: CairnStats
) -> tuple[SchedulerSide, Callable[[], None]]:
    """The scheduler's half and how to close it."""
    session = _session(identity, engine_id, options, "scheduler", 0)
    seconds = options.lookup_timeout_ms / 1_000
    link = SchedulerSession(session, max(seconds, 1.0))
    side = SchedulerSide(
        identity,
        link,
        stats,
        lookup_timeout_seconds=seconds,
        load_blocks_min=options.load_blocks_min,
        remote_wait_seconds=options.remote_wait_ms / 1_000,
    )
    return side, session.close


def open_worker(
    identity: Identity, engine_id: str, options: Options, tensors: Mapping[str, Any], stats: CairnStats
) -> WorkerSide:
    """A worker's half, its window registered if there is a daemon. Raises NotServed."""
    rank = worker_rank()
    stride_bytes = -(-identity.row_bytes // ROW_ALIGNMENT_BYTES) * ROW_ALIGNMENT_BYTES
    rows = max(ROWS_MIN, int(options.window_bytes) // stride_bytes)
    session = _session(identity, engine_id, options, "worker", rank)
    try:
        session.wait_connected(CONNECT_SECONDS)
        _mind_memory(session, identity, tensors)
        adapter = _Adapter(identity, tensors)
        window = session.create_window(rows, stride_bytes=stride_bytes, adapter=adapter)
        copies = BlockRows(identity, tensors, _address(window.memory), stride_bytes)
        _prove(copies, adapter, window)
        same = comparison_of(next(iter(tensors.values())).dtype, identity.cache_dtype)
    except BaseException as error:
        session.close()
        if isinstance(error, (CairnError, OSError, ValueError)):
            raise NotServed(f"no window: {error}") from error
        raise
    link = WorkerSession(session, window, identity, rank)
    return WorkerSide(identity, rank, link, rows, copies, same, stats)


def _session(identity: Identity, engine_id: str, options: Options, role: str, rank: int) -> Session:
    import vllm

    return Session(
        options.socket or os.environ.get("CAIRN_SOCKET"),
        engine_id,
        [identity.descriptor],
        role=role,
        rank=rank,
        ranks=identity.world,
        engine=("vllm", str(vllm.__version__)),
    )


def _mind_memory(session: Session, identity: Identity, tensors: Mapping[str, Any]) -> None:
    """Lets blocks in the host's memory pass. Blocks in device memory are offered to the daemon. Raises NotServed."""
    kinds = {str(tensor.device.type) for tensor in tensors.values()}
    if kinds == {"cpu"}:
        return
    if kinds != {"cuda"}:
        raise NotServed(f"the blocks are in {' and '.join(sorted(kinds))} memory")
    blocks = DeviceBlocks(identity, tensors, Driver())
    try:
        for allocation in blocks.allocations:
            session.register_memory(allocation.registration(), descriptor=allocation.descriptor)
    except CairnError as error:
        raise NotServed(f"the blocks are in device memory: {error}") from error
    finally:
        blocks.close()
    raise NotServed("the daemon maps device memory, of which this connector does not make regions yet")


class _Adapter:
    """The engine's own way of moving one block: through the views of its tensors that its kernels use."""

    def __init__(self, identity: Identity, tensors: Mapping[str, Any]) -> None:
        self._identity = identity
        self._tensors = tensors

    def gather(self, pattern: memoryview, row: memoryview) -> None:
        """Writes the pattern through the view of the last block, which nobody has yet, and copies it out."""
        copies = self._over(row)
        copies.write_through_view(copies.blocks - 1, bytes(pattern))
        copies.gather(copies.blocks - 1, 0)

    def scatter(self, row: memoryview) -> bytes:
        """Copies a row into the block; what the engine sees there."""
        copies = self._over(row)
        copies.scatter(0, copies.blocks - 1)
        found = copies.read_through_view(copies.blocks - 1)
        copies.write_through_view(copies.blocks - 1, bytes(len(found)))
        return found

    def _over(self, row: memoryview) -> BlockRows:
        return BlockRows(self._identity, self._tensors, _address(row), self._identity.row_bytes)


def _prove(copies: BlockRows, adapter: _Adapter, window: Window) -> None:
    """The same proof without a daemon: it may come later, when no block is free for it any more. Raises NotServed."""
    row = window.row(0)
    for seed in (PATTERN_SEED, PATTERN_SEED + 1):
        pattern = layout_pattern(seed, len(row))
        adapter.gather(memoryview(pattern), row)
        if bytes(row) != pattern or adapter.scatter(row) != pattern:
            raise NotServed("the layout's proof failed: a block's view and its address are not the same bytes")
    row[:] = bytes(len(row))
    window.note_proven()
    assert copies.blocks > 1


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def worker_rank() -> int:
    """The worker's rank in its engine: pipeline stage first, then tensor-parallel rank."""
    from vllm.distributed import parallel_state

    tensor = parallel_state.get_tp_group()
    pipeline = parallel_state.get_pp_group()
    return int(pipeline.rank_in_group) * int(tensor.world_size) + int(tensor.rank_in_group)
