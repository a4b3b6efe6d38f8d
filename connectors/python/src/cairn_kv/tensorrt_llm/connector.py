"""`CairnScheduler` and `CairnWorker`: TensorRT-LLM's connector interface over the two halves.

The engine makes both before it has a cache: a worker on each rank and a scheduler on rank 0, or one of each on every
rank under attention data parallelism. What a block is turns out when the worker gets the cache; it then opens its own
half and that of the scheduler beside it, which is always in the same process. The interface has no end: sessions and
threads end with the process, or with the next cache.

An engine that is not served, or that runs without a daemon, works as it does without a connector.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import uuid
from collections.abc import Callable
from typing import Any

from cairn_kv import CairnError, Session, Window
from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity, NotServed

from .identity import attention_dp, identity_of, text_only, world_of
from .metadata import Step
from .options import Options
from .pool import BlockPool, pool_of_layout, pool_of_tensor
from .scheduler import SchedulerSide
from .staging import ROW_ALIGNMENT_BYTES, Staging, row_stride
from .worker import WorkerSide


def _interface() -> Any:
    """The engine's module of the connector interface, which has moved once."""
    try:
        return importlib.import_module("tensorrt_llm._torch.pyexecutor.connectors.kv_cache_connector")
    except ModuleNotFoundError:
        return importlib.import_module("tensorrt_llm._torch.pyexecutor.kv_cache_connector")


_SchedulerBase: Any = _interface().KvCacheConnectorScheduler
_WorkerBase: Any = _interface().KvCacheConnectorWorker
_ranks: Any = importlib.import_module("tensorrt_llm._utils")

log = logging.getLogger("cairn_kv.tensorrt_llm")


class _EngineLog(logging.Handler):
    """Puts what the connector says into the engine's own log."""

    def __init__(self) -> None:
        super().__init__()
        self._logger: Any = importlib.import_module("tensorrt_llm.logger").logger

    def emit(self, record: logging.LogRecord) -> None:
        say = self._logger.warning if record.levelno >= logging.WARNING else self._logger.info
        say(self.format(record))


log.propagate = False
for _logger in (log, logging.getLogger("cairn_kv")):  # What sessions say has the name of the package.
    _logger.setLevel(logging.INFO)
    _logger.handlers[:] = [_EngineLog()]

#: How long an engine's start waits for the daemon; without one it starts all the same.
CONNECT_SECONDS = 2.0
#: Rows of a window below which blocks could not be stored beside each other.
ROWS_MIN = 4

#: The halves of this process by rank: a scheduler waits for the worker beside it, a worker ends the one before it.
_schedulers: dict[int, CairnScheduler] = {}
_workers: dict[int, CairnWorker] = {}


class CairnScheduler(_SchedulerBase):  # type: ignore[misc]
    """The half beside the engine's scheduler."""

    supports_attention_dp = True

    def __init__(self, llm_args: Any) -> None:
        super().__init__(llm_args)
        self.stats = CairnStats()
        self._side: SchedulerSide | None = None
        self._session: Session | None = None
        self._staging: Staging | None = None
        rank = int(_ranks.mpi_rank())
        if rank in _schedulers:
            _schedulers[rank].shutdown()
        _schedulers[rank] = self

    def open(self, identity: Identity, engine_id: str, options: Options, store_rows: int, stats: CairnStats) -> None:
        """The worker beside it knows by now what a block is; both count in ``stats``. Raises NotServed."""
        self.shutdown()
        self.stats = stats
        size_bytes = max(options.staging_bytes, identity.shards * row_stride(identity))
        session, window = _connect(identity, engine_id, options, ("scheduler", 0), size_bytes)
        self._session, self._staging = session, Staging(session, window, identity)
        self._side = SchedulerSide(
            identity, session, self._staging, options, store_rows, self.stats, text_only=text_only(self._llm_args)
        )

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int, *_newer: Any) -> tuple[int, bool]:
        """Tokens that lie in this engine's memory beyond those that it has. Never asynchronous."""
        if self._side is None:
            return 0, False
        return self._side.matched_tokens(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, block_ids: list[int]) -> None:
        """Blocks of the request's first chunk."""
        if self._side is not None:
            self._side.allocated(request.request_id, block_ids)

    def update_state_after_alloc_by_layer_group(self, request: Any, block_ids: list[list[int]]) -> None:
        """The same, by groups of layers; an engine with several is not served."""
        self.update_state_after_alloc(request, block_ids[0])

    def build_connector_meta(self, scheduler_output: Any) -> Step:
        """This step's loads, stores and proofs."""
        return Step(0) if self._side is None else self._side.build_step(scheduler_output)

    def request_finished(self, request: Any, cache_block_ids: list[int]) -> bool:
        """False: nothing refers to the blocks any more."""
        if self._side is not None:
            self._side.forget(request.request_id)
        return False

    def request_finished_by_layer_group(self, request: Any, cache_block_ids: list[list[int]]) -> bool:
        """The same, by groups of layers."""
        return self.request_finished(request, cache_block_ids[0])

    def request_reset(self, request: Any) -> None:
        """The request lost its blocks and begins anew; the engine then asks anew."""
        if self._side is not None:
            self._side.forget(request.request_id)

    def cancel_load(self, request: Any, start: int, end: int) -> None:
        """The engine will not use what was answered for these tokens."""
        if self._side is not None:
            self._side.cancel_load(request.request_id, start, end)

    def counters(self) -> dict[str, float]:
        """What this half and the worker beside it counted since they were made."""
        return self.stats.totals()

    def shutdown(self) -> None:
        """Ends the session; what is asked from here on is a miss."""
        self._side = None
        if self._session is not None:
            self._session.close()
        if self._staging is not None:
            self._staging.mailbox.close()
        self._session, self._staging = None, None


class CairnWorker(_WorkerBase):  # type: ignore[misc]
    """The half beside each rank's model."""

    supports_attention_dp = True

    def __init__(self, llm_args: Any) -> None:
        super().__init__(llm_args)
        self.stats = CairnStats()
        self._side: WorkerSide | None = None
        self._rank = int(_ranks.mpi_rank())

    def register_kv_caches(self, kv_cache_tensor: Any) -> None:
        """Takes the one pool of the older cache manager."""
        self._register(lambda slots_of: pool_of_tensor(kv_cache_tensor, slots_of))

    def register_kv_cache_layout(self, layout: Any) -> None:
        """Takes the regions of the newer cache manager."""
        self._register(lambda slots_of: pool_of_layout(layout, slots_of))

    def start_load_kv(self, stream: Any) -> None:
        """What was staged for this step goes into the engine's blocks."""
        step = self.get_connector_meta()
        if self._side is not None and isinstance(step, Step):
            self._side.begin(step, stream)

    def wait_for_layer_load(self, layer_idx: int, stream: Any) -> None:
        """Nothing is loaded by layers."""

    def save_kv_layer(self, layer_idx: int, stream: Any) -> None:
        """Nothing is saved by layers."""

    def wait_for_save(self, stream: Any) -> None:
        """The blocks that this step completes are copied out."""
        if self._side is not None:
            self._side.finish(stream)

    def get_finished(
        self, finished_gen_req_ids: list[int], started_loading_req_ids: list[int]
    ) -> tuple[list[int], list[int]]:
        """Nothing was said to be under way; whatever the engine waits for all the same is done."""
        return list(finished_gen_req_ids), list(started_loading_req_ids)

    def counters(self) -> dict[str, float]:
        """What this half counted since it was made."""
        return self.stats.totals()

    def shutdown(self) -> None:
        """Ends thread and session."""
        if self._side is not None:
            self._side.close()
        self._side = None

    def _register(self, make_pool: Callable[[Callable[[int], int]], BlockPool]) -> None:
        # What was registered before ends with it, this worker's own included, and is asked for no more.
        _workers.get(self._rank, self).shutdown()
        if self._rank in _schedulers:
            _schedulers[self._rank].shutdown()
        _workers[self._rank] = self
        # All ranks take part, whatever becomes of each of them: one that stayed away would hang the others.
        engine_id, options = self._shared((str(uuid.uuid4()), _options()))
        reason: object = options
        if isinstance(options, Options):
            try:
                self._open(make_pool, engine_id, options)
            except NotServed as error:
                reason = error
            else:
                return
        log.warning("cairn: nothing is stored or loaded: %s", reason)

    def _shared(self, mine: tuple[str, Options | str]) -> tuple[str, Options | str]:
        """Rank 0's, on all ranks that share its scheduler."""
        if attention_dp(self._llm_args) or world_of(self._llm_args) == 1:
            return mine
        shared: tuple[str, Options | str] = _ranks.mpi_broadcast(mine, root=0)
        return shared

    def _open(self, make_pool: Callable[[Callable[[int], int]], BlockPool], engine_id: str, options: Options) -> None:
        pool = make_pool(lambda row_bytes: max(ROWS_MIN, options.window_bytes // _aligned(row_bytes)))
        identity = identity_of(self._llm_args, pool.facts, _engine_version(), _machine())
        rank = 0 if attention_dp(self._llm_args) else self._rank
        session, window = _connect(identity, engine_id, options, ("worker", rank), options.window_bytes)
        self._side = WorkerSide(identity, rank, session, window, pool, self.stats)
        scheduler = _schedulers.get(self._rank)
        if scheduler is not None:
            try:
                scheduler.open(identity, engine_id, options, window.blocks, self.stats)
            except NotServed:
                self.shutdown()
                raise


def _options() -> Options | str:
    """The options, or what is wrong with them: only rank 0's environment counts, so that no rank raises alone."""
    try:
        return Options.read(os.environ)
    except ValueError as error:
        return str(error)


def _connect(
    identity: Identity, engine_id: str, options: Options, place: tuple[str, int], size_bytes: int
) -> tuple[Session, Window]:
    """A session for this role and rank, and its window of so many bytes of opaque rows. Raises NotServed."""
    role, rank = place
    stride_bytes = row_stride(identity)
    with contextlib.ExitStack() as undo:
        try:
            session = Session(
                options.socket,
                engine_id,
                [identity.descriptor],
                role=role,
                rank=rank,
                ranks=identity.world,
                engine=("tensorrt_llm", _engine_version()),
            )
            undo.callback(session.close)
            session.wait_connected(CONNECT_SECONDS)
            window = session.create_window(max(ROWS_MIN, size_bytes // stride_bytes), stride_bytes=stride_bytes)
        except (CairnError, OSError, ValueError, RuntimeError) as error:
            raise NotServed(f"no window for the {role} of rank {rank}: {error}") from error
        undo.pop_all()
    return session, window


def _aligned(row_bytes: int) -> int:
    return -(-row_bytes // ROW_ALIGNMENT_BYTES) * ROW_ALIGNMENT_BYTES


def _engine_version() -> str:
    return str(importlib.import_module("tensorrt_llm").__version__)


def _machine() -> str:
    """What decides about a block's bytes beside the engine's own configuration."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        return "no torch"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} torch {torch.__version__}"
    return f"cpu torch {torch.__version__}"
