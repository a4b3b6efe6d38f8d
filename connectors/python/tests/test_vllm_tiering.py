"""The tier of vLLM's own tiering, without the engine, against a real daemon: look-ups, jobs, proof."""

from __future__ import annotations

import ctypes
import hashlib
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from daemon import Daemon, descriptor, eventually

from cairn_kv import Session
from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity
from cairn_kv.adapters.proof import comparison_of
from cairn_kv.vllm import tiering
from cairn_kv.vllm.tier_link import ChunkRows, TierSession, fold_key
from cairn_kv.vllm.tiering import Result, TierSide, Verdict
from cairn_kv.vllm.worker import WorkerSide

CHUNK_BYTES = 4_096
CHUNKS = 64
WINDOW_ROWS = 8
#: A type whose values are compared byte by byte.
BYTES = SimpleNamespace(is_floating_point=False)
IDENTITY = Identity(descriptor(chained=False, row_bytes=CHUNK_BYTES), ("chunk",), CHUNK_BYTES, world=1)


def keys_of(family: str, count: int, group: int = 0) -> list[bytes]:
    """The engine's keys of chunks: a hash and the number of a group."""
    return [hashlib.sha256(f"{family} {at}".encode()).digest() + group.to_bytes(4, "big") for at in range(count)]


def bytes_of(key: bytes) -> bytes:
    """What a chunk of this key holds."""
    return hashlib.sha256(key).digest() * (CHUNK_BYTES // 32)


class Tier:
    """One engine's tier, the CPU tier before it, and the results that came so far."""

    def __init__(self, daemon: Daemon, name: str, lookup_seconds: float = 5.0) -> None:
        self.memory = bytearray(CHUNKS * CHUNK_BYTES)
        view = memoryview(self.memory).cast("b", (CHUNKS, CHUNK_BYTES))
        self.session = Session(daemon.socket, name, [descriptor(chained=False, row_bytes=CHUNK_BYTES)])
        assert self.session.wait_connected(30)
        window = self.session.create_window(WINDOW_ROWS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(window.memory))
        self.rows = ChunkRows(view, address, window.stride_bytes)
        self.stats = CairnStats()
        link = TierSession(self.session, window, IDENTITY, lookup_seconds)
        self.side = TierSide(
            link,
            WorkerSide(IDENTITY, 0, link, WINDOW_ROWS, self.rows, comparison_of(BYTES), self.stats),  # type: ignore[arg-type]
            self.stats,
        )
        self.results: dict[int, Result] = {}
        self._jobs = 0

    def put(self, keys: list[bytes], first: int) -> list[int]:
        """What the engine computed for these keys, from this chunk on."""
        chunks = list(range(first, first + len(keys)))
        for key, chunk in zip(keys, chunks, strict=True):
            self.memory[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES] = bytes_of(key)
        return chunks

    def held(self, chunk: int) -> bytes:
        """What the engine's CPU tier holds."""
        return bytes(self.memory[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES])

    def begin_store(self, keys: list[bytes], first: int = 0) -> int:
        """Begins a job; its number."""
        self._jobs += 1
        self.side.store(self._jobs, "stores", keys, self.put(keys, first))
        return self._jobs

    def begin_load(self, request: str, keys: list[bytes], chunks: list[int]) -> int:
        """Begins a job; its number."""
        self._jobs += 1
        self.side.load(self._jobs, request, keys, chunks)
        return self._jobs

    def end(self, job: int) -> Result:
        """A job's one result."""
        eventually(f"job {job} ends", lambda: job in self._taken())
        return self.results[job]

    def _taken(self) -> dict[int, Result]:
        for result in self.side.finished():
            assert result.job not in self.results, "a job ended twice"
            self.results[result.job] = result
        return self.results

    def verdicts(self, request: str, keys: list[bytes]) -> list[Verdict]:
        """What the engine is told in the end: it asks for one key after the other, until a miss."""
        found: list[Verdict] = []

        def asked() -> bool:
            found.clear()
            for key in keys:
                found.append(self.side.lookup(request, key))
                if found[-1] is Verdict.MISS:
                    break
            self.side.step_ended(())
            return Verdict.RETRY not in found

        eventually("an answer", asked)
        return found

    def close(self) -> None:
        self.side.close()
        self.rows.close()


@pytest.fixture
def tier(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Tier]:
    made = Tier(daemon, request.node.name)
    yield made
    made.close()


HIT, MISS, RETRY = Verdict.HIT, Verdict.MISS, Verdict.RETRY


def test_chunks_come_back_as_they_were_stored_in_pieces_that_fit_the_window(tier: Tier) -> None:
    keys = keys_of("whole", 20)
    assert tier.verdicts("a", keys) == [MISS]
    assert tier.end(tier.begin_store(keys)).success
    assert tier.verdicts("b", keys) == [HIT] * 20
    targets = list(range(30, 50))
    loaded = tier.end(tier.begin_load("b", keys, targets))
    assert (loaded.success, loaded.loaded) == (True, keys)
    assert [tier.held(chunk) for chunk in targets] == [bytes_of(key) for key in keys]


def test_a_look_up_is_asked_again_while_it_is_under_way_and_then_holds_for_the_request(tier: Tier) -> None:
    keys = keys_of("asked", 5)
    tier.end(tier.begin_store(keys[:3]))
    assert [tier.side.lookup("a", key) for key in keys] == [RETRY] * 5
    assert tier.verdicts("a", keys) == [HIT, HIT, HIT, MISS]
    tier.end(tier.begin_store(keys[3:], 3))
    assert tier.side.lookup("a", keys[3]) is MISS, "the answer holds"
    tier.side.step_ended(["a"])
    assert tier.verdicts("a", keys) == [HIT] * 5, "a preempted request begins anew"
    tier.side.request_ended("a")
    assert tier.side.lookup("a", keys[0]) is RETRY, "and a finished one is forgotten"
    assert tier.stats.totals()["lookups"] == 2, "one look-up for all that is asked in a step"


def test_a_request_that_looks_behind_a_miss_gets_an_answer_for_each_chunk(tier: Tier) -> None:
    keys = keys_of("window", 6)
    tier.end(tier.begin_store([keys[0], keys[3], keys[5]]))
    found: dict[bytes, Verdict] = {}

    def asked() -> bool:
        found.update({key: tier.side.lookup("a", key) for key in reversed(keys)})
        tier.side.step_ended(())
        return RETRY not in found.values()

    eventually("an answer for each", asked)
    assert [found[key] for key in keys] == [HIT, MISS, MISS, HIT, MISS, HIT]


def test_what_is_gone_when_it_is_loaded_is_named_and_not_found_again_by_that_request(tier: Tier) -> None:
    keys = keys_of("partial", 4)
    tier.end(tier.begin_store(keys[:2]))
    other = tier.held(32)
    tier.verdicts("a", keys[:2])
    ended = tier.end(tier.begin_load("a", keys, [30, 31, 32, 33]))
    assert (ended.success, ended.loaded) == (False, keys[:2])
    assert [tier.held(30), tier.held(31)] == [bytes_of(key) for key in keys[:2]]
    assert tier.held(32) == other
    assert [tier.side.lookup("a", key) for key in keys] == [HIT, HIT, MISS, MISS]


def test_groups_of_one_hash_are_different_chunks_and_the_first_keeps_the_engines_hash(tier: Tier) -> None:
    first, second = keys_of("groups", 1), keys_of("groups", 1, group=7)
    assert first[0][:-4] == second[0][:-4] == fold_key(first[0])
    tier.end(tier.begin_store(first))
    assert tier.verdicts("a", second) == [MISS]
    assert tier.verdicts("b", first) == [HIT]
    short = b"\1" * 16
    assert fold_key(short + bytes(4)) == bytes(16) + short
    assert fold_key(bytes(40) + bytes(4)) is None
    assert tier.side.lookup("c", bytes(44)) is MISS
    assert not tier.end(tier.begin_store([bytes(44)])).success


def test_what_does_not_fit_the_queue_ends_at_once_as_not_stored(tier: Tier) -> None:
    jobs = [tier.begin_store(keys_of(f"shed {number}", 30)) for number in range(12)]
    ended = [tier.end(job) for job in jobs]
    assert ended[0].success
    assert not all(result.success for result in ended)
    assert tier.stats.totals()["shed_blocks"] > 0


def test_draining_waits_for_every_job_and_leaves_its_result_and_after_the_stop_nothing_is_found(tier: Tier) -> None:
    keys = keys_of("drain", 20)
    jobs = {tier.begin_store(keys), tier.begin_load("a", keys_of("not there", 3), [40, 41, 42])}
    tier.side.drain()
    assert {result.job for result in tier.side.finished()} == jobs
    assert tier.side.finished() == []
    assert tier.verdicts("b", keys) == [HIT] * 20
    tier.side.stop()
    assert tier.side.lookup("b", keys[0]) is MISS, "also where the answer was known"
    assert not tier.end(tier.begin_store(keys)).success


def test_a_job_without_chunks_ends_at_once(tier: Tier) -> None:
    jobs = [tier.begin_store([]), tier.begin_load("a", [], [])]
    assert [(result.job, result.success) for result in tier.side.finished()] == [(job, True) for job in jobs]


def test_a_drain_that_takes_too_long_fails_what_is_under_way_and_ends_the_session(
    own_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiering, "DRAIN_SECONDS_MAX", 0.05)
    tier = Tier(own_daemon, "drained")
    try:
        keys = keys_of("drained", 4)
        assert tier.end(tier.begin_store(keys)).success
        own_daemon.send(signal.SIGSTOP)
        jobs = {tier.begin_store(keys_of("late", 4)), tier.begin_load("a", keys, [30, 31, 32, 33])}
        tier.side.drain()
        results = tier.side.finished()
        assert {result.job for result in results} == jobs
        assert not any(result.success for result in results)
        assert not tier.session.connected, "nothing of it lands in the engine's memory any more"
        assert tier.side.lookup("b", keys[0]) is MISS
        assert not tier.end(tier.begin_store(keys)).success
    finally:
        own_daemon.send(signal.SIGCONT)
        tier.close()


def test_after_the_end_nothing_touches_the_engines_memory(tier: Tier) -> None:
    keys = keys_of("closed", 4)
    tier.end(tier.begin_store(keys))
    tier.begin_load("a", keys, [30, 31, 32, 33])
    tier.close()
    before = bytes(tier.memory)
    tier.rows.scatter(0, 50)
    time.sleep(0.05)
    assert bytes(tier.memory) == before


def test_a_daemon_that_dies_ends_each_job_once_and_one_that_comes_back_is_believed_after_a_proof() -> None:
    daemon = Daemon({"engineApi": {"proof": "required"}}).start()
    tier = Tier(daemon, "dies")
    try:
        keys = keys_of("dies", 20)
        assert tier.end(tier.begin_store(keys)).success
        under_way = [tier.begin_load("a", keys, list(range(30, 50)))]
        under_way += [tier.begin_store(keys_of(f"lost {number}", 8), 20) for number in range(3)]
        daemon.kill()
        for job in under_way:
            tier.end(job)
        eventually("the loss is known", lambda: not tier.session.connected)
        assert tier.verdicts("b", keys) == [MISS]
        assert not tier.end(tier.begin_load("b", keys, list(range(30, 50)))).success
        assert not tier.end(tier.begin_store(keys)).success
        daemon.start()
        eventually("the daemon is back", lambda: tier.session.connected)
        assert tier.verdicts("c", keys) == [MISS], "what was there before it died is not proven"
        assert tier.end(tier.begin_store(keys)).success
        assert tier.stats.totals()["proofs"] == 1
        assert tier.verdicts("d", keys) == [HIT] * 20
        assert tier.end(tier.begin_load("d", keys, list(range(40, 60)))).success
        assert [tier.held(chunk) for chunk in range(40, 60)] == [bytes_of(key) for key in keys]
    finally:
        tier.close()
        daemon.remove()


def test_a_daemon_that_hangs_is_a_miss_and_ends_each_job_once_and_serves_again_when_it_goes_on(
    own_daemon: Daemon,
) -> None:
    tier = Tier(own_daemon, "hangs", lookup_seconds=0.2)
    try:
        keys = keys_of("hangs", 4)
        assert tier.end(tier.begin_store(keys)).success
        own_daemon.send(signal.SIGSTOP)
        under_way = [tier.begin_load("a", keys, [30, 31, 32, 33]), tier.begin_store(keys_of("more", 4), 4)]
        assert tier.verdicts("b", keys) == [MISS]
        assert not any(tier.end(job).success for job in under_way)
        untouched = [tier.held(chunk) for chunk in (30, 31, 32, 33)]
        own_daemon.send(signal.SIGCONT)
        eventually("the daemon answers", lambda: tier.session.connected)
        assert [tier.held(chunk) for chunk in (30, 31, 32, 33)] == untouched
        assert tier.verdicts("c", keys) == [HIT] * 4
        assert tier.end(tier.begin_load("c", keys, [30, 31, 32, 33])).success
    finally:
        tier.close()


def test_stored_chunks_that_differ_from_the_computed_ones_are_given_up_and_stored_anew() -> None:
    daemon = Daemon({"engineApi": {"proof": "required"}}).start()
    first, second = Tier(daemon, "first"), Tier(daemon, "second")
    try:
        keys = keys_of("differs", 3)
        chunks = first.put(keys, 0)
        first.memory[: 3 * CHUNK_BYTES] = b"of another model".ljust(CHUNK_BYTES) * 3
        first.side.store(99, "a", keys, chunks)
        assert first.end(99).success
        assert second.verdicts("a", keys) == [MISS]
        assert second.end(second.begin_store(keys)).success
        assert second.stats.totals()["proofs_failed"] == 1
        assert second.verdicts("b", keys) == [HIT] * 3
        assert second.end(second.begin_load("b", keys, [30, 31, 32])).success
        assert [second.held(chunk) for chunk in (30, 31, 32)] == [bytes_of(key) for key in keys]
    finally:
        first.close()
        second.close()
        daemon.remove()


def test_a_fault_of_our_own_ends_every_job_and_refuses_those_to_come(
    tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keys_of("fault", 4)
    assert tier.end(tier.begin_store(keys)).success

    def fault(*_: int) -> None:
        raise RuntimeError("a fault of the test's")

    monkeypatch.setattr(tier.rows, "gather", fault)
    jobs = [tier.begin_store(keys_of(f"fault {number}", 4)) for number in range(3)]
    jobs.append(tier.begin_load("a", keys, [30, 31, 32, 33]))
    for job in jobs:
        tier.end(job)
    assert not tier.end(tier.begin_store(keys_of("later", 1))).success
    assert not tier.end(tier.begin_load("a", keys, [30, 31, 32, 33])).success
    assert tier.verdicts("a", keys) == [MISS]
