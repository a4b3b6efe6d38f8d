"""`CairnTier`: the daemon as a secondary tier of vLLM's own tiering.

For engines that keep vLLM's `OffloadingConnector` and its CPU tier and want what lies behind it:

    "secondary_tiers": [{"type": "CairnTier", "module_path": "cairn_kv.vllm.tier"}]

The engine moves blocks between device and its CPU tier; this moves chunks between that CPU tier and the daemon. It runs
in the scheduler's process alone. What it does stands in tiering.py; here it is put together and given the engine's
types.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import Any

from vllm.logger import init_logger
from vllm.v1.kv_offload.base import LookupResult, RequestOffloadingContext
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

from cairn_kv import CairnError, Session
from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity, NotServed
from cairn_kv.adapters.proof import comparison_of

from .engine_log import join_engine_log
from .options import Options
from .setup import CONNECT_SECONDS, _address, _machine
from .tier_identity import describe_chunks
from .tier_link import ChunkRows, TierSession
from .tiering import Result, TierSide, Verdict
from .worker import ROWS_MIN, WorkerSide

logger = init_logger(__name__)

#: Options of a tier that are the connector's as well.
SHARED_OPTIONS = ("socket", "windowBytes", "lookupTimeoutMs")
RESULTS = {Verdict.HIT: LookupResult.HIT, Verdict.MISS: LookupResult.MISS, Verdict.RETRY: LookupResult.RETRY}
#: What a result may tell differs between versions.
RESULT_FIELDS = {field.name for field in dataclasses.fields(JobResult)}


class CairnTier(SecondaryTierManager):
    """The engine's view of a tier; without a daemon it finds nothing and stores nothing."""

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type)
        # Versions before 0.31 know no detector; since then the engine asks for it by this name.
        self._bp_detector = backpressure_detector
        join_engine_log()
        self._stats = CairnStats()
        self._side: TierSide | None = None
        self._rows: ChunkRows | None = None
        self._refused: list[JobResult] = []
        shared = Options.read({name: options[name] for name in SHARED_OPTIONS if name in options})
        for name in sorted(options.keys() - {*SHARED_OPTIONS, "revision"}):
            logger.warning("cairn: unknown option %s of the tier", name)
        try:
            identity = self._describe(str(options.get("revision", "")))
            self._open(identity, offloading_spec, primary_kv_view, shared)
        except (NotServed, OSError) as reason:
            logger.warning("cairn: the tier stores and loads nothing: %s", reason)

    def _describe(self, revision: str) -> Identity:
        """What the chunks are. Raises NotServed."""
        import vllm

        config = getattr(self._offloading_spec, "config", None)
        if config is None:
            raise NotServed("this version does not tell what it offloads; a tier needs 0.29")
        shape = self._primary_kv_view.shape
        assert shape is not None
        return describe_chunks(config, int(shape[1]), revision, str(vllm.__version__), _machine())

    def _open(self, identity: Identity, spec: Any, chunks: memoryview, options: Options) -> None:
        """The session, its window and the thread that copies. Raises NotServed."""
        rows = max(ROWS_MIN, int(options.window_bytes) // identity.row_bytes)
        session = Session(
            options.socket or os.environ.get("CAIRN_SOCKET"),
            # Not the id that a connector of the same engine uses: its namespaces are others.
            f"{spec.config.engine_id}-tier",
            [identity.descriptor],
            engine=("vllm", identity.descriptor.engine_build.removeprefix("vllm ")),
        )
        try:
            session.wait_connected(CONNECT_SECONDS)
            window = session.create_window(rows)
            self._rows = ChunkRows(chunks, _address(window.memory), window.stride_bytes)
            same = comparison_of(_dtype(spec.config.model.dtype))
        except BaseException as error:
            session.close()
            if isinstance(error, (CairnError, OSError, ValueError)):
                raise NotServed(f"no window: {error}") from error
            raise
        link = TierSession(session, window, identity, options.lookup_timeout_ms / 1_000)
        # Chunks are copied by the two methods that blocks are copied by.
        copier = WorkerSide(identity, 0, link, rows, self._rows, same, self._stats)  # type: ignore[arg-type]
        self._side = TierSide(link, copier, self._stats)

    # The engine's scheduler.

    def lookup(self, key: Any, req_context: Any) -> LookupResult:
        """Whether a chunk can be loaded; RETRY while the answer is under way."""
        if self._side is None:
            return LookupResult.MISS
        return RESULTS[self._side.lookup(req_context.req_id, key)]

    def submit_store(self, job_metadata: Any) -> None:
        """Stores chunks of the CPU tier; get_finished_jobs() tells when."""
        self._submit(job_metadata, None if self._side is None else self._side.store)

    def submit_load(self, job_metadata: Any) -> None:
        """Loads chunks into the CPU tier; get_finished_jobs() tells when, and which."""
        self._submit(job_metadata, None if self._side is None else self._side.load)

    def _submit(self, job: Any, begin: Any) -> None:
        if begin is None:
            self._refused.append(JobResult(job_id=job.job_id, success=False))
            return
        chunks = job.chunk_ids if hasattr(job, "chunk_ids") else job.block_ids  # Its name before 0.30.
        begin(job.job_id, job.req_context.req_id, list(job.keys), chunks.tolist())

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """Jobs that ended, each once."""
        results, self._refused = self._refused, []
        return results if self._side is None else [_result(result) for result in self._side.finished()]

    def drain_jobs(self) -> None:
        """Waits until every job has ended, their results being still to be taken, and serves nothing from then on.

        The engine asks for this when its cache is reset and nowhere else, and the reset may be because its weights
        were changed under the same name.
        """
        if self._side is not None:
            logger.warning("cairn: the cache was reset: the tier stores and loads nothing until the engine starts anew")
            self._side.drain()
            self._side.stop()

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        """Chunks are stored as they are computed."""
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: Any) -> None:
        """Forgets what was looked up."""
        if self._side is not None:
            self._side.request_ended(req_context.req_id)

    def on_schedule_end(self, context: Any) -> None:
        """Sends this step's look-ups."""
        if self._side is not None:
            self._side.step_ended(context.preempted_req_ids)

    def touch(self, keys: Collection[Any], req_context: Any) -> None:
        """Chunks were used."""
        if self._side is not None:
            self._side.touch(keys)

    def shutdown(self) -> None:
        """Ends thread and session; nothing touches the CPU tier any more when this returns."""
        if self._side is not None:
            self._side.close()
        if self._rows is not None:
            self._rows.close()

    def counters(self) -> dict[str, float]:
        """What the tier counted since it was made, by the names of `counters.COUNTERS`."""
        return self._stats.totals()


def _result(result: Result) -> JobResult:
    told = {"successful_keys": result.loaded, "transfer_time": result.seconds}
    known = {name: value for name, value in told.items() if name in RESULT_FIELDS}
    if result.success or not result.loaded:
        known.pop("successful_keys", None)
    return JobResult(job_id=result.job, success=result.success, **known)


def _dtype(name: str) -> Any:
    """Torch's type of a chunk's numbers; of one that it does not know, chunks are compared by their bytes."""
    import torch

    found = getattr(torch, name, None)
    return found if isinstance(found, torch.dtype) else SimpleNamespace(is_floating_point=False)
