"""The scheduler's half of the vLLM connector, in the engine's order of calls, against a link of the test's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from daemon import BLOCK_TOKENS, descriptor

from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity
from cairn_kv.vllm.answers import Answer, Fetched
from cairn_kv.vllm.metadata import CairnMetadata, CairnWorkerMetadata, ProofOutcome, StoreOutcome
from cairn_kv.vllm.scheduler import GONE_MAX, SchedulerSide

IDENTITY = Identity(descriptor(row_bytes=128), ("a", "b"), page_bytes=64, world=1)


@dataclass
class Link:
    """Answers what the test tells it to."""

    epoch: str | None = "life 1"
    asked: list[tuple[int, bytes]] = field(default_factory=list)
    waiting: list[Answer | Fetched] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    verdicts: list[tuple[bytes, bool]] = field(default_factory=list)
    answered: int = 0
    #: Of each fetch its request and its time.
    fetches: list[tuple[int, float]] = field(default_factory=list)
    refuses: bool = False
    #: Of each look-up whether the daemon was to keep the chain.
    kept: list[bool] = field(default_factory=list)

    def lookup(self, request: int, keys: bytes, *, keep_chain: bool = False) -> int | None:
        if self.epoch is None:
            return None
        self.kept.append(keep_chain)
        self.asked.append((request, keys))
        return len(self.asked)

    def answer(self, hit: int, **more: Any) -> None:
        lease = 77 if hit or "proof_depth" in more else 0
        self.answered = len(self.asked)
        self.waiting.append(Answer(self.answered, hit, lease, self.epoch or "", **more))

    def fetch(self, request: int, seconds: float) -> int | None:
        if self.refuses:
            return None
        self.fetches.append((request, seconds))
        return 1_000 + len(self.fetches)

    def fetched(self, blocks: int) -> None:
        self.waiting.append(Fetched(1_000 + len(self.fetches), blocks))

    def answers(self) -> list[Answer | Fetched]:
        taken, self.waiting = self.waiting, []
        return taken

    def end(self, request: int) -> None:
        self.ended.append(request)

    def prove(self, key: bytes, same: bool) -> None:
        self.verdicts.append((key, same))


class Bench:
    """A scheduler's half, its link and a clock."""

    def __init__(self, identity: Identity = IDENTITY, remote_wait_seconds: float = 0.0) -> None:
        self.link = Link()
        self.now = 100.0
        self.stats = CairnStats()
        self.side = SchedulerSide(
            identity,
            self.link,
            self.stats,
            0.05,
            remote_wait_seconds=remote_wait_seconds,
            clock=lambda: self.now,
        )

    def request(self, name: str, tokens: int) -> Any:
        hashes = [f"{name} {at}".encode().ljust(32, b".") for at in range(tokens // BLOCK_TOKENS)]
        return SimpleNamespace(request_id=name, num_tokens=tokens, block_hashes=hashes, num_preemptions=0)

    def count(self, name: str) -> float:
        return self.stats.totals().get(name, 0)

    def step(
        self,
        new: tuple[Any, list[int], int, int] | None = None,
        cached: tuple[Any, list[int] | None, int, int] | None = None,
        preempted: tuple[str, ...] = (),
        resumed: bool = False,
    ) -> CairnMetadata:
        """One step that computes a new request or goes on with one: (request, blocks, computed before, scheduled)."""
        scheduled: dict[str, int] = {}
        news, ids, added, computed = [], [], [], []
        if new is not None:
            request, blocks, before, tokens = new
            scheduled[request.request_id] = tokens
            news.append(SimpleNamespace(req_id=request.request_id, block_ids=(blocks,), num_computed_tokens=before))
        if cached is not None:
            request, more, before, tokens = cached
            scheduled[request.request_id] = tokens
            ids.append(request.request_id)
            added.append(None if more is None else (more,))
            computed.append(before)
        return self.side.build_metadata(
            SimpleNamespace(
                scheduled_new_reqs=news,
                scheduled_cached_reqs=SimpleNamespace(
                    req_ids=ids,
                    new_block_ids=added,
                    num_computed_tokens=computed,
                    resumed_req_ids=set(ids) if resumed else set(),
                ),
                num_scheduled_tokens=scheduled,
                preempted_req_ids=set(preempted),
            )
        )

    def report(
        self,
        *,
        stores: dict[int, StoreOutcome] | None = None,
        proofs: dict[str, ProofOutcome] | None = None,
        received: tuple[str, ...] = (),
        sent: tuple[str, ...] = (),
        invalid: tuple[int, ...] = (),
        windows: dict[int, bool] | None = None,
    ) -> None:
        self.side.worker_output(
            SimpleNamespace(
                finished_recving=set(received),
                finished_sending=set(sent),
                invalid_block_ids=set(invalid),
                kv_connector_worker_meta=CairnWorkerMetadata(stores or {}, proofs or {}, windows or {}),
            )
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def arrive(bench: Bench, tokens: int, hit: int, name: str = "r", **proof: Any) -> Any:
    """A request whose look-up is answered."""
    request = bench.request(name, tokens)
    bench.side.new_request(request)
    bench.link.answer(hit, **proof)
    return request


def test_the_engine_is_told_to_ask_again_until_the_answer_is_there(bench: Bench) -> None:
    request = bench.request("r", 100)
    bench.side.new_request(request)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.link.answer(4)
    assert bench.side.matched_tokens(request, 0) == (64, True)
    assert bench.side.matched_tokens(request, 0) == (64, True), "asking again changes nothing"
    assert len(bench.link.asked) == 1
    assert bench.link.asked[0][1] == b"".join(request.block_hashes)


def test_an_answer_that_takes_too_long_is_a_miss_and_what_comes_later_is_ignored(bench: Bench) -> None:
    request = bench.request("r", 100)
    bench.side.new_request(request)
    bench.now += 0.06
    assert bench.side.matched_tokens(request, 0) == (0, False)
    bench.link.answer(4)
    assert bench.side.matched_tokens(request, 0) == (0, False)
    assert bench.count("lookup_timeouts") == 1


def test_only_tokens_beyond_the_engines_own_are_offered_and_never_the_last_one(bench: Bench) -> None:
    request = arrive(bench, 64, hit=4)
    assert bench.side.matched_tokens(request, 32) == (16, True)
    whole = arrive(bench, 64, hit=4, name="s")
    assert bench.side.matched_tokens(whole, 48) == (0, False)


def test_without_a_daemon_nothing_matches_and_nothing_is_offered(bench: Bench) -> None:
    bench.link.epoch = None
    request = bench.request("r", 64)
    bench.side.new_request(request)
    assert bench.side.matched_tokens(request, 0) == (0, False)
    bench.side.allocated(request, [1, 2, 3, 4], 0)
    assert bench.step(new=(request, [1, 2, 3, 4], 0, 64)).stores == []


def test_an_answer_of_an_earlier_life_of_the_daemon_is_asked_for_again(bench: Bench) -> None:
    request = arrive(bench, 100, hit=4)
    bench.link.epoch = "life 2"
    bench.side._take_answers()
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert len(bench.link.asked) == 2


def test_a_hit_is_loaded_into_the_blocks_behind_the_engines_own_and_its_lease_given_back(bench: Bench) -> None:
    request = arrive(bench, 100, hit=5)
    assert bench.side.matched_tokens(request, 32) == (48, True)
    bench.side.allocated(request, [9, 8, 7, 6, 5], 48)
    metadata = bench.step()
    (plan,) = metadata.loads
    assert (plan.lease, plan.start_depth, plan.block_ids) == (77, 2, [7, 6, 5])
    assert plan.keys == b"".join(request.block_hashes[2:5])
    assert bench.step().loads == [], "a load is told once"
    assert bench.link.ended == []
    bench.report(received=("r",))
    assert bench.link.ended == [1]
    bench.side.allocated(request, [9, 8, 7, 6, 5, 4, 3], 0)
    (store,) = bench.step(new=(request, [9, 8, 7, 6, 5, 4, 3], 80, 20)).stores
    assert (store.start_depth, store.block_ids) == (5, [4]), "what was found is not offered"
    assert store.parent_key == request.block_hashes[4]


def test_a_load_that_fails_is_not_tried_again_and_its_blocks_are_offered_once_computed(bench: Bench) -> None:
    request = arrive(bench, 100, hit=5)
    assert bench.side.matched_tokens(request, 0) == (80, True)
    bench.side.allocated(request, [1, 2, 3, 4, 5], 80)
    bench.step()
    bench.report(received=("r",), invalid=(3, 4))
    assert bench.side.matched_tokens(request, 32) == (0, False)
    bench.side.allocated(request, [1, 2, 3, 4, 5, 6, 7], 0)
    (store,) = bench.step(new=(request, [1, 2, 3, 4, 5, 6, 7], 32, 68)).stores
    assert (store.start_depth, store.block_ids) == (2, [3, 4, 5, 6])


def test_each_step_offers_the_blocks_it_completes(bench: Bench) -> None:
    request = arrive(bench, 70, hit=0)
    assert bench.side.matched_tokens(request, 0) == (0, False)
    bench.side.allocated(request, [1, 2, 3, 4, 5], 0)
    (first,) = bench.step(new=(request, [1, 2, 3, 4, 5], 0, 40)).stores
    assert (first.start_depth, first.block_ids, first.parent_key) == (0, [1, 2], bytes(32))
    (second,) = bench.step(cached=(request, None, 40, 30)).stores
    assert (second.start_depth, second.block_ids) == (2, [3, 4])
    assert bench.step(cached=(request, None, 70, 1)).stores == []
    request.block_hashes.append(b"grown".ljust(32, b"."))
    (third,) = bench.step(cached=(request, [6], 79, 1)).stores
    assert (third.start_depth, third.block_ids) == (4, [5])


def test_a_chain_whose_beginning_is_gone_is_offered_again_from_where_the_daemon_still_holds_it(bench: Bench) -> None:
    request = arrive(bench, 100, hit=0)
    bench.side.matched_tokens(request, 0)
    bench.side.allocated(request, [1, 2, 3, 4, 5, 6, 7], 0)
    (first,) = bench.step(new=(request, [1, 2, 3, 4, 5, 6, 7], 0, 64)).stores
    bench.report(stores={first.serial: StoreOutcome(visible=4)})
    (second,) = bench.step(cached=(request, None, 64, 32)).stores
    bench.report(stores={second.serial: StoreOutcome(visible=4, resident=1)})
    (again,) = bench.step(cached=(request, None, 96, 1)).stores
    assert (again.start_depth, again.block_ids) == (1, [2, 3, 4, 5, 6])
    assert bench.count("parent_absent") == 1


def test_new_blocks_are_offered_behind_those_under_way_and_take_along_what_was_refused(bench: Bench) -> None:
    request = arrive(bench, 160, hit=0)
    blocks = list(range(1, 11))
    bench.side.matched_tokens(request, 0)
    bench.side.allocated(request, blocks, 0)
    (first,) = bench.step(new=(request, blocks, 0, 48)).stores
    (second,) = bench.step(cached=(request, None, 48, 32)).stores
    assert (second.start_depth, second.block_ids) == (3, [4, 5]), "the first may yet be acknowledged"
    bench.report(stores={first.serial: StoreOutcome(visible=2), second.serial: StoreOutcome(visible=3)})
    assert bench.step(cached=(request, None, 80, 1)).stores == [], "what was refused is not offered by itself"
    (third,) = bench.step(cached=(request, None, 81, 15)).stores
    assert (third.start_depth, third.block_ids) == (2, [3, 4, 5, 6])
    assert third.parent_key == request.block_hashes[1]
    bench.report(stores={third.serial: StoreOutcome(visible=6)})
    (fourth,) = bench.step(cached=(request, None, 96, 16)).stores
    assert (fourth.start_depth, fourth.block_ids) == (6, [7])
    assert bench.count("stored_blocks_short") == 3


def test_a_finished_requests_blocks_are_kept_while_they_are_copied(bench: Bench) -> None:
    request = arrive(bench, 64, hit=0)
    bench.side.matched_tokens(request, 0)
    bench.side.allocated(request, [1, 2, 3, 4], 0)
    (store,) = bench.step(new=(request, [1, 2, 3, 4], 0, 64)).stores
    assert bench.side.finished(request) is True
    assert bench.step().awaited == {"r"}
    assert bench.step().awaited == set()
    bench.report(stores={store.serial: StoreOutcome(visible=4)}, sent=("r",))
    assert bench.link.ended == [1]
    assert bench.side._trackers == {}


def test_a_request_that_has_nothing_under_way_is_let_go_at_once(bench: Bench) -> None:
    request = arrive(bench, 64, hit=0)
    bench.side.matched_tokens(request, 0)
    bench.side.allocated(request, [1, 2, 3, 4], 0)
    (store,) = bench.step(new=(request, [1, 2, 3, 4], 0, 64)).stores
    bench.report(stores={store.serial: StoreOutcome(visible=4)})
    assert bench.side.finished(request) is False
    assert bench.step().awaited == set()
    assert bench.side._trackers == {}


def test_a_request_aborted_while_it_loads_is_let_go_when_the_load_is_reported(bench: Bench) -> None:
    request = arrive(bench, 100, hit=5)
    bench.side.matched_tokens(request, 0)
    bench.side.allocated(request, [1, 2, 3, 4, 5], 80)
    bench.step()
    assert bench.side.finished(request) is False, "the engine itself keeps the blocks"
    assert "r" in bench.side._trackers
    bench.report(received=("r",))
    assert bench.side._trackers == {}


def test_a_preempted_requests_stores_are_fenced_and_it_is_looked_up_anew(bench: Bench) -> None:
    request = arrive(bench, 100, hit=0)
    bench.side.matched_tokens(request, 0)
    bench.side.allocated(request, [1, 2, 3, 4, 5, 6, 7], 0)
    bench.step(new=(request, [1, 2, 3, 4, 5, 6, 7], 0, 96))
    metadata = bench.step(preempted=("r",))
    assert metadata.preempted == {"r"}
    request.num_preemptions = 1
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.link.answer(3)
    assert bench.side.matched_tokens(request, 0) == (48, True)
    bench.side.allocated(request, [11, 12, 13], 48)
    (plan,) = bench.step().loads
    assert plan.block_ids == [11, 12, 13]
    bench.report(received=("r",))
    bench.side.allocated(request, [11, 12, 13, 14, 15, 16, 17], 0)
    (store,) = bench.step(cached=(request, [11, 12, 13, 14, 15, 16, 17], 48, 52), resumed=True).stores
    assert (store.start_depth, store.block_ids) == (3, [14, 15, 16])


def test_a_wanted_proof_is_made_once_the_block_is_computed_and_its_verdict_told(bench: Bench) -> None:
    request = arrive(bench, 100, hit=0, proof_depth=3, proof_key=b"k" * 32)
    assert bench.side.matched_tokens(request, 0) == (0, False)
    bench.side.allocated(request, [1, 2, 3, 4, 5, 6, 7], 0)
    assert bench.step(new=(request, [1, 2, 3, 4, 5, 6, 7], 0, 40)).proofs == []
    (proof,) = bench.step(cached=(request, None, 40, 60)).proofs
    assert (proof.depth, proof.key, proof.lease, proof.block_id) == (3, b"k" * 32, 77, 3)
    assert bench.side.finished(request) is True, "the block is being compared"
    bench.report(sent=("r",))
    assert bench.link.ended == [], "the proof reads under the lease"
    bench.report(proofs={"r": ProofOutcome("r", same=True)})
    assert bench.link.ended == [1]
    assert bench.count("proofs") == 1
    assert bench.link.verdicts == [], "a single worker tells the daemon itself"


def test_a_proof_that_could_not_be_made_is_no_verdict(bench: Bench) -> None:
    request = arrive(bench, 100, hit=0, proof_depth=1, proof_key=b"k" * 32)
    bench.side.matched_tokens(request, 0)
    bench.side.allocated(request, [1, 2, 3, 4, 5, 6, 7], 0)
    bench.step(new=(request, [1, 2, 3, 4, 5, 6, 7], 0, 100))
    bench.report(proofs={"r": ProofOutcome("r", same=None)})
    assert bench.link.verdicts == []


def test_of_several_ranks_a_block_counts_as_stored_where_all_have_stored_it() -> None:
    sharded = Bench(Identity(descriptor(row_bytes=64, shards=2), ("a",), page_bytes=64, world=2))
    request = arrive(sharded, 64, hit=0)
    sharded.side.matched_tokens(request, 0)
    sharded.side.allocated(request, [1, 2, 3, 4], 0)
    (store,) = sharded.step(new=(request, [1, 2, 3, 4], 0, 64)).stores
    sharded.report(stores={store.serial: StoreOutcome(visible=4)})
    assert sharded.side.finished(request) is True, "one rank has not reported"
    sharded.report(stores={store.serial: StoreOutcome(visible=2, resident=2)}, sent=("r",))
    proving = arrive(sharded, 64, hit=0, name="p", proof_depth=1, proof_key=b"k" * 32)
    sharded.side.matched_tokens(proving, 0)
    sharded.side.allocated(proving, [5, 6, 7, 8], 0)
    assert len(sharded.step(new=(proving, [5, 6, 7, 8], 0, 64)).proofs) == 1
    sharded.report(proofs={"p": ProofOutcome("p", same=True)})
    assert sharded.link.verdicts == []
    sharded.report(proofs={"p": ProofOutcome("p", same=False)})
    assert sharded.link.verdicts == [(b"k" * 32, False)]
    merged = CairnWorkerMetadata({1: StoreOutcome(4)}, {"r": ProofOutcome("r", True)}).aggregate(
        CairnWorkerMetadata({1: StoreOutcome(2, 2), 2: StoreOutcome(9)}, {"r": ProofOutcome("r", False)})
    )
    assert merged.stores == {1: StoreOutcome(2, 2, ranks=2), 2: StoreOutcome(9)}
    assert merged.proofs == {"r": ProofOutcome("r", False, ranks=2)}


def test_after_a_reset_nothing_is_looked_up_or_stored(bench: Bench) -> None:
    bench.side.stop()
    request = bench.request("r", 64)
    bench.side.new_request(request)
    assert bench.link.asked == []
    assert bench.side.matched_tokens(request, 0) == (0, False)
    bench.side.allocated(request, [1, 2, 3, 4], 0)
    assert bench.step(new=(request, [1, 2, 3, 4], 0, 64)).stores == []


def test_what_a_rank_failed_to_load_counts_though_the_load_ends_steps_later() -> None:
    bench = Bench()
    request = bench.request("r", 64)
    bench.side.new_request(request)
    bench.link.answer(3)
    assert bench.side.matched_tokens(request, 0) == (48, True)
    bench.side.allocated(request, [1, 2, 3], 48)
    bench.step()
    bench.report(invalid=(2, 3))
    bench.report(received=("r",))
    # The engine has thrown away what it had and asks again: it must not be sent to the same load for ever.
    assert bench.side.matched_tokens(request, 0) == (0, False)
    assert bench.count("failed_load_requests") == 1
    plan = bench.step(new=(request, [1, 2, 3, 4], 0, 64)).stores[0]
    assert plan.start_depth == 1, "what failed is offered again"


def test_requests_of_proofs_that_a_rank_never_ends_are_given_up_at_a_bound() -> None:
    bench = Bench(Identity(descriptor(row_bytes=64, shards=2), ("a",), page_bytes=64, world=2))
    requests = [bench.request(f"r{number}", 64) for number in range(GONE_MAX + 10)]
    for request in requests:
        bench.side.new_request(request)
        bench.link.answer(0, proof_depth=2, proof_key=request.block_hashes[1])
        assert bench.side.matched_tokens(request, 0) == (0, False)
        bench.side.allocated(request, [1, 2, 3, 4], 0)
        bench.step(new=(request, [1, 2, 3, 4], 0, 64))
        assert bench.side.finished(request) is True
        bench.report(proofs={request.request_id: ProofOutcome(request.request_id, same=True)})
        bench.report(sent=(request.request_id,))
    held = [request for request in requests if request.request_id in bench.side._trackers]
    assert held == requests[-GONE_MAX:]
    assert set(bench.side._partial_proofs) == {request.request_id for request in held}


def test_another_request_under_the_id_of_one_whose_load_runs_is_looked_up_by_its_own_keys() -> None:
    bench = Bench()
    old = bench.request("r", 64)
    bench.side.new_request(old)
    bench.link.answer(3)
    bench.side.matched_tokens(old, 0)
    bench.side.allocated(old, [1, 2, 3], 48)
    bench.step()
    assert bench.side.finished(old) is False
    other = bench.request("other", 64)
    other.request_id = "r"
    bench.side.new_request(other)
    assert bench.link.asked[-1][1] == b"".join(other.block_hashes)
    bench.report(received=("r",), invalid=(1,))
    bench.link.answer(2)
    assert bench.side.matched_tokens(other, 0) == (32, True), "the old load's end is not the new request's"


def test_while_a_worker_has_no_window_nothing_is_looked_up_offered_or_promised(bench: Bench) -> None:
    known = arrive(bench, 100, 4, "known")
    bench.report(windows={0: True, 1: False})
    assert bench.side.matched_tokens(known, 0) == (0, False), "a load would fail"
    bench.side.allocated(known, [1, 2, 3, 4, 5, 6, 7], 0)
    assert bench.step(new=(known, [1, 2, 3, 4, 5, 6, 7], 0, 100)).stores == []
    asked = len(bench.link.asked)
    new = bench.request("new", 100)
    bench.side.new_request(new)
    assert bench.side.matched_tokens(new, 0) == (0, False)
    assert len(bench.link.asked) == asked
    assert bench.count("lookups_unavailable") == 0


def test_a_window_that_the_daemon_has_again_is_used_again(bench: Bench) -> None:
    bench.report(windows={0: False, 1: False})
    request = bench.request("r", 100)
    bench.side.new_request(request)
    bench.report(windows={1: True})
    assert bench.side.matched_tokens(request, 0) == (0, False), "the other rank's is still refused"
    bench.report(windows={0: True})
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.link.answer(4)
    assert bench.side.matched_tokens(request, 0) == (64, True)
    assert len(bench.step(new=(request, [1, 2, 3, 4, 5, 6, 7], 0, 100)).stores) == 1


def test_several_workers_tell_of_their_windows_in_one_answer() -> None:
    told = CairnWorkerMetadata(windows={0: False}).aggregate(CairnWorkerMetadata(windows={1: True}))
    assert told.windows == {0: False, 1: True}
