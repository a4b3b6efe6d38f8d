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
from cairn_kv.vllm.scheduler import REMOTE_HINT_SHARE, REMOTE_POLL_SECONDS, SchedulerSide

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


def test_what_other_nodes_have_is_fetched_looked_up_again_and_loaded(bench: Bench) -> None:
    request = arrive(bench, hit=1, remote=4)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert bench.link.fetches == [(1, WAIT_SECONDS)]
    bench.now += 0.4
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.link.fetched(4)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    assert len(bench.link.asked) == 2, "what came is not leased yet"
    bench.link.answer(4)
    assert bench.side.matched_tokens(request, 0) == (4 * BLOCK_TOKENS, True)
    assert len(bench.link.fetches) == 1
    assert (bench.count("remote_fetches"), bench.count("remote_blocks")) == (1, 3)
    assert bench.count("remote_seconds_sum") == pytest.approx(0.4)


def test_a_fetch_that_brings_nothing_costs_no_look_up_and_the_request_goes_on(bench: Bench) -> None:
    request = arrive(bench, hit=2, remote=4)
    bench.side.matched_tokens(request, 0)
    bench.link.fetched(2)
    assert bench.side.matched_tokens(request, 0) == (2 * BLOCK_TOKENS, True)
    assert len(bench.link.asked) == 1
    assert bench.count("remote_blocks") == 0


def test_a_fetch_that_does_not_end_is_waited_for_no_longer_than_was_said(bench: Bench) -> None:
    request = arrive(bench, hit=2, remote=4)
    bench.side.matched_tokens(request, 0)
    bench.now += WAIT_SECONDS * 0.99
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.now += WAIT_SECONDS * 0.02
    assert bench.side.matched_tokens(request, 0) == (2 * BLOCK_TOKENS, True)
    # Its end, when it comes all the same, changes nothing.
    bench.link.fetched(4)
    assert bench.side.matched_tokens(request, 0) == (2 * BLOCK_TOKENS, True)


def test_while_the_store_is_asked_the_look_up_is_repeated_for_a_share_of_the_wait(bench: Bench) -> None:
    request = arrive(bench, remote_asking=True)
    while bench.now < 100 + WAIT_SECONDS * REMOTE_HINT_SHARE:
        assert bench.side.matched_tokens(request, 0) == (None, False)
        bench.now += REMOTE_POLL_SECONDS / 2
        if len(bench.link.asked) > bench.link.answered:
            bench.link.answer(0, remote_asking=True)
    bench.now += REMOTE_POLL_SECONDS
    assert bench.side.matched_tokens(request, 0) == (0, False)
    assert 5 < len(bench.link.asked) <= 2 + WAIT_SECONDS * REMOTE_HINT_SHARE / REMOTE_POLL_SECONDS
    assert bench.link.fetches == []


def test_what_the_store_turns_out_to_have_is_fetched(bench: Bench) -> None:
    request = arrive(bench, remote_asking=True)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.now += REMOTE_POLL_SECONDS
    assert bench.side.matched_tokens(request, 0) == (None, False)
    bench.link.answer(0, remote=4)
    assert bench.side.matched_tokens(request, 0) == (None, False)
    ((number, seconds),) = bench.link.fetches
    assert number == 1
    assert seconds == pytest.approx(WAIT_SECONDS - REMOTE_POLL_SECONDS)


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
    request = arrive(bench, remote=4)
    bench.side.matched_tokens(request, 0)
    assert bench.side.finished(request) is False
    assert bench.link.ended == [1], "which cancels its fetch"
    bench.link.fetched(4)
    bench.side._take_answers()
    assert (bench.side._fetches, bench.side._trackers, bench.side._by_tag) == ({}, {}, {})


def test_without_a_daemon_there_is_no_wait(bench: Bench) -> None:
    request = arrive(bench, remote=4)
    bench.side._take_answers()
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


def ask_until_answered(side: SchedulerSide, request: Any) -> tuple[int, bool]:
    """The engine's loop: it asks at every step."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        tokens, between = side.matched_tokens(request, 0)
        if tokens is not None:
            return tokens, between
        time.sleep(0.001)
    raise AssertionError("the request waits for ever")


def test_blocks_of_one_node_are_found_on_the_other_and_unknown_prompts_wait_for_one_answer(
    nodes: list[Daemon],
) -> None:
    blocks = 2 * CHUNK_BLOCKS + 3
    chain = keys_of(1, blocks)
    stats = CairnStats()
    with (
        Session(nodes[0].socket, "first", [descriptor()]) as first,
        Session(nodes[1].socket, "second", [descriptor()]) as second,
    ):
        assert first.wait_connected(30.0)
        assert second.wait_connected(30.0)
        store(first, first.create_window(blocks), chain)
        link = SchedulerSession(second, 5.0, keep_chain=True)
        side = SchedulerSide(IDENTITY, link, stats, 5.0, remote_wait_seconds=30.0)
        numbers = itertools.count()

        def found(keys: list[bytes]) -> int:
            request = SimpleNamespace(
                request_id=str(next(numbers)),
                num_tokens=blocks * BLOCK_TOKENS + 1,
                block_hashes=keys,
                num_preemptions=0,
            )
            side.new_request(request)
            tokens, _ = ask_until_answered(side, request)
            side.finished(request)
            return tokens // BLOCK_TOKENS

        # The first node uploads beside its work.
        eventually("the chunks come", lambda: found(chain) == 2 * CHUNK_BLOCKS)
        assert stats.totals()["remote_blocks"] == 2 * CHUNK_BLOCKS
        began = time.monotonic()
        assert found(keys_of(2, blocks)) == 0
        assert time.monotonic() - began < 30.0 * REMOTE_HINT_SHARE, "it was told that nothing is there"
