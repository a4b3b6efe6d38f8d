"""What a tier of vLLM's own tiering does, without the engine: look-ups, jobs, proof.

The engine's scheduler calls all of this in its step, so nothing here waits: look-ups are gathered and sent at the end
of a step, jobs go to the worker's half (worker.py), which copies in a thread of its own, and results are picked up.

**Look-ups.** The engine asks for one chunk after the other and takes "ask again" for an answer; it stops at the first
miss. So the chunks that a request asks for in one step go in one look-up, which answers how many are there from the
first on: that is the hit, the next one is the miss, and what lies behind it stays unasked. An engine that asks for
those all the same does not look for a prefix (a sliding window is looked up from its end); from then on each chunk of
that request is asked for by itself. Answers hold for the life of the request, so that asking again costs nothing, and
until a load shows that one was wrong.

**No chains.** The blocks are declared as unchained: each stands for itself. A tier is asked for chunks that lie behind
those the engine's own tiers hold, and is given chunks without what came before them, since the engine stores a chunk
only where it is missing. A chain could be neither looked up from its root nor stored in order. The price is a walk
instead of a bisection, and an eviction that knows nothing of prefixes.

**Jobs.** Each job ends in one result, whatever becomes of the daemon. A fault of our own ends all jobs and refuses
those to come, and so does stop(), for an engine whose weights changed under its name.

**Proof.** A tier sees what the engine computed only when the engine stores. While the daemon wants a proof nothing is
found, so the engine computes; when it then stores a chunk that a look-up was denied for want of the proof, that chunk
is compared before its job goes on, and from there on everything is found.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from cairn_kv.errors import ErrorCode

from .metadata import CairnMetadata, LoadPlan, ProofOutcome, ProofPlan, StorePlan
from .tier_link import FOR_LOAD, FOR_PROOF, KEY_BYTES, fold_key

if TYPE_CHECKING:
    from cairn_kv.adapters.counters import CairnStats
    from cairn_kv.completions import LookupDone

    from .worker import WorkerSide

#: Look-ups under way; what is asked beyond waits for the next step.
LOOKUPS_IN_FLIGHT_MAX = 1_024
#: Chunks that one request may ask for; more are misses.
KEYS_PER_REQUEST_MAX = 65_536
#: Chunks that are remembered as wanted for a proof; the oldest is forgotten.
PROOF_KEYS_MAX = 1_024
#: How often drain() looks.
DRAIN_SECONDS = 0.002
#: How long it waits: an engine that resets its cache stands still meanwhile.
DRAIN_SECONDS_MAX = 30.0


class TierLink(Protocol):
    """What the look-ups of a tier need of a session. Every look-up that is sent ends in one answer."""

    @property
    def epoch(self) -> str | None:
        """The daemon's life, None while there is none."""

    def lookup(self, keys: bytes) -> int | None:
        """Asks how many of the keys are there, from the first on; its tag, or None if it cannot be sent."""

    def answers(self) -> list[LookupDone]:
        """Answered look-ups."""

    def touch(self, keys: bytes) -> None:
        """Says that blocks were used."""


class Verdict(Enum):
    """The answer for a chunk."""

    HIT = 1
    MISS = 2
    RETRY = 3
    #: Behind a miss: not asked for.
    UNASKED = 4


@dataclass
class Result:
    """A job's end; ``loaded``: the engine's keys that arrived, of a load."""

    job: int
    success: bool
    loaded: list[bytes]
    seconds: float


@dataclass(eq=False)
class _Job:
    number: int
    request: str
    keys: list[bytes]
    folded: list[bytes]
    chunks: list[int]
    begun: float
    loads: bool


@dataclass(eq=False)
class _Request:
    answers: dict[bytes, Verdict] = field(default_factory=dict)
    #: Asked for in this step, in order.
    waiting: list[bytes] = field(default_factory=list)
    #: It does not look for a prefix: each chunk is looked up by itself.
    apart: bool = False


class TierSide:
    """One tier of one engine. Not for several threads at once; the engine calls it under a lock of its own."""

    def __init__(self, link: TierLink, side: WorkerSide, stats: CairnStats) -> None:
        self._link = link
        self._side = side
        self._stats = stats
        self._requests: dict[str, _Request] = {}
        self._asking: dict[str, _Request] = {}
        self._lookups: dict[int, tuple[_Request, list[bytes]]] = {}
        self._jobs: dict[int, _Job] = {}
        self._results: list[Result] = []
        #: Chunks of loads under way that did not arrive.
        self._failed_chunks: set[int] = set()
        self._proof_keys: dict[bytes, None] = {}
        #: The job that waits for its proof, and the key.
        self._proving: tuple[_Job, bytes] | None = None
        self._stopped = False

    # Look-ups.

    def lookup(self, request_id: str, key: bytes) -> Verdict:
        """HIT, MISS, or RETRY while the answer is under way."""
        self._take_answers()
        if self._stopped:
            return Verdict.MISS
        request = self._requests.setdefault(request_id, _Request())
        known = request.answers.get(key)
        if known in {Verdict.HIT, Verdict.MISS, Verdict.RETRY}:
            return known
        if self._link.epoch is None:
            self._stats.add("lookups_unavailable", 1)
            return Verdict.MISS
        if len(request.answers) >= KEYS_PER_REQUEST_MAX or fold_key(key) is None:
            return Verdict.MISS
        request.apart = request.apart or known is Verdict.UNASKED
        request.answers[key] = Verdict.RETRY
        request.waiting.append(key)
        self._asking[request_id] = request
        return Verdict.RETRY

    def step_ended(self, preempted: Iterable[str]) -> None:
        """Sends what was asked for; forgets the answers of requests that begin anew, which may have stored since."""
        for request_id in preempted:
            self.request_ended(request_id)
        for request_id, request in list(self._asking.items()):
            while request.waiting and len(self._lookups) < LOOKUPS_IN_FLIGHT_MAX:
                count = 1 if request.apart else len(request.waiting)
                keys, request.waiting = request.waiting[:count], request.waiting[count:]
                tag = self._link.lookup(b"".join(_folded(keys)))
                if tag is None:
                    request.answers.update(dict.fromkeys(keys, Verdict.MISS))
                    continue
                self._stats.add("lookups", 1)
                self._lookups[tag] = (request, keys)
            if not request.waiting:
                del self._asking[request_id]

    def request_ended(self, request_id: str) -> None:
        """Forgets a request's answers."""
        self._requests.pop(request_id, None)
        self._asking.pop(request_id, None)

    def touch(self, keys: Iterable[bytes]) -> None:
        """Says that chunks were used."""
        folded = _folded(keys)[:KEYS_PER_REQUEST_MAX]
        if folded and self._link.epoch is not None:
            self._link.touch(b"".join(folded))

    def _take_answers(self) -> None:
        for done in self._link.answers():
            request, keys = self._lookups.pop(done.tag)
            hit = 0 if done.proof is not None else done.hit
            after = Verdict.UNASKED
            if done.error is not None:
                after = Verdict.MISS
                self._stats.add("lookup_timeouts", done.error.code == ErrorCode.DEADLINE_EXCEEDED)
            for at, key in enumerate(keys):
                request.answers[key] = Verdict.HIT if at < hit else Verdict.MISS if at == hit else after
            self._stats.add("hit_blocks", hit)
            if done.proof is not None:
                self._want_proof(done.proof.key)

    # Jobs.

    def store(self, number: int, request_id: str, keys: Sequence[bytes], chunks: Sequence[int]) -> None:
        """Stores chunks; one result follows."""
        job = self._begin(number, request_id, keys, chunks, loads=False)
        if job is None:
            return
        at = next((at for at, key in enumerate(job.folded) if key in self._proof_keys), None)
        if at is None or self._proving is not None:
            self._store(job)
            return
        key = job.folded[at]
        self._proving = (job, key)
        proof = ProofPlan(-1 - number, str(number), FOR_PROOF, 1, key, job.chunks[at])
        self._side.begin_stores(CairnMetadata(proofs=[proof]))

    def load(self, number: int, request_id: str, keys: Sequence[bytes], chunks: Sequence[int]) -> None:
        """Loads chunks; one result follows."""
        job = self._begin(number, request_id, keys, chunks, loads=True)
        if job is not None:
            plan = LoadPlan(str(number), FOR_LOAD, 0, b"".join(job.folded), job.chunks)
            self._side.begin_loads(CairnMetadata(loads=[plan]))

    def finished(self) -> list[Result]:
        """Jobs that ended since the last call."""
        self._take_answers()
        _, received = self._side.finished()
        self._failed_chunks |= self._side.failed_blocks()
        for number in map(int, received):
            if number in self._jobs:
                self._load_ended(self._jobs[number])
        report = self._side.report()
        if report is not None:
            for outcome in report.proofs.values():
                self._proof_ended(outcome)
            for number, stored in report.stores.items():
                if number in self._jobs:
                    self._end(self._jobs[number], success=stored.visible == len(self._jobs[number].keys))
        if self._side.broken:
            self._proving = None
            for job in list(self._jobs.values()):
                self._end(job, success=False)
        results, self._results = self._results, []
        return results

    def drain(self) -> None:
        """Waits until every job has ended. What has not within `DRAIN_SECONDS_MAX` fails, and the session with it."""
        until = time.monotonic() + DRAIN_SECONDS_MAX
        results = self.finished()
        while self._jobs and time.monotonic() < until:
            time.sleep(DRAIN_SECONDS)
            results += self.finished()
        if self._jobs:
            # A job that is told as failed must not copy any more.
            self._stopped = True
            self._side.close()
            self._proving = None
            for job in list(self._jobs.values()):
                self._end(job, success=False)
            results += self._results
        self._results = results

    def stop(self) -> None:
        """From here on nothing is found and every job is refused."""
        self._stopped = True

    def close(self) -> None:
        """Ends the thread and the session."""
        self._side.close()

    def _begin(
        self, number: int, request_id: str, keys: Sequence[bytes], chunks: Sequence[int], *, loads: bool
    ) -> _Job | None:
        folded = _folded(keys)
        job = _Job(number, request_id, list(keys), folded, [int(chunk) for chunk in chunks], time.monotonic(), loads)
        assert len(job.keys) == len(job.chunks)
        self._jobs[number] = job
        if self._stopped or len(folded) != len(job.keys):
            self._end(job, success=False)
            return None
        if not folded:
            self._end(job, success=True)
            return None
        return job

    def _store(self, job: _Job) -> None:
        plan = StorePlan(job.number, str(job.number), 0, 0, bytes(KEY_BYTES), b"".join(job.folded), job.chunks)
        self._side.begin_stores(CairnMetadata(stores=[plan]))

    def _load_ended(self, job: _Job) -> None:
        failed = self._failed_chunks.intersection(job.chunks)
        self._failed_chunks -= failed
        request = self._requests.get(job.request)
        loaded = []
        for key, chunk in zip(job.keys, job.chunks, strict=True):
            if chunk not in failed:
                loaded.append(key)
            elif request is not None:
                # Found before and not there now: asked again, the engine would load it again for ever.
                request.answers[key] = Verdict.MISS
        self._stats.add("failed_load_requests", bool(failed))
        self._end(job, success=not failed, loaded=loaded)

    def _end(self, job: _Job, *, success: bool, loaded: list[bytes] | None = None) -> None:
        del self._jobs[job.number]
        self._results.append(Result(job.number, success, loaded or [], time.monotonic() - job.begun))

    # Proof.

    def _want_proof(self, key: bytes) -> None:
        if len(self._proof_keys) >= PROOF_KEYS_MAX:
            del self._proof_keys[next(iter(self._proof_keys))]
        self._proof_keys[key] = None

    def _proof_ended(self, outcome: ProofOutcome) -> None:
        if self._proving is None:
            return
        (job, key), self._proving = self._proving, None
        if outcome.same is None:
            self._proof_keys.pop(key, None)
        else:
            # The verdict is the whole namespace's. After a difference what is stored now goes into a fresh one.
            self._proof_keys.clear()
            self._stats.add("proofs" if outcome.same else "proofs_failed", 1)
        self._store(job)


def _folded(keys: Iterable[bytes]) -> list[bytes]:
    return [folded for key in keys if (folded := fold_key(bytes(key))) is not None]
