"""A worker's half: copies blocks between the engine's tensors and the daemon's window, beside the engine's steps.

The engine's thread only puts plans into queues and takes results out; one thread of the connector talks to the daemon
and copies. What makes that safe:

* A store reads blocks of requests that still hold them. A finished request's blocks are kept by the engine until it
  is reported as sent, which happens once nothing of it is left to copy. A preempted request's blocks are fenced: the
  engine's thread marks its stores as void under the same lock under which each single block is copied, so when it
  returns, no copy of them is running and none will begin.
* A load writes blocks of a request that waits for it; the engine keeps them until the load is reported, once,
  whatever became of it. Blocks that did not arrive verified are reported as failed, and their content is not touched.
* Rows of the window belong to one job at a time. A daemon that dies ends every job at once; one that hangs ends each
  at its deadline.

What does not fit the queue is shed and counted: a store that is dropped is a later miss and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity

from .metadata import CairnMetadata, CairnWorkerMetadata, LoadPlan, ProofOutcome, ProofPlan, StoreOutcome, StorePlan
from .rows import BlockRows

log = logging.getLogger("cairn_kv.vllm")

#: Share of the rows that only loads may take.
LOAD_SHARE = 0.25
#: Blocks of one LOAD: small enough that copying the first overlaps reading the next.
PIECE_BYTES = 8 << 20
#: Blocks waiting to be stored, in windows; more are shed.
QUEUE_WINDOWS = 4
STORES_IN_FLIGHT_MAX = 16
#: Fewer rows than these cannot be shared out between loads and stores.
ROWS_MIN = 8
#: The connector's thread looks after itself this often while nothing happens.
IDLE_SECONDS = 0.25


@dataclass
class LoadDone:
    """A LOAD ended: positions that did not arrive verified."""

    tag: int
    failed: set[int]


@dataclass
class StoreReply:
    """The daemon's answer to an offer: positions it wants, positions another one is storing, where it is full."""

    tag: int
    job: int
    wanted: list[int]
    pending: int
    accepted: int
    parent_absent: bool
    resident: int


@dataclass
class StoreDone:
    """A STORE ended: positions of wanted and pending blocks that are not visible."""

    tag: int
    failed: set[int]


Event = LoadDone | StoreReply | StoreDone


class WorkerLink(Protocol):
    """What a worker's half needs of a session.

    Every submitted LOAD and STORE ends in exactly one event (a STORE in its reply, and in StoreDone if that left
    something wanted or pending), also when the daemon is lost.
    """

    @property
    def served(self) -> bool | None:
        """Whether the daemon has the window; None while there is no daemon."""

    def load(self, lease: int, start_depth: int, keys: bytes, rows: list[int]) -> int | None:
        """Loads blocks into rows; its tag, or None if it cannot be sent."""

    def store(self, lease: int, start_depth: int, parent_key: bytes, keys: bytes, count: int) -> int | None:
        """Offers blocks; its tag, or None if it cannot be sent."""

    def fill(self, job: int, places: list[tuple[int, int]]) -> None:
        """Position and row of blocks whose bytes lie in the window now."""

    def cancel(self, job: int) -> None:
        """Gives up what was not filled."""

    def prove(self, key: bytes, same: bool) -> None:
        """The verdict on a stored block."""

    def row(self, row: int) -> memoryview:
        """A row's bytes."""

    def wait(self, seconds: float) -> list[Event]:
        """What ended since the last call; returns early when something did, or after wake()."""

    def wake(self) -> None:
        """Ends a wait() from another thread."""

    def close(self) -> None:
        """Ends the session."""


@dataclass(eq=False)
class _Load:
    plan: LoadPlan
    begun: float
    next: int = 0
    in_flight: int = 0
    failed: set[int] = field(default_factory=set)


@dataclass(eq=False)
class _Piece:
    load: _Load
    first: int
    rows: list[int]


@dataclass(eq=False)
class _Plan:
    """A StorePlan on its way: cut into offers that fit the window, ended one after the other."""

    plan: StorePlan
    #: Acknowledged down to this depth.
    visible: int
    #: Blocks whose bytes will not be read any more, and blocks whose offers ended.
    read: int = 0
    ended: int = 0
    resident: int | None = None
    #: An earlier offer fell short: a chain has no gaps, so the later ones are not made.
    cut: bool = False


@dataclass(eq=False)
class _Offer:
    plan: _Plan
    first: int
    count: int
    reply: StoreReply | None = None
    rows: list[int] = field(default_factory=list)
    read: bool = False


@dataclass(eq=False)
class _Proof:
    plan: ProofPlan
    computed: bytes
    row: int


class WorkerSide:
    """One worker of one engine."""

    def __init__(
        self,
        identity: Identity,
        rank: int,
        link: WorkerLink,
        rows: int,
        copies: BlockRows,
        same: Callable[[memoryview, bytes], bool],
        stats: CairnStats,
    ) -> None:
        """``same`` compares a stored row with a computed one, for proofs."""
        assert rows >= ROWS_MIN
        self._identity = identity
        self._rank, self._served = rank, True
        self._stores_here = identity.stores(rank)
        self._link = link
        self._copies = copies
        self._same = same
        self._stats = stats
        self._free = list(range(rows))
        self._load_rows = max(1, int(rows * LOAD_SHARE))
        self._piece_blocks = max(1, min(rows // 4, PIECE_BYTES // identity.row_bytes))
        self._queue_blocks_max = QUEUE_WINDOWS * rows
        # Below: shared with the engine's thread, under the lock.
        self._lock = threading.Lock()
        self._inbox: deque[LoadPlan | StorePlan | ProofPlan] = deque()
        self._queued_blocks = 0
        #: Plans of each request whose blocks may still be read, and those of them that no longer may.
        self._reading: dict[str, set[int]] = {}
        self._void: set[int] = set()
        self._fencing = False
        self._awaited: set[str] = set()
        self._received: set[str] = set()
        self._failed_blocks: set[int] = set()
        self._report = CairnWorkerMetadata()
        #: Serial of each store and proof whose outcome is still to be reported.
        self._unreported: dict[int, StorePlan | ProofPlan] = {}
        # Below: the connector's thread alone.
        #: Loads that have not ended, and of those the ones that still have blocks to ask for.
        self._begun: list[_Load] = []
        self._loads: deque[_Load] = deque()
        self._pieces: dict[int, _Piece] = {}
        self._offers: deque[_Offer] = deque()
        self._offered: dict[int, _Offer] = {}
        self._hungry: deque[_Offer] = deque()
        self._proofs: dict[int, _Proof] = {}
        self._stopping = False
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="cairn-worker", daemon=True)
        self._thread.start()

    # The engine's thread.

    def fence(self, metadata: CairnMetadata) -> None:
        """After this, nothing reads blocks of the preempted requests."""
        if not metadata.preempted:
            return
        self._fencing = True  # A lock is not fair: between two blocks the copying thread lets this one go first.
        with self._lock:
            self._fencing = False
            for request_id in metadata.preempted:
                self._void |= self._reading.get(request_id, set())
        self._link.wake()

    def begin_loads(self, metadata: CairnMetadata) -> None:
        """This step's loads; they end in some later step's finished()."""
        self._put(list(metadata.loads))

    def begin_stores(self, metadata: CairnMetadata) -> None:
        """This step's stores and proofs; their blocks are complete."""
        plans: list[StorePlan | ProofPlan] = list(metadata.proofs)
        if self._stores_here:
            plans += [plan for plan in metadata.stores if self._admit(plan)]
        with self._lock:
            self._awaited |= metadata.awaited
            for plan in plans:
                self._reading.setdefault(plan.request_id, set()).add(plan.serial)
                self._unreported[plan.serial] = plan
        self._put(plans)

    def finished(self) -> tuple[set[str], set[str]]:
        """(requests of which nothing is left to copy, of those the engine waits for; requests whose load ended)."""
        with self._lock:
            sent = {request_id for request_id in self._awaited if request_id not in self._reading}
            self._awaited -= sent
            received, self._received = self._received, set()
            return sent, received

    def failed_blocks(self) -> set[int]:
        """Blocks of loads that ended since the last call and did not arrive."""
        with self._lock:
            failed, self._failed_blocks = self._failed_blocks, set()
            return failed

    def report(self) -> CairnWorkerMetadata | None:
        """Outcomes since the last call, for the scheduler's half."""
        with self._lock:
            report, self._report = self._report, CairnWorkerMetadata()
        served = False if self._broken else self._link.served
        if served is not None and served != self._served:
            report.windows[self._rank] = self._served = served
        return report if report.stores or report.proofs or report.windows else None

    @property
    def broken(self) -> bool:
        """Whether a fault ended this half: nothing is copied any more, and all that was under way counts as failed."""
        return self._broken

    def close(self) -> None:
        """Ends the thread and the session."""
        self._stopping = True
        self._link.wake()
        self._thread.join(timeout=5)
        self._link.close()

    def _put(self, plans: list[Any]) -> None:
        if not plans:
            return
        with self._lock:
            self._inbox.extend(plans)
        self._link.wake()

    def _admit(self, plan: StorePlan) -> bool:
        with self._lock:
            if self._queued_blocks + len(plan.block_ids) <= self._queue_blocks_max:
                self._queued_blocks += len(plan.block_ids)
                return True
            self._report.stores[plan.serial] = StoreOutcome(plan.start_depth)
        self._stats.add("shed_blocks", len(plan.block_ids))
        return False

    # The connector's thread.

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception:
                log.exception("cairn: a fault in the connector: it stores and loads nothing from here on")
                self._break()

    def _break(self) -> None:
        """After a fault nothing is trusted: the session ends, and everything under way and to come counts as failed."""
        self._broken = True
        self._link.close()
        for load in self._begun:
            self._fail_load(load.plan)
        with self._lock:
            inbox, self._inbox = self._inbox, deque()
            unreported = list(self._unreported.values())
        for plan in inbox:
            if isinstance(plan, LoadPlan):
                self._fail_load(plan)
        for owed in unreported:
            self._give_up(owed)
        with self._lock:
            self._reading.clear()
        self._begun.clear()
        self._loads.clear()
        self._pieces.clear()
        self._offers.clear()
        self._offered.clear()
        self._hungry.clear()
        self._proofs.clear()

    def _give_up(self, plan: LoadPlan | StorePlan | ProofPlan) -> None:
        """What a fault ended, or what comes after it."""
        if isinstance(plan, LoadPlan):
            self._fail_load(plan)
            return
        with self._lock:
            self._reading.pop(plan.request_id, None)
        if isinstance(plan, StorePlan):
            self._tell(plan, StoreOutcome(plan.start_depth))
        else:
            self._verdict(plan, None)

    def _tell(self, plan: StorePlan, outcome: StoreOutcome) -> None:
        with self._lock:
            self._unreported.pop(plan.serial, None)
            self._report.stores[plan.serial] = outcome

    def _fail_load(self, plan: LoadPlan) -> None:
        with self._lock:
            self._failed_blocks.update(plan.block_ids)
            self._received.add(plan.request_id)

    def _turn(self) -> None:
        if self._broken:
            time.sleep(IDLE_SECONDS / 10)
        for event in [] if self._broken else self._link.wait(IDLE_SECONDS):
            if isinstance(event, LoadDone):
                self._load_done(event)
            elif isinstance(event, StoreReply):
                self._store_reply(event)
            else:
                self._store_done(event)
        while (plan := self._next()) is not None:
            self._take(plan)
        self._go_on()

    def _next(self) -> LoadPlan | StorePlan | ProofPlan | None:
        with self._lock:
            return self._inbox.popleft() if self._inbox else None

    def _take(self, plan: LoadPlan | StorePlan | ProofPlan) -> None:
        if self._broken:
            self._give_up(plan)
        elif isinstance(plan, LoadPlan):
            load = _Load(plan, time.monotonic())
            self._begun.append(load)
            self._loads.append(load)
        elif isinstance(plan, ProofPlan):
            self._begin_proof(plan)
        else:
            whole = _Plan(plan, visible=plan.start_depth)
            for first in range(0, len(plan.block_ids), self._piece_blocks):
                count = min(self._piece_blocks, len(plan.block_ids) - first)
                self._offers.append(_Offer(whole, first, count))

    def _go_on(self) -> None:
        """Whatever rows and places allow: loads first, then offers that wait for rows, then new offers."""
        while self._loads and self._free:
            load = self._loads[0]
            self._load_piece(load)
            if load.next >= len(load.plan.block_ids):
                self._loads.popleft()
                self._load_maybe_ended(load)
        while self._hungry:
            offer = self._hungry[0]
            assert offer.reply is not None
            if len(self._free) - len(offer.reply.wanted) < self._load_rows and not self._is_void(offer.plan.plan):
                break
            self._hungry.popleft()
            self._fill(offer)
        while self._offers and len(self._offered) < STORES_IN_FLIGHT_MAX:
            self._offer(self._offers.popleft())

    # Loads.

    def _load_piece(self, load: _Load) -> None:
        first, plan = load.next, load.plan
        count = min(self._piece_blocks, len(plan.block_ids) - first, len(self._free))
        rows = [self._free.pop() for _ in range(count)]
        key_bytes = self._identity.key_bytes
        keys = plan.keys[first * key_bytes : (first + count) * key_bytes]
        load.next = first + count
        tag = self._link.load(plan.lease, plan.start_depth + first, keys, rows)
        if tag is None:
            self._free += rows
            load.failed.update(range(first, first + count))
            return
        load.in_flight += 1
        self._pieces[tag] = _Piece(load, first, rows)

    def _load_done(self, event: LoadDone) -> None:
        proof = self._proofs.pop(event.tag, None)
        if proof is not None:
            self._proof_done(proof, event)
            return
        piece = self._pieces.pop(event.tag)
        load = piece.load
        for index, row in enumerate(piece.rows):
            at = piece.first + index
            if index in event.failed:
                load.failed.add(at)
            else:
                self._copies.scatter(row, load.plan.block_ids[at])
        self._free += piece.rows
        load.in_flight -= 1
        self._load_maybe_ended(load)

    def _load_maybe_ended(self, load: _Load) -> None:
        blocks = load.plan.block_ids
        if load.in_flight > 0 or load.next < len(blocks):
            return
        self._begun.remove(load)
        arrived = len(blocks) - len(load.failed)
        self._stats.add("loaded_blocks", arrived)
        self._stats.add("loaded_bytes", arrived * self._identity.row_bytes)
        self._stats.add("failed_load_blocks", len(load.failed))
        self._stats.observe("load_seconds", time.monotonic() - load.begun)
        with self._lock:
            self._failed_blocks.update(blocks[at] for at in load.failed)
            self._received.add(load.plan.request_id)

    # Stores.

    def _offer(self, offer: _Offer) -> None:
        plan = offer.plan.plan
        if offer.plan.cut or self._is_void(plan):
            self._offer_ended(offer, offer.first)
            return
        key_bytes = self._identity.key_bytes
        keys = plan.keys[offer.first * key_bytes : (offer.first + offer.count) * key_bytes]
        parent = (
            plan.parent_key if offer.first == 0 else plan.keys[(offer.first - 1) * key_bytes : offer.first * key_bytes]
        )
        tag = self._link.store(plan.lease, plan.start_depth + offer.first, parent, keys, offer.count)
        if tag is None:
            self._offer_ended(offer, offer.first)
            return
        self._offered[tag] = offer

    def _store_reply(self, reply: StoreReply) -> None:
        offer = self._offered[reply.tag]
        offer.reply = reply
        if reply.parent_absent:
            offer.plan.resident = reply.resident
        if reply.accepted < offer.count:
            offer.plan.cut = True
        if reply.wanted:
            self._hungry.append(offer)
            return
        self._reading_ended(offer)
        if reply.pending == 0:
            del self._offered[reply.tag]
            self._offer_ended(offer, offer.first + reply.accepted)

    def _fill(self, offer: _Offer) -> None:
        """Copies the wanted blocks into rows and tells the daemon."""
        reply = offer.reply
        assert reply is not None
        block_ids = offer.plan.plan.block_ids
        places: list[tuple[int, int]] = []
        for position in reply.wanted:
            while self._fencing:
                time.sleep(0)
            with self._lock:
                if offer.plan.plan.serial in self._void:
                    break
                row = self._free.pop()
                self._copies.gather(block_ids[offer.first + position], row)
            places.append((position, row))
        offer.rows = [row for _, row in places]
        if places:
            self._link.fill(reply.job, places)
        if len(places) < len(reply.wanted):
            self._link.cancel(reply.job)
        self._stats.add("stored_bytes", len(places) * self._identity.row_bytes)
        self._reading_ended(offer)

    def _store_done(self, event: StoreDone) -> None:
        offer = self._offered.pop(event.tag)
        if offer in self._hungry:
            self._hungry.remove(offer)
        reply = offer.reply
        accepted = reply.accepted if reply is not None else 0
        self._free += offer.rows
        visible = min(event.failed, default=accepted)
        self._offer_ended(offer, offer.first + min(visible, accepted))

    def _offer_ended(self, offer: _Offer, visible: int) -> None:
        """``visible``: positions of the plan, from its start, that are acknowledged if all before them are."""
        whole = offer.plan
        self._reading_ended(offer)
        whole.ended += offer.count
        start = whole.plan.start_depth
        if whole.visible == start + offer.first:
            whole.visible = max(whole.visible, start + visible)
        if visible < offer.first + offer.count:
            whole.cut = True
        if whole.ended < len(whole.plan.block_ids):
            return
        self._stats.add("stored_blocks", whole.visible - start)
        self._tell(whole.plan, StoreOutcome(whole.visible, whole.resident))

    def _reading_ended(self, offer: _Offer) -> None:
        """Nothing of this offer will be copied any more."""
        if offer.read:
            return
        offer.read = True
        whole = offer.plan
        whole.read += offer.count
        if whole.read == len(whole.plan.block_ids):
            self._release(whole.plan)

    def _release(self, plan: StorePlan | ProofPlan) -> None:
        """The plan reads nothing any more: its request's blocks may be given away as far as it is concerned."""
        with self._lock:
            serials = self._reading.get(plan.request_id, set())
            serials.discard(plan.serial)
            if not serials:
                self._reading.pop(plan.request_id, None)
            self._void.discard(plan.serial)
            if isinstance(plan, StorePlan):
                self._queued_blocks -= len(plan.block_ids)

    def _is_void(self, plan: StorePlan | ProofPlan) -> bool:
        with self._lock:
            return plan.serial in self._void

    # Proofs.

    def _begin_proof(self, plan: ProofPlan) -> None:
        """Copies what the engine computed, then reads what is stored into the same row."""
        computed = b""
        row = self._free.pop() if self._free else None
        if row is not None:
            with self._lock:
                if plan.serial not in self._void:
                    self._copies.gather(plan.block_id, row)
                    computed = bytes(self._link.row(row)[: self._identity.row_bytes])
        self._release(plan)
        if row is None or not computed:
            self._free += [] if row is None else [row]
            self._verdict(plan, None)
            return
        tag = self._link.load(plan.lease, plan.depth - 1, plan.key, [row])
        if tag is None:
            self._free.append(row)
            self._verdict(plan, None)
            return
        self._proofs[tag] = _Proof(plan, computed, row)

    def _proof_done(self, proof: _Proof, event: LoadDone) -> None:
        same: bool | None = None
        if not event.failed:
            stored = self._link.row(proof.row)[: self._identity.row_bytes]
            same = self._same(stored, proof.computed)
        self._free.append(proof.row)
        if same is not None and self._identity.shards == 1:
            # At once, not by way of the next step: the next request shall find what is stored.
            self._link.prove(proof.plan.key, same)
        self._verdict(proof.plan, same)

    def _verdict(self, plan: ProofPlan, same: bool | None) -> None:
        with self._lock:
            self._unreported.pop(plan.serial, None)
            self._report.proofs[plan.request_id] = ProofOutcome(plan.request_id, same)
