"""A worker's half: at a step's begin it copies staged blocks in, at its end it copies complete blocks out.

Both happen in the engine's own hooks and in the order of its stream, so nothing refers to a block of the engine once a
hook has returned (pool.py): a request may end, be preempted or be reset at any time, and no fence is needed. That is
also why nothing is ever loaded or saved asynchronously in the engine's sense, and `get_finished` has nothing to say.

Talking to the daemon is left to one thread: it waits until a step's blocks have arrived in their slots, copies them to
the window's rows of the same numbers, and offers them. A row is free again when the daemon has ended with it, or at
once if there is none; either way the rank says so in the mailbox, which is what paces the scheduler.

The engine may show a step twice, may leave one out, and may run no forward pass for one. So a step's loads are done
once, and what it was to store or to prove is let go when the next one comes.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cairn_kv import Session, Window
from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity
from cairn_kv.adapters.proof import comparison_of
from cairn_kv.completions import Completion, StoreDone, StoreOffered
from cairn_kv.errors import CairnError
from cairn_kv.protocol import StoreStatus

from .mailbox import Cell, CutOff, Mirror, Verdict, pack_verdict
from .metadata import ProofPlan, Step, StorePlan
from .pool import BlockPool, copy_bytes

log = logging.getLogger("cairn_kv.tensorrt_llm")


@dataclass(eq=False)
class _Store:
    plan: StorePlan
    slots: list[int]
    arrived: Callable[[], None]


@dataclass(eq=False)
class _Proof:
    plan: ProofPlan
    slot: int
    arrived: Callable[[], None]


class WorkerSide:
    """One rank of one engine."""

    def __init__(
        self, identity: Identity, rank: int, session: Session, window: Window, pool: BlockPool, stats: CairnStats
    ) -> None:
        self._identity = identity
        self._shard = identity.shard_of(rank)
        self._stores_here = identity.stores(rank)
        self._session = session
        self._window = window
        self._pool = pool
        self._stats = stats
        self._mirror = Mirror(rank)
        self._serial = 0
        self._loads = 0
        #: Number of the last proof that was shown, or is known to be missed.
        self._proof = 0
        self._unsaved: Step | None = None
        # Below: shared with the other threads, under the lock.
        self._lock = threading.Lock()
        self._free = list(range(window.blocks))
        #: Rows out of the credit of all steps so far, and those of them that plans still hold.
        self._rows = 0
        self._held = 0
        self._jobs: queue.SimpleQueue[_Store | _Proof | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cairn-store", daemon=True)
        self._thread.start()

    # The engine's thread.

    def begin(self, step: Step, stream: Any) -> None:
        """Before the step's forward pass: what was staged goes into the engine's blocks."""
        if step.serial <= self._serial:
            return
        assert step.loads_before == self._loads, "the engine left out a step with loads: its requests have no blocks"
        self._serial, self._loads = step.serial, step.loads_before + len(step.loads)
        self._let_go()
        self._unsaved = step
        self._mirror.follow(step.source)
        self._account(step)
        if step.proof_before != self._proof:  # The scheduler waits for a verdict on it, and begins no other before.
            self._verdict(step.proof_before, Verdict.UNKNOWN)
        self._proof = step.proofs[-1].number if step.proofs else step.proof_before
        for load in step.loads:
            offsets = load.offsets[self._shard]
            rows = [self._mirror.piece(load.memory, offset, self._identity.row_bytes) for offset in offsets]
            self._pool.write(rows, load.block_ids, stream)
        self._mirror.write(Cell.COPIED, step.serial)

    def finish(self, stream: Any) -> None:
        """After the step's forward pass was put on the stream: its complete blocks are copied out."""
        step, self._unsaved = self._unsaved, None
        if step is None:
            return
        for proof in step.proofs:
            slots = self._take(1)
            if slots:
                self._jobs.put(_Proof(proof, slots[0], self._pool.read([proof.block_id], slots, stream)))
            else:
                self._verdict(proof.number, Verdict.UNKNOWN)
                self._release(1, [])
        for plan in step.stores:
            count = len(plan.block_ids)
            slots = self._take(count) if self._stores_here else []
            if slots:
                self._jobs.put(_Store(plan, slots, self._pool.read(plan.block_ids, slots, stream)))
            else:
                self._stats.add("shed_blocks", count if self._stores_here else 0)
                self._release(count, [])

    def close(self) -> None:
        """Ends the thread and the session."""
        self._jobs.put(None)
        self._thread.join(timeout=5)
        self._session.close()

    def _let_go(self) -> None:
        """The step before ran no forward pass: nothing of it is complete."""
        step, self._unsaved = self._unsaved, None
        if step is None:
            return
        for proof in step.proofs:
            self._verdict(proof.number, Verdict.UNKNOWN)
        self._release(step.rows, [])

    def _take(self, count: int) -> list[int]:
        with self._lock:
            if len(self._free) < count:
                return []
            return [self._free.pop() for _ in range(count)]

    # Any thread.

    def _account(self, step: Step) -> None:
        """The step's rows are held from here on. Those of steps that were never shown are not."""
        with self._lock:
            self._rows = step.rows_before + step.rows
            self._held += step.rows
            self._mirror.write(Cell.RELEASED, self._rows - self._held)

    def _release(self, count: int, slots: list[int]) -> None:
        """``count`` blocks of plans need no row any more; ``slots`` are those that they had."""
        with self._lock:
            self._free += slots
            self._held -= count
            self._mirror.write(Cell.RELEASED, self._rows - self._held)

    def _verdict(self, number: int, verdict: Verdict) -> None:
        self._mirror.write(Cell.VERDICT, pack_verdict(number, verdict))

    # The connector's thread.

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            slots = job.slots if isinstance(job, _Store) else [job.slot]
            try:
                job.arrived()
                if isinstance(job, _Store):
                    self._offer(job)
                else:
                    self._verdict(job.plan.number, self._compare(job))
                    self._release(1, slots)
            except Exception:
                log.exception("cairn: a fault in the connector: some blocks are not stored")
                if isinstance(job, _Proof):
                    self._verdict(job.plan.number, Verdict.UNKNOWN)
                self._release(len(slots), slots)

    def _compare(self, job: _Proof) -> Verdict:
        offset = job.plan.offsets[self._shard]
        stored = self._mirror.piece(job.plan.memory, offset, self._identity.row_bytes)
        same = comparison_of(self._pool.dtype)(stored, bytes(self._pool.slot(job.slot)))
        return Verdict.SAME if same else Verdict.DIFFERENT

    def _offer(self, job: _Store) -> None:
        plan, slots = job.plan, job.slots
        generation = self._window.generation
        for slot in slots:
            copy_bytes(self._pool.slot(slot), self._window.row(slot))

        def ended(done: Completion) -> None:
            if isinstance(done, StoreOffered):
                if done.parent_absent:
                    self._stats.add("parent_absent", 1)
                    with self._lock:
                        self._mirror.note_cut_off(CutOff(plan.chain, done.resident_depth))
                stored = sum(status == StoreStatus.PRESENT for status in done.statuses)
                if not done.final:
                    self._stats.add("stored_blocks", stored)
                    return
            elif isinstance(done, StoreDone):
                stored = done.landed
                self._stats.add("stored_bytes", stored * self._identity.row_bytes)
            else:
                return
            self._stats.add("stored_blocks", stored)
            self._release(len(slots), slots)

        try:
            self._session.submit_store(
                self._window,
                plan.start_depth,
                plan.parent_key or None,
                plan.keys,
                rows=slots,
                generation=generation,
                shard=self._shard,
                sink=ended,
            )
        except CairnError:  # Too many calls wait: what is not stored is a later miss.
            self._stats.add("shed_blocks", len(slots))
            self._release(len(slots), slots)
