"""The scheduler's half: what is there, what to load, what to store.

Everything here runs inside the engine's scheduling loop, so nothing waits. A look-up is sent when a request arrives;
while its answer is under way the engine is told to ask again (None), and after `lookup_timeout_seconds` the answer is
a miss. Two facts per request carry the rest:

``acked``     the daemon has said that it holds the chain down to this depth;
``offered``   blocks up to this depth were offered once, and are acknowledged, on their way, or refused.

New blocks are offered behind ``offered`` while earlier ones are on their way, and behind ``acked`` when none are: what
was refused meanwhile (a full daemon, a full queue) goes along, since nothing can be stored below a gap. The daemon may
also evict a chain's beginning while a request still adds to its end: a store then answers `parentAbsent` with the depth
down to which it holds the chain. Both marks fall back to it, so that the next step offers the blocks again from there,
for as long as the engine still holds them.

A namespace with blocks of an earlier life wants a proof before it answers hits. The first request whose chain meets
such a block is computed by the engine as if nothing were there; the workers then read the stored block, compare, and
the verdict goes to the daemon.

With ``remote_wait_seconds`` a request may wait for blocks that other nodes stored (remote_wait.py).

The engine's request ids are used as names inside this process and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity

from .answers import Answer, Fetched
from .metadata import (
    CairnMetadata,
    CairnWorkerMetadata,
    LoadPlan,
    ProofOutcome,
    ProofPlan,
    StoreOutcome,
    StorePlan,
)
from .remote_wait import FetchLink, RemoteWait, Step, Wait

#: Requests that are looked up at once; one more is computed without asking.
LOOKUPS_MAX = 4_096
#: Ended requests that are kept for the verdict on their proof; the oldest is given up for one more.
GONE_MAX = 64
#: An answer older than this is asked for again before blocks are loaded by it: half of the shortest lease.
ANSWER_SECONDS_MAX = 2.0


class SchedulerLink(FetchLink, Protocol):
    """What the scheduler's half needs of a session; every call returns at once."""

    @property
    def epoch(self) -> str | None:
        """The daemon's life that the session is connected to, None while it is not."""

    def lookup(self, request: int, keys: bytes, *, keep_chain: bool = False) -> int | None:
        """Sends a look-up; its tag, or None if it cannot be sent. ``keep_chain``: a fetch may follow."""

    def answers(self) -> list[Answer | Fetched]:
        """Look-ups answered and fetches ended since the last call; a failed look-up is a miss."""

    def end(self, request: int) -> None:
        """Gives back what the request leased."""

    def prove(self, key: bytes, same: bool) -> None:
        """The verdict on a block that a look-up asked to be proven."""


@dataclass
class Tracker:
    """What is known of one request of the engine."""

    request: Any
    number: int
    keys: bytearray = field(default_factory=bytearray)
    block_ids: list[int] = field(default_factory=list)
    preemptions: int = 0
    tag: int | None = None
    #: A look-up of it could not be sent.
    unavailable: bool = False
    asked_at: float = 0.0
    answer: Answer | None = None
    remote: Wait = field(default_factory=Wait)
    #: Blocks of hits that were counted.
    counted: int = 0
    #: Blocks that the engine had by itself when it was told of the hit.
    local_blocks: int = 0
    acked: int = 0
    offered: int = 0
    loading: bool = False
    load_blocks: list[int] = field(default_factory=list)
    #: Of those, what did not arrive; told in any step up to the one that ends the load.
    lost_blocks: set[int] = field(default_factory=set)
    #: A load of this request failed once: the rest is computed.
    load_failed: bool = False
    #: Serial of each store under way: the depths that it begins and ends at.
    outstanding: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: A proof is under way, which needs the lease.
    proving: bool = False
    finished: bool = False
    #: The engine is done with it; it stays until its proof has ended.
    gone: bool = False

    def holds(self, depth: int) -> None:
        """The daemon said that it holds the chain down to this depth."""
        self.acked = max(self.acked, depth)
        self.offered = max(self.offered, depth)

    def fall_back(self, depth: int) -> None:
        """The daemon holds no more than this of the chain."""
        self.acked = min(self.acked, depth)
        self.offered = min(self.offered, depth)


class SchedulerSide:
    """One engine's scheduler."""

    def __init__(
        self,
        identity: Identity,
        link: SchedulerLink,
        stats: CairnStats,
        lookup_timeout_seconds: float = 0.05,
        load_blocks_min: int = 1,
        remote_wait_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._link = link
        self._stats = stats
        self._lookup_timeout_seconds = lookup_timeout_seconds
        self._load_blocks_min = load_blocks_min
        self._remote = RemoteWait(link, stats, remote_wait_seconds, load_blocks_min, clock)
        self._clock = clock
        self._trackers: dict[str, Tracker] = {}
        self._by_tag: dict[int, Tracker] = {}
        self._owner: dict[int, str] = {}
        self._partial: dict[int, StoreOutcome] = {}
        self._partial_proofs: dict[str, ProofOutcome] = {}
        self._loads: list[LoadPlan] = []
        self._awaited: set[str] = set()
        self._numbers = 0
        self._serials = 0
        self._stopped = False
        #: Ranks whose window the daemon will not have.
        self._unserved: set[int] = set()

    # What the engine asks.

    def new_request(self, request: Any) -> None:
        """A request arrived: its look-up is sent, so that the answer is there when the engine asks."""
        self._ask(self._tracker(request))

    def matched_tokens(self, request: Any, computed_tokens: int) -> tuple[int | None, bool]:
        """(tokens beyond ``computed_tokens`` that can be loaded, whether between steps); None: ask again."""
        tracker = self._tracker(request)
        block_tokens = self._identity.block_tokens
        # The last token is always computed by the engine: it is what the next one is sampled from.
        blocks_max = (int(request.num_tokens) - 1) // block_tokens
        if self._idle or tracker.load_failed or blocks_max * block_tokens <= computed_tokens:
            return 0, False
        self._take_answers()
        answer = self._current_answer(tracker)
        if answer is None and tracker.tag is None:
            self._ask(tracker)
        if tracker.tag is not None:
            if self._clock() - tracker.asked_at <= self._lookup_timeout_seconds:
                return None, False
            self._give_up(tracker)
            if not self._remote.waits(tracker.remote):
                return 0, False
            # A late answer in the middle of the wait loses neither the wait nor what is known to be there.
            self._ask(tracker)
            return (0, False) if tracker.tag is None else (None, False)
        if answer is None:
            return 0, False
        return self._matched(tracker, answer, computed_tokens // block_tokens, blocks_max)

    def _matched(self, tracker: Tracker, answer: Answer, local_blocks: int, blocks_max: int) -> tuple[int | None, bool]:
        tracker.local_blocks = local_blocks
        step = self._remote.step(tracker.remote, tracker.number, answer, local_blocks, blocks_max)
        if step == Step.LOOK_UP:
            self._ask(tracker)
        if step == Step.WAIT or tracker.tag is not None:
            return None, False
        blocks = min(answer.hit, blocks_max) - tracker.local_blocks
        if blocks < self._load_blocks_min:
            return 0, False
        return blocks * self._identity.block_tokens, True

    def allocated(self, request: Any, block_ids: list[int], external_tokens: int) -> None:
        """The engine has given the request blocks; ``external_tokens`` of them are to be loaded."""
        tracker = self._tracker(request)
        tracker.block_ids = list(block_ids)
        answer = tracker.answer
        self._remote.end(tracker.remote)
        if external_tokens == 0:
            # The engine has it all by itself: nothing need stay pinned, and no chain be kept.
            if answer is not None and not tracker.loading and (answer.hit > 0 or _only_waited(tracker, answer)):
                self._link.end(tracker.number)
            return
        assert answer is not None
        assert not tracker.loading
        first = tracker.local_blocks
        count = external_tokens // self._identity.block_tokens
        assert first + count <= answer.hit
        tracker.loading = True
        tracker.load_blocks = tracker.block_ids[first : first + count]
        tracker.lost_blocks = set()
        keys = self._keys(tracker, first, first + count)
        self._loads.append(LoadPlan(request.request_id, answer.lease, first, keys, tracker.load_blocks))
        self._stats.add("load_requests", 1)

    def build_metadata(self, output: Any) -> CairnMetadata:
        """The workers' work of this step."""
        metadata = CairnMetadata(loads=self._loads, awaited=self._awaited)
        self._loads, self._awaited = [], set()
        for request_id in getattr(output, "preempted_req_ids", None) or ():
            metadata.preempted.add(request_id)
            self._stats.add("preempted_requests", 1)
            tracker = self._trackers.get(request_id)
            if tracker is not None:
                tracker.block_ids = []
        for tracker, computed_tokens in self._progress(output):
            scheduled = output.num_scheduled_tokens.get(tracker.request.request_id, 0)
            full = (computed_tokens + scheduled) // self._identity.block_tokens
            self._plan_store(tracker, full, metadata)
            self._plan_proof(tracker, full, metadata)
        return metadata

    def worker_output(self, output: Any) -> None:
        """What the workers reported at the end of a step."""
        failed = set(output.invalid_block_ids or ())
        if failed:
            # A rank tells at once what failed; the load ends when the last rank has ended it, maybe steps later.
            for tracker in self._trackers.values():
                if tracker.loading:
                    tracker.lost_blocks |= failed.intersection(tracker.load_blocks)
        for request_id in output.finished_recving or ():
            self._load_ended(request_id)
        reported = getattr(output, "kv_connector_worker_meta", None)
        if isinstance(reported, CairnWorkerMetadata):
            for serial, outcome in reported.stores.items():
                self._store_ended(serial, outcome)
            for request_id, verdict in reported.proofs.items():
                self._proof_ended(request_id, verdict)
            for rank, served in reported.windows.items():
                (self._unserved.discard if served else self._unserved.add)(rank)
        for request_id in output.finished_sending or ():
            self._let_go(request_id)

    def stop(self) -> None:
        """Nothing is looked up or offered from here on; what is under way ends."""
        self._stopped = True

    @property
    def _idle(self) -> bool:
        """Whether nothing is looked up or offered: stopped, or a worker could neither load nor store."""
        return self._stopped or bool(self._unserved)

    def finished(self, request: Any) -> bool:
        """A request ended. True: its blocks must be kept until the workers have reported it as sent."""
        tracker = self._trackers.get(request.request_id)
        if tracker is None:
            return False
        tracker.finished = True
        if tracker.loading:
            return False  # The engine itself keeps the blocks until the load is reported.
        if tracker.outstanding or tracker.proving:
            self._awaited.add(request.request_id)
            return True
        self._forget(request.request_id)
        return False

    # Look-ups.

    def _tracker(self, request: Any) -> Tracker:
        tracker = self._trackers.get(request.request_id)
        if tracker is not None and tracker.request is not request:
            # Another request under the id of one that ended: that one's chain is not this one's.
            self._forget(request.request_id)
            tracker = None
        if tracker is None:
            self._numbers += 1
            tracker = Tracker(request, self._numbers)
            self._trackers[request.request_id] = tracker
        preemptions = int(getattr(request, "num_preemptions", 0))
        if tracker.preemptions != preemptions:
            # Its blocks were taken: what was known of them is void, and the chain may be in the daemon by now.
            tracker.preemptions = preemptions
            tracker.answer = None
            tracker.counted = 0
            tracker.fall_back(0)
        return tracker

    def _ask(self, tracker: Tracker) -> None:
        keys = b"" if self._idle else self._keys(tracker, 0, len(tracker.request.block_hashes))
        if not keys or len(self._by_tag) >= LOOKUPS_MAX:
            return
        tag = self._link.lookup(tracker.number, keys, keep_chain=self._remote.waits(tracker.remote))
        if tag is None:
            # The engine asks at every step; a request counts once.
            self._stats.add("lookups_unavailable", 0 if tracker.unavailable else 1)
            tracker.unavailable = True
            return
        tracker.tag, tracker.asked_at, tracker.answer = tag, self._clock(), None
        self._by_tag[tag] = tracker
        self._stats.add("lookups", 1)

    def _take_answers(self) -> None:
        for answer in self._link.answers():
            if isinstance(answer, Fetched):
                self._remote.fetched(answer)
                continue
            tracker = self._by_tag.pop(answer.tag, None)
            if tracker is None or tracker.tag != answer.tag:
                continue
            tracker.tag, tracker.answer = None, answer
            tracker.holds(answer.hit)
            # A request that waits is looked up again and again; what it finds counts once.
            self._stats.add("hit_blocks", max(0, answer.hit - tracker.counted))
            tracker.counted = max(tracker.counted, answer.hit)
            self._stats.observe("lookup_seconds", self._clock() - tracker.asked_at)

    def _current_answer(self, tracker: Tracker) -> Answer | None:
        """The tracker's answer unless it is of an earlier life of the daemon, or too old for its lease."""
        answer = tracker.answer
        if answer is None:
            return None
        if tracker.remote.came:
            # What came is leased by the look-up that follows.
            tracker.remote.came = False
            tracker.answer = None
            return None
        fresh = self._clock() - tracker.asked_at <= ANSWER_SECONDS_MAX
        if answer.epoch == self._link.epoch and (fresh or answer.hit == 0):
            return answer
        tracker.answer = None
        return None

    def _give_up(self, tracker: Tracker) -> None:
        assert tracker.tag is not None
        self._by_tag.pop(tracker.tag, None)
        tracker.tag = None
        tracker.answer = Answer(0, 0, 0, self._link.epoch or "")
        self._stats.add("lookup_timeouts", 1)

    def _keys(self, tracker: Tracker, first: int, end: int) -> bytes:
        """Keys of depth first + 1 … end; the engine's hashes are taken over as they come into being."""
        key_bytes = self._identity.key_bytes
        hashes = tracker.request.block_hashes
        held = len(tracker.keys) // key_bytes
        if held < end:
            tracker.keys += b"".join(hashes[held:end])
        assert len(tracker.keys) >= end * key_bytes, "the engine's hashes have the declared length"
        return bytes(tracker.keys[first * key_bytes : end * key_bytes])

    # Stores and proofs.

    def _progress(self, output: Any) -> Iterator[tuple[Tracker, int]]:
        """(request, tokens computed before this step) of all that this step computes."""
        for new in output.scheduled_new_reqs:
            tracker = self._trackers.get(new.req_id)
            if tracker is not None:
                tracker.block_ids = list(new.block_ids[0])
                yield tracker, int(new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        resumed = _resumed(cached)
        for index, request_id in enumerate(cached.req_ids):
            tracker = self._trackers.get(request_id)
            if tracker is None:
                continue
            added = cached.new_block_ids[index]
            if added is not None:
                if request_id in resumed:
                    tracker.block_ids = list(added[0])
                else:
                    tracker.block_ids += added[0]
            yield tracker, int(cached.num_computed_tokens[index])

    def _plan_store(self, tracker: Tracker, full: int, metadata: CairnMetadata) -> None:
        end = min(full, len(tracker.request.block_hashes), len(tracker.block_ids))
        if end <= tracker.offered or self._idle or self._link.epoch is None:
            return
        first = tracker.offered if tracker.outstanding else tracker.acked
        key_bytes = self._identity.key_bytes
        self._serials += 1
        plan = StorePlan(
            serial=self._serials,
            request_id=tracker.request.request_id,
            lease=0,
            start_depth=first,
            parent_key=self._keys(tracker, first - 1, first) if first > 0 else bytes(key_bytes),
            keys=self._keys(tracker, first, end),
            block_ids=tracker.block_ids[first:end],
        )
        tracker.offered = end
        tracker.outstanding[plan.serial] = (first, end)
        self._owner[plan.serial] = plan.request_id
        metadata.stores.append(plan)
        self._stats.add("offered_blocks", end - first)

    def _plan_proof(self, tracker: Tracker, full: int, metadata: CairnMetadata) -> None:
        answer = tracker.answer
        if answer is None or not 0 < answer.proof_depth <= min(full, len(tracker.block_ids)) or tracker.proving:
            return
        request_id = tracker.request.request_id
        block_id = tracker.block_ids[answer.proof_depth - 1]
        self._serials += 1
        metadata.proofs.append(
            ProofPlan(self._serials, request_id, answer.lease, answer.proof_depth, answer.proof_key, block_id)
        )
        tracker.proving = True

    def _load_ended(self, request_id: str) -> None:
        tracker = self._trackers.get(request_id)
        if tracker is None or not tracker.loading:
            return
        tracker.loading = False
        lost = tracker.lost_blocks
        if lost:
            # What failed is computed, and offered again: the daemon no longer has it.
            tracker.load_failed = True
            at = min(tracker.load_blocks.index(block) for block in lost)
            tracker.fall_back(tracker.local_blocks + at)
            self._stats.add("failed_load_requests", 1)
        tracker.load_blocks = []
        # The engine holds the blocks now; the lease has done its work.
        self._link.end(tracker.number)
        if tracker.finished:
            self._forget(request_id)

    def _store_ended(self, serial: int, outcome: StoreOutcome) -> None:
        merged = self._partial.pop(serial, None)
        merged = outcome if merged is None else merged.merge(outcome)
        if merged.ranks < self._identity.shards:
            self._partial[serial] = merged
            return
        tracker = self._trackers.get(self._owner.pop(serial, ""))
        if tracker is None:
            return
        start, end = tracker.outstanding.pop(serial)
        self._stats.add("stored_blocks_short", max(0, end - merged.visible))
        if merged.visible > start:
            tracker.holds(merged.visible)
        if merged.resident is not None:
            tracker.fall_back(merged.resident)
            self._stats.add("parent_absent", 1)

    def _proof_ended(self, request_id: str, outcome: ProofOutcome) -> None:
        merged = self._partial_proofs.pop(request_id, None)
        merged = outcome if merged is None else merged.merge(outcome)
        if merged.ranks < self._identity.shards:
            self._partial_proofs[request_id] = merged
            return
        tracker = self._trackers.get(request_id)
        if tracker is None:
            return
        tracker.proving = False
        answer, tracker.answer = tracker.answer, None
        if answer is not None and merged.same is not None and answer.epoch == self._link.epoch:
            self._stats.add("proofs" if merged.same else "proofs_failed", 1)
            if self._identity.shards > 1:  # A single worker has told the daemon itself.
                self._link.prove(answer.proof_key, merged.same)
        if tracker.gone:
            self._forget(request_id)

    def _let_go(self, request_id: str) -> None:
        tracker = self._trackers.get(request_id)
        if tracker is None or not tracker.proving:
            self._forget(request_id)
            return
        tracker.gone = True
        gone = [known for known, other in self._trackers.items() if other.gone]
        for oldest in gone[: max(0, len(gone) - GONE_MAX)]:
            self._forget(oldest)

    def _forget(self, request_id: str) -> None:
        tracker = self._trackers.pop(request_id, None)
        if tracker is None:
            return
        if tracker.tag is not None:
            self._by_tag.pop(tracker.tag, None)
        self._remote.end(tracker.remote)
        for serial in tracker.outstanding:
            self._owner.pop(serial, None)
            self._partial.pop(serial, None)
        self._partial_proofs.pop(request_id, None)
        self._link.end(tracker.number)


def _only_waited(tracker: Tracker, answer: Answer) -> bool:
    """Whether all that the daemon has of the request is a chain that it kept for a wait."""
    return tracker.remote.since is not None and answer.proof_depth == 0


def _resumed(cached: Any) -> set[str]:
    """Requests whose block list is given anew; older versions flag them in a list beside the ids."""
    resumed = getattr(cached, "resumed_req_ids", None)
    if resumed is not None:
        return set(resumed)
    flags = getattr(cached, "resumed_from_preemption", ())
    return {request_id for request_id, flag in zip(cached.req_ids, flags, strict=False) if flag}
