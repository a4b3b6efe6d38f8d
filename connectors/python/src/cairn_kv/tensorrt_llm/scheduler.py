"""The scheduler's half: one question per request, answered at once; then what each step loads and stores.

The engine asks once per request and takes the answer for done, so all of the daemon's part of a load happens within the
question (staging.py). Leases never outlive it. From there on only the request's blocks are followed:

``loaded``   what was staged for it, until the step that names its blocks;
``offered``  blocks up to this depth need not be offered: the daemon has them, or they are on their way. It goes back to
             where a store found the chain cut off, or where a block that a look-up found could not be read.

Block numbers come from the steps' output: `update_state_after_alloc` covers the first chunk of a prompt only with the
newer cache manager, and stands in for a request that the output never shows as new. Which blocks are complete is told
by `computed_position`, which in a request's first step leaves out the tokens that were loaded: what it then says is
less than the truth, and the rest is offered one step later. A block number of −1 has no page; a chain ends before it.

Stores are paced, not shed: each rank has as many rows as the scheduler has credit, the mailbox tells how many are free
again, and what does not fit waits for a later step as long as the request lives.

A namespace with blocks of an earlier life wants a proof before it answers hits. The block it asks for is staged like
any other; the workers compare it with the one that the engine computes, and the verdict comes back in the mailbox.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity, NotServed
from cairn_kv.blocking import drop_completion
from cairn_kv.completions import LookupDone, Proof
from cairn_kv.errors import CairnError

from .chain import BlockChain, salt_of
from .mailbox import Cell, Verdict, chain_number
from .metadata import LoadPlan, ProofPlan, Step, StorePlan
from .options import Options
from .staging import Staged, Staging

log = logging.getLogger("cairn_kv.tensorrt_llm")

#: Requests that are followed; of more the oldest is forgotten. The engine does not report the end of every request.
REQUESTS_MAX = 65_536
#: Steps after which a proof is given up whose request does not come up in them: its end may not have been reported.
PROOF_STEPS = 256
#: How often the counters go to the log while they change.
LOG_SECONDS = 60.0


class SchedulerLink(Protocol):
    """What is needed of a session beside what staging needs."""

    @property
    def connected(self) -> bool:
        """Whether a daemon answers now."""

    def lookup(self, request_id: int, keys: bytes, *, timeout_seconds: float) -> LookupDone:
        """The longest readable prefix, or a miss when time is up."""

    def end_request(self, request_id: int) -> None:
        """Gives back what the look-up leased."""

    def submit_prove(self, key: bytes, *, ok: bool, sink: Any) -> int:
        """The verdict on a block that a look-up asked to be proven."""


@dataclass(eq=False)
class Tracker:
    """What is known of one request of the engine."""

    number: int
    chain: BlockChain
    block_ids: list[int] = field(default_factory=list)
    #: The engine has shown it as new: its list of blocks begins with its first block.
    begun: bool = False
    loaded: Staged | None = None
    proof: Staged | None = None
    offered: int = 0


@dataclass(eq=False)
class _Proving:
    number: int
    key: bytes
    staged: Staged
    tracker: Tracker
    #: Serial of the last step with its request.
    seen: int
    sent: bool = False


class SchedulerSide:
    """One engine's scheduler; its methods are the engine's hooks."""

    def __init__(
        self,
        identity: Identity,
        link: SchedulerLink,
        staging: Staging,
        options: Options,
        store_rows: int,
        stats: CairnStats,
        *,
        text_only: bool,
    ) -> None:
        """``store_rows``: rows of each rank's window. ``text_only``: the model takes nothing but text."""
        self._identity = identity
        self._link = link
        self._staging = staging
        self._options = options
        self._store_rows = store_rows
        self._stats = stats
        self._text_only = text_only
        self._trackers: dict[int, Tracker] = {}
        #: The same by their own numbers, which are never those of another request.
        self._numbered: dict[int, Tracker] = {}
        self._refused: set[str] = set()
        self._proving: _Proving | None = None
        self._serial = 0
        self._numbers = 0
        #: Of all steps so far: plans to load, and rows out of each rank's credit.
        self._loads = 0
        self._rows = 0
        #: Number of the last proof that a step asked for.
        self._proof = 0
        self._logged = time.monotonic()

    # What the engine asks, once per request.

    def matched_tokens(self, request: Any, computed_tokens: int) -> int:
        """Tokens beyond ``computed_tokens`` that lie in memory of this engine now."""
        self._settle()
        self.forget(request.request_id)
        try:
            chain = BlockChain(self._identity.block_tokens, salt_of(request, text_only=self._text_only))
        except NotServed as reason:
            self._say_once(str(reason))
            return 0
        tokens = request.get_tokens(0)
        chain.extend(tokens)
        self._numbers += 1
        tracker = Tracker(chain_number(self._numbers), chain)
        if len(self._trackers) >= REQUESTS_MAX and not self._make_room():
            return 0
        self._trackers[request.request_id] = self._numbered[tracker.number] = tracker
        done = self._look_up(chain)
        if done is None:
            return 0
        tracker.offered = done.hit
        first = computed_tokens // self._identity.block_tokens
        # The last token is always computed by the engine: it is what the next one is sampled from.
        end = min(done.hit, (len(tokens) - 1) // self._identity.block_tokens)
        whole = computed_tokens % self._identity.block_tokens == 0 and not _wants_logits(request)
        try:
            if done.proof is not None:
                self._begin_proof(tracker, done.lease, done.proof)
            elif whole and end - first >= self._options.load_blocks_min:
                self._load(tracker, done.lease, first, end)
        finally:
            if done.lease != 0:
                self._link.end_request(done.request_id)
        return 0 if tracker.loaded is None else len(tracker.loaded.rows) * self._identity.block_tokens

    def allocated(self, request_id: int, block_ids: list[int]) -> None:
        """Blocks of the request's first chunk; the steps' output says more, and says it for sure."""
        tracker = self._trackers.get(request_id)
        if tracker is not None and not tracker.begun:
            tracker.block_ids = list(block_ids)

    def build_step(self, output: Any) -> Step:
        """The workers' work of this step."""
        self._settle()
        self._serial += 1
        # A rank that maps a new memory lets those before it go, but for what has been answered and not yet loaded.
        kept = set() if self._staging.ready() else {one.loaded.memory for one in self._trackers.values() if one.loaded}
        step = Step(self._serial, self._staging.source(tuple(kept)), self._loads, self._rows, self._proof)
        for data in output.new_requests:
            self._follow(data, step, new=True)
        for data in output.cached_requests:
            self._follow(data, step, new=False)
        self._loads += len(step.loads)
        self._rows += step.rows
        self._log()
        return step

    def forget(self, request_id: int) -> None:
        """The request ended, begins anew, or lost its blocks. What it had staged and not loaded is given back."""
        tracker = self._trackers.pop(request_id, None)
        if tracker is None:
            return
        self._numbered.pop(tracker.number, None)
        if tracker.loaded is not None:
            self._staging.release(tracker.loaded)
        proving = self._proving
        if proving is not None and proving.tracker is tracker and not proving.sent:
            self._staging.release(proving.staged)
            self._proving = None

    def cancel_load(self, request_id: int, start_tokens: int, end_tokens: int) -> None:
        """The engine will not use what was answered for [start_tokens, end_tokens): the beginning, or the end, of it.

        The beginning if it has got those blocks by other means, the end if it has no room for them. What it does not
        cancel it takes for loaded, so a piece out of the middle would leave two.
        """
        tracker = self._trackers.get(request_id)
        if tracker is None or tracker.loaded is None:
            return
        loaded, block_tokens = tracker.loaded, self._identity.block_tokens
        start = max(loaded.first, start_tokens // block_tokens)
        end = min(loaded.end, -(-end_tokens // block_tokens))
        if start >= end:
            return
        assert start == loaded.first or end == loaded.end, "the engine cancels the middle of a load"
        if start == loaded.first:
            kept = Staged(loaded.memory, end, loaded.rows[end - loaded.first :])
        else:
            kept = Staged(loaded.memory, loaded.first, loaded.rows[: start - loaded.first])
        held = {row for block in kept.rows for row in block}
        gone = [[row] for block in loaded.rows for row in block if row not in held]
        self._staging.release(Staged(loaded.memory, 0, gone))
        tracker.loaded = kept if kept.rows else None

    # Within the question.

    def _make_room(self) -> bool:
        """Forgets the oldest request, but none whose load is answered and not yet planned: the engine counts on it."""
        for request_id, tracker in self._trackers.items():
            if tracker.loaded is None:
                self.forget(request_id)
                return True
        return False

    def _look_up(self, chain: BlockChain) -> LookupDone | None:
        if chain.blocks == 0:
            return None
        if not self._link.connected:
            self._stats.add("lookups_unavailable", 1)
            return None
        self._numbers += 1
        begun = time.monotonic()
        try:
            done = self._link.lookup(self._numbers, bytes(chain.keys), timeout_seconds=self._options.lookup_seconds)
        except CairnError:
            self._stats.add("lookups_unavailable", 1)
            return None
        self._stats.add("lookups", 1)
        if done.error is not None:
            # Its lease, should the answer come yet, is given back; the number is never used again.
            self._link.end_request(self._numbers)
            self._stats.add("lookup_timeouts", 1)
            return None
        self._stats.observe("lookup_seconds", time.monotonic() - begun)
        self._stats.add("hit_blocks", done.hit)
        return done

    def _load(self, tracker: Tracker, lease: int, first: int, end: int) -> None:
        begun = time.monotonic()
        staged = self._staging.stage(lease, first, tracker.chain.slice(first, end), self._options.stage_seconds)
        arrived = 0 if staged is None else len(staged.rows)
        self._stats.add("failed_load_blocks", end - first - arrived)
        if self._staging.failed_depth is not None:  # The daemon said that it has it, and has it no more.
            tracker.offered = min(tracker.offered, self._staging.failed_depth)
        if staged is None:
            return
        if arrived < self._options.load_blocks_min:
            self._staging.release(staged)
            return
        tracker.loaded = staged
        self._stats.observe("load_seconds", time.monotonic() - begun)
        self._stats.add("load_requests", 1)
        self._stats.add("loaded_blocks", arrived)
        self._stats.add("loaded_bytes", arrived * self._identity.row_bytes * self._identity.shards)

    def _begin_proof(self, tracker: Tracker, lease: int, proof: Proof) -> None:
        proving = self._proving
        if proving is not None and not proving.sent and self._serial - proving.seen > PROOF_STEPS:
            self._staging.release(proving.staged)
            self._proving = None
        if self._proving is not None or not 0 < proof.depth <= tracker.chain.blocks:
            return
        key = tracker.chain.slice(proof.depth - 1, proof.depth)
        if key != proof.key:
            return
        staged = self._staging.stage(lease, proof.depth - 1, key, self._options.stage_seconds)
        if staged is not None:
            self._numbers += 1
            self._proving = _Proving(self._numbers, key, staged, tracker, self._serial)

    # Steps.

    def _follow(self, data: Any, step: Step, *, new: bool) -> None:
        tracker = self._trackers.get(data.request_id)
        if tracker is None:
            return
        block_ids = _new_blocks(data)
        if new:
            tracker.begun, tracker.block_ids = True, block_ids
            tracker.chain.extend(data.new_tokens[tracker.chain.tokens :])
        elif tracker.begun:
            tracker.chain.extend(data.new_tokens)
            tracker.block_ids += block_ids
        self._plan_load(tracker, step)
        if not tracker.begun:  # It appears in the middle: where its later blocks belong is not known.
            return
        full = (int(data.computed_position) + int(data.num_scheduled_tokens)) // self._identity.block_tokens
        self._plan_proof(tracker, full, step)
        self._plan_store(tracker, full, step)

    def _plan_load(self, tracker: Tracker, step: Step) -> None:
        loaded, tracker.loaded = tracker.loaded, None
        if loaded is None:
            return
        # The engine may have taken less than was answered, and then computes the rest, for which it may have no blocks
        # yet; but never none: at least what it computes now comes behind what it had before.
        assert len(tracker.block_ids) > loaded.first, "the engine runs a request of whose blocks it has told nothing"
        blocks = tracker.block_ids[loaded.first : loaded.end]
        places = [(rows, block) for rows, block in zip(loaded.rows, blocks, strict=False) if block >= 0]
        offsets = [[self._staging.offset(rows[shard]) for rows, _ in places] for shard in range(self._identity.shards)]
        if places:
            step.loads.append(LoadPlan(loaded.memory, offsets, [block for _, block in places]))
        self._staging.leave(loaded, step.serial)

    def _plan_store(self, tracker: Tracker, full: int, step: Step) -> None:
        first = tracker.offered
        end = min(full, tracker.chain.blocks, len(tracker.block_ids))
        if end <= first:  # Nearly always: a request that generates completes a block every so many steps.
            return
        held = step.rows + self._rows - min(self._staging.mailbox.read(Cell.RELEASED))
        credit = max(0, self._store_rows - held)  # A proof takes a row without asking.
        blocks = _paged(tracker.block_ids[first : min(end, first + credit)])
        if not blocks or not self._link.connected or self._staging.ready() == 0:
            return
        end = first + len(blocks)
        step.stores.append(
            StorePlan(
                chain=tracker.number,
                start_depth=first,
                parent_key=tracker.chain.slice(first - 1, first) if first > 0 else b"",
                keys=tracker.chain.slice(first, end),
                block_ids=blocks,
            )
        )
        tracker.offered = end
        self._stats.add("offered_blocks", len(blocks))

    def _plan_proof(self, tracker: Tracker, full: int, step: Step) -> None:
        proving = self._proving
        if proving is None or proving.tracker is not tracker or proving.sent:
            return
        proving.seen = step.serial
        depth, rows = proving.staged.end, proving.staged.rows[0]
        if not depth <= min(full, len(tracker.block_ids)) or tracker.block_ids[depth - 1] < 0:
            return
        offsets = [self._staging.offset(row) for row in rows]
        step.proofs.append(ProofPlan(proving.number, proving.staged.memory, offsets, tracker.block_ids[depth - 1]))
        proving.sent, self._proof = True, proving.number

    def _settle(self) -> None:
        self._staging.settle()
        for note in self._staging.mailbox.cut_off():
            cut_off = self._numbered.get(note.chain)
            if cut_off is not None:
                cut_off.offered = min(cut_off.offered, note.resident)
        proving = self._proving
        if proving is None or not proving.sent:
            return
        cells = self._staging.mailbox.read(Cell.VERDICT)
        if any(cell >> 2 != proving.number for cell in cells):
            return
        verdicts = {Verdict(cell & 3) for cell in cells}
        self._proving = None
        self._staging.release(proving.staged)
        if Verdict.DIFFERENT in verdicts:
            self._stats.add("proofs_failed", 1)
            self._link.submit_prove(proving.key, ok=False, sink=drop_completion)
        elif Verdict.UNKNOWN not in verdicts:
            self._stats.add("proofs", 1)
            self._link.submit_prove(proving.key, ok=True, sink=drop_completion)

    # What an operator sees.

    def _say_once(self, reason: str) -> None:
        if reason not in self._refused:
            self._refused.add(reason)
            log.warning("cairn: nothing is stored or loaded for some requests: %s", reason)

    def _log(self) -> None:
        if time.monotonic() - self._logged < LOG_SECONDS:
            return
        self._logged = time.monotonic()
        counts = self._stats.take()
        if counts:
            log.info("cairn: %s", " ".join(f"{name}={value:g}" for name, value in sorted(counts.items())))


def _new_blocks(data: Any) -> list[int]:
    """A request's new blocks; where the engine names them by groups of layers, there is one group."""
    groups = getattr(data, "new_block_ids_by_layer_group", None)
    return list(groups[0]) if groups and not data.new_block_ids else list(data.new_block_ids)


def _paged(block_ids: Sequence[int]) -> list[int]:
    """Blocks before the first that has no page."""
    end = next((at for at, block in enumerate(block_ids) if block < 0), len(block_ids))
    return list(block_ids[:end])


def _wants_logits(request: Any) -> bool:
    """Whether the request's answer needs every position to be computed, as far as the request shows it.

    Asked by the older cache manager it does not: the C++ half is always told no. Then the logits begin behind what was
    loaded, as they begin behind what the engine's own reuse finds.
    """
    return any(getattr(request, name, False) for name in ("return_context_logits", "py_return_context_logits"))
