"""A request of vLLM that waits for what other nodes stored: against a link of the test's own, and over two daemons."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from daemon import BLOCK_TOKENS, ROW_BYTES, Daemon, descriptor, eventually, keys_of, store
from test_vllm_scheduler import IDENTITY, Bench

from cairn_kv import Session
from cairn_kv.adapters.counters import CairnStats
from cairn_kv.vllm.links import SchedulerSession
from cairn_kv.vllm.remote_wait import HINT_SHARE, POLL_SECONDS
from cairn_kv.vllm.scheduler import SchedulerSide

WAIT_SECONDS = 1.0
CHUNK_BLOCKS = 16


@pytest.fixture
def bench() -> Bench:
    return Bench(remote_wait_seconds=WAIT_SECONDS)


def arrive(bench: Bench, tokens: int = 100, hit: int = 0, **known: Any) -> Any:
    """A request whose first look-up is answered."""
    request = bench.request("r", tokens)
    bench.side.new_request(request)
    bench.link.answer(hit, **known)
    return request


def test_without_a_wait_nothing_is_fetched_or_asked_again() -> None:
    bench = Bench()
    request = arrive(bench, remote=6, remote_asking=True)
    assert bench.side.matched_tokens(request, 0) == (0, False)
    assert (len(bench.link.asked), bench.link.fetches) == (1, [])


def waiting(bench: Bench, hit: int = 0, **known: Any) -> Any:
    """A request that waits, looked up again so that the daemon keeps its chain."""
    request = arrive(bench, hit=hit, **known)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert bench.link.kept == [False, True]
    assert bench.link.fetches == []
    bench.link.answer(hit, **known)
    return request


def test_what_other_nodes_have_is_fetched_looked_up_again_and_loaded(bench: Bench) -> None:
    request = waiting(bench, hit=1, remote=4)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert bench.link.fetches == [(1, WAIT_SECONDS)]
    bench.now += 0.4
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.link.fetched(4)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert len(bench.link.asked) == 3, "what came is not leased yet"
    bench.link.answer(4)
    assert bench.side.matched_tokens(request, 0) == (4 * BLOCK_TOKENS, True)
    assert len(bench.link.fetches) == 1
    assert (bench.count("remote_fetches"), bench.count("remote_blocks")) == (1, 3)
    assert bench.count("hit_blocks") == 4
    assert bench.count("remote_seconds_sum") == pytest.approx(0.4)


def test_a_fetch_that_brings_nothing_costs_no_look_up_and_the_request_goes_on(bench: Bench) -> None:
    request = waiting(bench, hit=2, remote=4)
    bench.side.matched_tokens(request, 0)
    bench.link.fetched(2)
    assert bench.side.matched_tokens(request, 0) == (2 * BLOCK_TOKENS, True)
    assert len(bench.link.asked) == 2
    assert bench.count("remote_blocks") == 0


def test_when_the_time_is_over_the_request_goes_on_with_what_has_come(bench: Bench) -> None:
    request = waiting(bench, remote=4)
    bench.side.matched_tokens(request, 0)
    bench.now += WAIT_SECONDS * 0.99
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.now += WAIT_SECONDS * 0.02
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert len(bench.link.asked) == 3
    bench.link.answer(3, remote=4, remote_asking=True)
    assert bench.side.matched_tokens(request, 0) == (3 * BLOCK_TOKENS, True)
    # The fetch's end, when it comes all the same, changes nothing.
    bench.link.fetched(4)
    assert bench.side.matched_tokens(request, 0) == (3 * BLOCK_TOKENS, True)


def test_a_late_answer_in_the_middle_of_the_wait_loses_neither_the_wait_nor_the_hit(bench: Bench) -> None:
    request = arrive(bench, hit=3, remote=6)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.now += 0.06
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert (len(bench.link.asked), bench.count("lookup_timeouts")) == (3, 1)
    bench.link.answer(3, remote=6)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert len(bench.link.fetches) == 1
    # After its time a late answer is a miss, as ever.
    bench.now += WAIT_SECONDS
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.now += 0.06
    assert bench.side.matched_tokens(request, 0) == (0, False)


def test_while_the_store_is_asked_the_look_up_is_repeated_for_a_share_of_the_wait(bench: Bench) -> None:
    request = waiting(bench, remote_asking=True)
    while bench.now < 100 + WAIT_SECONDS * HINT_SHARE:
        assert bench.side.matched_tokens(request, 0) == (None, False)
        bench.now += POLL_SECONDS / 2
        if len(bench.link.asked) > bench.link.answered:
            bench.link.answer(0, remote_asking=True)
    bench.now += POLL_SECONDS
    assert bench.side.matched_tokens(request, 0) == (0, False)
    assert 5 < len(bench.link.asked) <= 3 + WAIT_SECONDS * HINT_SHARE / POLL_SECONDS
    assert bench.link.fetches == []
    assert bench.count("remote_seconds_count") == 1


def test_what_the_store_turns_out_to_have_is_fetched(bench: Bench) -> None:
    request = waiting(bench, remote_asking=True)
    bench.now += POLL_SECONDS
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.link.answer(0, remote=4)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    ((number, seconds),) = bench.link.fetches
    assert number == 1
    assert seconds == pytest.approx(WAIT_SECONDS - POLL_SECONDS)


def test_when_the_store_has_nothing_the_request_does_not_wait(bench: Bench) -> None:
    request = arrive(bench, hit=1)
    assert bench.side.matched_tokens(request, 0) == (BLOCK_TOKENS, True)


@pytest.mark.parametrize(("computed", "hit", "remote"), [(96, 0, 6), (0, 6, 6), (64, 0, 4), (0, 4, 4)])
def test_what_the_engine_or_the_daemon_has_already_is_not_waited_for(
    bench: Bench, computed: int, hit: int, remote: int
) -> None:
    request = arrive(bench, hit=hit, remote=remote)
    assert bench.side.matched_tokens(request, computed)[0] is not None
    assert bench.link.fetches == []


def test_an_outstanding_proof_comes_first(bench: Bench) -> None:
    request = arrive(bench, remote=6, proof_depth=2, proof_key=b"k" * 32)
    assert bench.side.matched_tokens(request, 0) == (0, False)
    assert bench.link.fetches == []


def test_a_request_that_is_given_up_while_it_waits_ends_at_the_daemon_and_leaves_nothing(bench: Bench) -> None:
    request = waiting(bench, remote=4)
    bench.side.matched_tokens(request, 0)
    assert bench.side.finished(request) is False
    assert bench.link.ended == [1], "which cancels its fetch"
    bench.link.fetched(4)
    bench.side._take_answers()
    assert (bench.side._remote._fetches, bench.side._trackers, bench.side._by_tag) == ({}, {}, {})


def test_a_chain_that_was_kept_for_a_wait_in_vain_is_given_back_when_the_request_begins(bench: Bench) -> None:
    request = waiting(bench, remote_asking=True)
    bench.link.waiting.clear()
    bench.link.answer(0)
    assert bench.side.matched_tokens(request, 0) == (0, False)
    bench.side.allocated(request, [1, 2], 0)
    assert bench.link.ended == [1]


def test_a_fetch_that_cannot_be_sent_ends_the_wait(bench: Bench) -> None:
    request = waiting(bench, remote=4)
    bench.link.refuses = True
    assert bench.side.matched_tokens(request, 0) == (0, False)


@pytest.fixture
def nodes() -> Iterator[list[Daemon]]:
    """Two nodes over one shared directory."""
    with tempfile.TemporaryDirectory(prefix="cairn-remote-") as shared:
        # Chunks of sixteen blocks, however small those are.
        chunks = {"chunkBytesMax": CHUNK_BLOCKS * ROW_BYTES}
        remote = {"enabled": True, "kind": "directory", "directory": shared, "cacheAbsentMs": 50, **chunks}
        own = [Daemon({"remote": remote}).start() for _ in range(2)]
        yield own
        for daemon in own:
            daemon.remove()


class Engine:
    """The engine's loop over a scheduler's half: it asks for every request at every step."""

    def __init__(self, session: Session, stats: CairnStats) -> None:
        self._side = SchedulerSide(IDENTITY, SchedulerSession(session, 5.0), stats, 5.0, remote_wait_seconds=30.0)
        self._numbers = itertools.count()

    def found(self, *chains: list[bytes]) -> list[int]:
        """Blocks that are found of chains that are asked for at once."""
        waiting = {
            at: SimpleNamespace(
                request_id=str(next(self._numbers)),
                num_tokens=len(chain) * BLOCK_TOKENS + 1,
                block_hashes=chain,
                num_preemptions=0,
            )
            for at, chain in enumerate(chains)
        }
        for request in waiting.values():
            self._side.new_request(request)
        blocks = [0] * len(chains)
        until = time.monotonic() + 60
        while waiting:
            assert time.monotonic() < until, "a request waits for ever"
            time.sleep(0.001)
            for at, request in list(waiting.items()):
                tokens, _ = self._side.matched_tokens(request, 0)
                if tokens is None:
                    continue
                blocks[at] = tokens // BLOCK_TOKENS
                del waiting[at]
                self._side.finished(request)
        return blocks


def test_blocks_of_one_node_are_found_on_the_other_also_by_requests_that_come_together(nodes: list[Daemon]) -> None:
    blocks = 2 * CHUNK_BLOCKS + 3
    alone, shared, unknown = (keys_of(family, blocks) for family in (1, 2, 3))
    stats = CairnStats()
    with (
        Session(nodes[0].socket, "first", [descriptor()]) as first,
        Session(nodes[1].socket, "second", [descriptor()]) as second,
    ):
        assert first.wait_connected(30.0)
        assert second.wait_connected(30.0)
        window = first.create_window(blocks)
        for chain in (alone, shared):
            store(first, window, chain)
            # The first node uploads beside its work.
            eventually("its chunks", lambda chain=chain: hint_of(second, chain) == 2 * CHUNK_BLOCKS)  # type: ignore[misc]
        engine = Engine(second, stats)
        assert engine.found(alone) == [2 * CHUNK_BLOCKS]
        assert stats.totals()["remote_blocks"] == 2 * CHUNK_BLOCKS
        assert engine.found(shared, shared, shared, alone, shared[:CHUNK_BLOCKS] + unknown[:CHUNK_BLOCKS]) == [
            *[2 * CHUNK_BLOCKS] * 4,
            CHUNK_BLOCKS,
        ]
        began = time.monotonic()
        assert engine.found(unknown) == [0]
        assert time.monotonic() - began < 30.0 * HINT_SHARE, "it was told that nothing is there"


def hint_of(session: Session, chain: list[bytes]) -> int:
    """What the daemon knows of other nodes' blocks."""
    done = session.lookup(999_999, chain)
    return done.remote_prefix_blocks
