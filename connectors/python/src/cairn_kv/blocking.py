"""The blocking half of a session, for engines that look up synchronously (SGLang, TensorRT-LLM, a notebook).

Each call submits, waits for its own completion, and gives it; an error stands in it, nothing is raised for it. The wait
is bounded: a look-up's to its time-out exactly, a job's to its deadline and the time that making its rows safe takes.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from cairn_kv import limits
from cairn_kv.calls import Sink
from cairn_kv.completions import (
    CancelDone,
    Completion,
    EndRequestDone,
    FillRefused,
    FlushDone,
    HintDone,
    LoadDone,
    LookupDone,
    PrefetchDone,
    PrefetchOffered,
    ProveDone,
    StatsDone,
    StoreDone,
    StoreOffered,
)
from cairn_kv.errors import ErrorCode, Failure
from cairn_kv.keys import Buffer, Keys, Rows
from cairn_kv.submit import SubmitCalls
from cairn_kv.window import Window

Done = TypeVar("Done", bound=Completion)
_GUARD_SECONDS: Final = 1.0
"""The reader thread ends calls at their deadlines; a blocking call waits this much longer for it to do so."""


class StoreResult(msgspec.Struct, frozen=True):
    """What a blocking `store` gives: the daemon's answer to the offer (None: refused), and the end of the job."""

    offered: StoreOffered | None
    done: StoreDone


class BlockingCalls(SubmitCalls):
    """Calls that wait for their completion."""

    def lookup(
        self,
        request_id: int,
        keys: Keys,
        *,
        timeout_seconds: float = limits.CALL_SECONDS,
        namespace: int = 0,
        keep_chain: bool = False,
        lease: bool = True,
        prefill_tokens_per_second: int = 0,
    ) -> LookupDone:
        """Return the longest readable prefix of a chain, or a miss when time is up. See `submit_lookup`."""

        def submit(sink: Sink) -> int:
            return self.submit_lookup(
                request_id,
                keys,
                namespace=namespace,
                keep_chain=keep_chain,
                lease=lease,
                prefill_tokens_per_second=prefill_tokens_per_second,
                timeout_seconds=timeout_seconds + _GUARD_SECONDS,
                sink=sink,
            )

        return self._wait(submit, LookupDone, timeout_seconds, exact=True)

    def load(
        self,
        window: Window,
        lease: int,
        start_depth: int,
        keys: Keys,
        rows: Rows,
        *,
        shard: int = 0,
        deadline_ms: int = 0,
    ) -> LoadDone:
        """Copy leased blocks into rows and wait for them. See `submit_load`."""

        def submit(sink: Sink) -> int:
            return self.submit_load(
                window, lease, start_depth, keys, rows, shard=shard, deadline_ms=deadline_ms, sink=sink
            )

        return self._wait(submit, LoadDone, (deadline_ms or limits.LOAD_DEADLINE_MS) / 1_000)

    def store(
        self,
        window: Window,
        start_depth: int,
        parent_key: Buffer | None,
        keys: Keys,
        rows: Sequence[int],
        *,
        gather: Callable[[int, memoryview], None] | None = None,
        generation: int | None = None,
        lease: int = 0,
        shard: int = 0,
        deadline_ms: int = 0,
    ) -> StoreResult:
        """Offer blocks, gather what is wanted, and wait until they are visible. See `submit_store`.

        With `gather(index, row)` it is called for each wanted block and writes its bytes into the row; without, the
        bytes lie in the rows already and `generation` is what the window's was before they were put there.

        Raises:
            ValueError: both or neither of gather and generation.

        """
        if (gather is None) == (generation is None):
            raise ValueError("either gather, or generation for rows that are filled")
        inbox: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        ready = rows if gather is None else None
        tag = self.submit_store(
            window,
            start_depth,
            parent_key,
            keys,
            rows=ready,
            generation=generation,
            lease=lease,
            shard=shard,
            deadline_ms=deadline_ms,
            sink=inbox.put,
        )
        live = self._link.live
        fill_ms = limits.LOAD_DEADLINE_MS if live is None else live.hello.limits.store_fill_ms
        seconds = max(fill_ms, deadline_ms) / 1_000
        offered: StoreOffered | None = None
        while True:
            said = self.take(inbox, tag, seconds)
            if isinstance(said, StoreDone):
                return StoreResult(offered, said)
            if isinstance(said, FillRefused):
                self.submit_cancel(tag, sink=drop_completion)
            elif isinstance(said, StoreOffered):
                offered = said
                if said.final:
                    return StoreResult(said, StoreDone(tag=tag))
                if gather is not None and said.wanted > 0:
                    self._fill(window, tag, said, rows, gather, inbox.put)

    def _fill(
        self,
        window: Window,
        tag: int,
        offered: StoreOffered,
        rows: Sequence[int],
        gather: Callable[[int, memoryview], None],
        sink: Sink,
    ) -> None:
        wanted = offered.wanted_indices()
        try:
            for index in wanted:
                gather(index, window.row(rows[index]))
        except BaseException:
            self.submit_cancel(tag, sink=drop_completion)
            raise
        self.submit_fill(tag, wanted, [rows[index] for index in wanted], sink=sink)

    def prefetch(
        self,
        *,
        request_id: int | None = None,
        lease: int = 0,
        keys: Keys | None = None,
        namespace: int = 0,
        deadline_ms: int = 0,
        priority: int = 1,
    ) -> PrefetchDone:
        """Bring a chain into DRAM and wait for it; refused: none resident. See `submit_prefetch`."""
        inbox: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        tag = self.submit_prefetch(
            request_id=request_id,
            lease=lease,
            keys=keys,
            namespace=namespace,
            deadline_ms=deadline_ms,
            priority=priority,
            sink=inbox.put,
        )
        seconds = (deadline_ms or limits.LOAD_DEADLINE_MS) / 1_000
        while True:
            said = self.take(inbox, tag, seconds)
            if isinstance(said, PrefetchDone):
                return said
            if isinstance(said, PrefetchOffered) and said.final:
                return PrefetchDone(tag=tag, error=Failure(ErrorCode.TIER_UNAVAILABLE, said.reason))

    def cancel(self, tag: int) -> CancelDone:
        """Cancel a job and wait until no byte of it lands any more."""
        return self._wait(lambda sink: self.submit_cancel(tag, sink=sink), CancelDone, limits.CALL_SECONDS)

    def flush(self, *, timeout_seconds: float = limits.CALL_SECONDS) -> FlushDone:
        """Wait until no job of this session is in flight."""
        return self._wait(
            lambda sink: self.submit_flush(timeout_seconds=timeout_seconds, sink=sink), FlushDone, timeout_seconds
        )

    def prove(self, key: Buffer, *, ok: bool, namespace: int = 0) -> ProveDone:
        """Give the verdict on a look-up's proof and wait for the answer."""
        return self._wait(
            lambda sink: self.submit_prove(key, ok=ok, namespace=namespace, sink=sink),
            ProveDone,
            limits.CALL_SECONDS,
        )

    def hint(self, key: Buffer, kind: str, *, ttl_ms: int | None = None, value: float | None = None) -> HintDone:
        """Advise the daemon on a chain and wait for the answer. See `submit_hint`."""
        return self._wait(
            lambda sink: self.submit_hint(key, kind, ttl_ms=ttl_ms, value=value, sink=sink),
            HintDone,
            limits.CALL_SECONDS,
        )

    def stats(self) -> StatsDone:
        """Return what the daemon knows of this instance and the node."""
        return self._wait(lambda sink: self.submit_stats(sink=sink), StatsDone, limits.CALL_SECONDS)

    def end_request_and_wait(self, request_id: int) -> EndRequestDone:
        """End a request and wait until the daemon has done so."""
        return self._wait(
            lambda sink: self.submit_end_request(request_id, sink=sink), EndRequestDone, limits.CALL_SECONDS
        )

    def _wait(self, submit: Callable[[Sink], int], kind: type[Done], seconds: float, *, exact: bool = False) -> Done:
        """Submit a call and wait for its one completion; `exact`: give up at the deadline itself."""
        inbox: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        tag = submit(inbox.put)
        done = self.take(inbox, tag, seconds, exact=exact)
        if not isinstance(done, kind):
            raise TypeError(f"{type(done).__name__} where {kind.__name__} was expected")
        return done

    def take(
        self, inbox: queue.SimpleQueue[Completion], tag: int, seconds: float, *, exact: bool = False
    ) -> Completion:
        """Take the next completion of a call submitted with `inbox.put` as its sink, or end it with its deadline.

        The reader thread ends calls in time; a job's only after its rows are safe, which may take it a while. Waiting
        longer than that for it would mean that it is gone.
        """
        if self._link.on_thread():
            raise RuntimeError("the reader thread cannot wait for itself: submit instead")
        patience = 0.0 if exact else limits.COMPLETION_GRACE_SECONDS + _GUARD_SECONDS
        try:
            return inbox.get(timeout=seconds + patience)
        except queue.Empty:
            call = self._link.time_out(tag)
        if call is not None:
            self._link.statistics.deadlines_exceeded += 1
            call.fail(Failure(ErrorCode.DEADLINE_EXCEEDED, "the daemon did not answer in time"))
        return inbox.get(timeout=limits.REGISTER_SECONDS)


def drop_completion(_completion: Completion) -> None:
    """Take a completion that nobody waits for."""
