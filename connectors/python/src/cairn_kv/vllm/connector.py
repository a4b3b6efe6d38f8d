"""`CairnConnector`: vLLM's connector interface over the two halves.

Load it with one flag, no code:

    --kv-transfer-config '{"kv_connector":"CairnConnector","kv_connector_module_path":"cairn_kv.vllm",
                           "kv_role":"kv_both","kv_load_failure_policy":"recompute"}'

The engine makes two of these, one beside its scheduler and one in each worker, in different processes or in one. Each
has a session of its own with the daemon, under the engine's id, so that what one leases the other may load.

Which of the engine's promises this relies on: loads are asynchronous only (a request waits until it is reported, others
run meanwhile); no hook per layer does anything, so CUDA graphs need not be cut; nothing has to be delivered, so a
preempted request may be recomputed. An engine whose layers are not served, or that runs without a daemon, works as it
does without a connector.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.logger import init_logger

from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity, NotServed

from .engine_log import join_engine_log
from .metadata import CairnMetadata, CairnWorkerMetadata, ProofOutcome, StoreOutcome
from .options import Options
from .scheduler import SchedulerSide
from .setup import describe_engine, open_scheduler, open_worker, worker_rank
from .stats import CairnConnectorStats, CairnPromMetrics
from .worker import WorkerSide

logger = init_logger(__name__)

Hook = TypeVar("Hook", bound=Callable[..., Any])


def _timed(hook: Hook) -> Hook:
    """Counts the time spent in a hook that the engine calls in its steps."""

    @functools.wraps(hook)
    def timed(self: CairnConnector, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter_ns()
        try:
            return hook(self, *args, **kwargs)
        finally:
            self._stats.add("hook_nanoseconds", time.perf_counter_ns() - begun)

    return timed  # type: ignore[return-value]


class CairnConnector(KVConnectorBase_V1, SupportsHMA):
    """One half of an engine's connection with the daemon; which one, `role` says."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None, **_newer: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        join_engine_log()
        self._stats = CairnStats()
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._identity: Identity | None = None
        self._close: Callable[[], None] | None = None
        self._is_reset = False
        transfer = vllm_config.kv_transfer_config
        self._options = Options.read(transfer.kv_connector_extra_config or {})
        # Every rank reads the same options; one of the halves tells of them.
        if role is KVConnectorRole.SCHEDULER:
            for line in self._options.warnings():
                logger.warning("cairn: %s", line)
        self._mind_failure_policy(transfer)
        try:
            self._identity = describe_engine(vllm_config, kv_cache_config)
        except NotServed as reason:
            if role is KVConnectorRole.SCHEDULER:
                logger.warning("cairn: nothing is stored or loaded: %s", reason)
            return
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler, self._close = open_scheduler(
                self._identity, transfer.engine_id, self._options, self._stats
            )

    def _mind_failure_policy(self, transfer: Any) -> None:
        """A block that cannot be loaded shall be computed, not fail its request: that is what a cache is for."""
        if transfer.kv_load_failure_policy == "recompute" or self._options.keep_failure_policy:
            return
        try:
            transfer.kv_load_failure_policy = "recompute"
        except Exception:
            logger.warning("cairn: set kv_load_failure_policy to recompute, or a failed load fails its request")

    # Facts that the engine asks for.

    @property
    def requires_kv_delivery(self) -> bool:
        """A store that is dropped is a later miss: nothing has to be delivered."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """No hook inside of a layer does anything."""
        return False

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """Blocks are opaque: any layout is served as it is declared."""
        return None

    # The scheduler's half.

    @_timed
    def on_new_request(self, request: Any, *_newer: Any, **_keywords: Any) -> None:
        """Sends the look-up."""
        if self._scheduler is None:
            return
        try:
            self._scheduler.new_request(request)
        except Exception:
            self._end_scheduler()

    @_timed
    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int, *_newer: Any, **_keywords: Any
    ) -> tuple[int | None, bool]:
        """Tokens that can be loaded beyond those that the engine has; None while the answer is under way."""
        if self._scheduler is None:
            return 0, False
        try:
            return self._scheduler.matched_tokens(request, num_computed_tokens)
        except Exception:
            # Nothing was promised yet: the request is computed.
            self._end_scheduler()
            return 0, False

    def _end_scheduler(self) -> None:
        """A fault of ours ends look-ups, not the engine; what is under way is still reported."""
        logger.exception("cairn: a fault in the connector: nothing is stored or loaded from here on")
        if self._scheduler is not None:
            self._scheduler.stop()

    @_timed
    def update_state_after_alloc(
        self, request: Any, blocks: Any, num_external_tokens: int, *_newer: Any, **_keywords: Any
    ) -> None:
        """Takes the blocks to load into."""
        if self._scheduler is not None:
            self._scheduler.allocated(request, list(blocks.get_block_ids()[0]), num_external_tokens)

    @_timed
    def build_connector_meta(self, scheduler_output: Any) -> CairnMetadata:
        """This step's loads, stores and proofs."""
        if self._scheduler is None:
            return CairnMetadata()
        return self._scheduler.build_metadata(scheduler_output)

    @_timed
    def update_connector_output(self, connector_output: Any) -> None:
        """What the workers reported."""
        if self._scheduler is not None:
            self._scheduler.worker_output(connector_output)

    @_timed
    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Whether the blocks must be kept because they are still being copied."""
        if self._scheduler is None:
            return False, None
        return self._scheduler.finished(request), None

    @_timed
    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...], *_newer: Any, **_keywords: Any
    ) -> tuple[bool, dict[str, Any] | None]:
        """The same, as engines with the hybrid allocator ask."""
        if self._scheduler is None:
            return False, None
        return self._scheduler.finished(request), None

    def take_events(self) -> Iterable[Any]:
        """None: the daemon publishes where blocks are."""
        return ()

    def reset_cache(self) -> bool | None:
        """The engine's weights changed under its name: what was stored is not reused, and nothing more is stored."""
        if self._scheduler is not None and not self._is_reset:
            logger.warning("cairn: the cache was reset: nothing is stored or loaded until the engine starts anew")
            self._is_reset = True
            self._scheduler.stop()
        return True

    # A worker's half.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Takes the engine's tensors, proves their layout, and opens the window. An earlier call's is closed."""
        if self._identity is None:
            return
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        try:
            self._worker = open_worker(
                self._identity, self._kv_transfer_config.engine_id, self._options, kv_caches, self._stats
            )
        except NotServed as reason:
            logger.warning("cairn: nothing is stored or loaded: %s", reason)

    @_timed
    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        """Ends copies out of blocks that are about to be overwritten."""
        if self._worker is None:
            return
        if isinstance(kv_connector_metadata, CairnMetadata):
            self._worker.fence(kv_connector_metadata)
        else:  # Older versions hand over the requests themselves.
            self._worker.fence(CairnMetadata(preempted=set(kv_connector_metadata or ())))

    @_timed
    def start_load_kv(self, forward_context: Any, **_keywords: Any) -> None:
        """Begins this step's loads; the requests wait until they are reported."""
        if self._worker is not None:
            self._worker.begin_loads(self._metadata())
        else:
            self._refuse()

    def wait_for_layer_load(self, layer_name: str, *_newer: Any, **_keywords: Any) -> None:
        """Nothing is loaded by layers."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, *_newer: Any, **_keywords: Any) -> None:
        """Nothing is saved by layers."""

    @_timed
    def wait_for_save(self) -> None:
        """The step's blocks are complete: begins their stores, waits for nothing."""
        if self._worker is not None:
            self._worker.begin_stores(self._metadata())

    @_timed
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """(requests whose blocks are copied, requests whose load ended), each once."""
        if self._worker is not None:
            sent, received = self._worker.finished()
        else:
            sent, received = self._refused_sends, self._refused_loads
            self._refused_sends, self._refused_loads = set(), set()
        return sent or None, received or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks of loads that ended and did not arrive; the engine computes them."""
        if self._worker is not None:
            return self._worker.failed_blocks()
        failed, self._refused_blocks = self._refused_blocks, set()
        return failed

    def build_connector_worker_meta(self) -> CairnWorkerMetadata | None:
        """What became of stores and proofs."""
        if self._worker is not None:
            return self._worker.report()
        refused, self._refused_plans = self._refused_plans, None
        return refused

    def shutdown(self) -> None:
        """Ends threads and session; what the engine leased is given back by that."""
        if self._worker is not None:
            self._worker.close()
        if self._close is not None:
            self._close()

    # A worker that does not serve while its scheduler does (its tensors were refused): nothing may wait for it.

    _refused_loads: set[str] = set()
    _refused_sends: set[str] = set()
    _refused_blocks: set[int] = set()
    _refused_plans: CairnWorkerMetadata | None = None

    def _refuse(self) -> None:
        metadata = self._connector_metadata
        if not isinstance(metadata, CairnMetadata):
            return
        if metadata.loads or metadata.stores or metadata.proofs:
            stores = {plan.serial: StoreOutcome(plan.start_depth) for plan in metadata.stores}
            proofs = {plan.request_id: ProofOutcome(plan.request_id, None) for plan in metadata.proofs}
            self._refused_plans = CairnWorkerMetadata(stores, proofs, {worker_rank(): False})
        self._refused_loads = self._refused_loads | {plan.request_id for plan in metadata.loads}
        self._refused_sends = self._refused_sends | metadata.awaited
        self._refused_blocks = self._refused_blocks.union(*(plan.block_ids for plan in metadata.loads))

    def _metadata(self) -> CairnMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, CairnMetadata)
        return metadata

    # Statistics.

    def counters(self) -> dict[str, float]:
        """What this half counted since it was made, by the names of `stats.COUNTERS`."""
        return self._stats.totals()

    def get_kv_connector_stats(self) -> CairnConnectorStats | None:
        """Counted since the last call."""
        counts = self._stats.take()
        return CairnConnectorStats(data=dict(counts)) if counts else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> CairnConnectorStats:
        """The container of these statistics."""
        return CairnConnectorStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any
    ) -> CairnPromMetrics:
        """The engine's exporter of these statistics."""
        return CairnPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
