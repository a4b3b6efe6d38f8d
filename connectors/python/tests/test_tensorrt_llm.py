"""The TensorRT-LLM connector, driven in the engine's own call order against the real daemon."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import trtllm_engine
from daemon import Daemon, eventually
from trtllm_engine import BLOCK_TOKENS, ROW_BYTES, Engine, Request, llm_args

trtllm_engine.install()

from cairn_kv import Session  # noqa: E402
from cairn_kv.adapters.identity import NotServed  # noqa: E402
from cairn_kv.completions import CancelDone, FailedBlock, LoadDone  # noqa: E402
from cairn_kv.errors import ErrorCode  # noqa: E402
from cairn_kv.tensorrt_llm import connector, scheduler  # noqa: E402
from cairn_kv.tensorrt_llm.chain import BlockChain, salt_of  # noqa: E402
from cairn_kv.tensorrt_llm.identity import PoolFacts, identity_of, text_only  # noqa: E402
from cairn_kv.tensorrt_llm.mailbox import NOTES, Cell, CutOff, Mailbox, Mirror  # noqa: E402
from cairn_kv.tensorrt_llm.metadata import Source, Step  # noqa: E402
from cairn_kv.tensorrt_llm.options import Options  # noqa: E402
from cairn_kv.tensorrt_llm.staging import Staging, row_stride  # noqa: E402

Start = Callable[..., Engine]
Prompt = Callable[[int], list[int]]
FACTS = PoolFacts(64, ROW_BYTES, "bfloat16", "full_attention", {"manager": "test"})


@pytest.fixture
def prompt(chance: random.Random) -> Prompt:
    """Prompts of so many tokens that nobody else has."""
    return lambda tokens: [chance.randrange(1 << 20) for _ in range(tokens)]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts engines at a daemon; all end with the test."""
    engines: list[Engine] = []
    monkeypatch.setattr(connector, "pool_of_tensor", lambda cache, slots_of: cache.pool(slots_of))
    monkeypatch.setattr(connector, "CONNECT_SECONDS", 30.0)

    def make(daemon: Daemon, arguments: SimpleNamespace | None = None, **settings: Any) -> Engine:
        options = {"LOOKUP_MS": 10_000, "STAGE_MS": 30_000, "STAGING_BYTES": 1 << 20, "WINDOW_BYTES": 1 << 18}
        for name, value in {**options, **settings.pop("options", {}), "SOCKET": daemon.socket}.items():
            monkeypatch.setenv(f"TRTLLM_CAIRN_{name}", str(value))
        engines.append(Engine(arguments or llm_args(), **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def stored(engine: Engine, blocks: int) -> None:
    """Waits until each rank that stores has had so many blocks acknowledged."""
    ranks = engine.workers if engine.kind != "mla" else engine.workers[:1]
    eventually("blocks are stored", lambda: all(one.counters().get("stored_blocks", 0) >= blocks for one in ranks))


def warm(engine: Engine) -> None:
    """One request that is not of the test: from the first step on, all ranks have mapped the staging memory."""
    engine.run([7] * (BLOCK_TOKENS // 2))


def matched(engine: Engine, tokens: list[int], **over: Any) -> int:
    """Tokens that were answered for one request, which is served to its end."""
    return engine.matched[engine.run(tokens, **over).request_id]


def free_rows(engine: Engine) -> int:
    engine.staging.settle()
    return int(engine.staging.free_rows)


# What is stored is found, and what is answered is there.


def test_an_engine_computes_only_what_the_one_before_it_has_not_stored(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(5 * BLOCK_TOKENS + 9)
    first = start(daemon)
    first.run(tokens)
    assert first.matched == {1: 0}
    stored(first, 5)
    second = start(daemon)
    warm(second)
    request = second.run(tokens)
    assert second.matched[request.request_id] == 5 * BLOCK_TOKENS
    assert second.computed[request.request_id] < BLOCK_TOKENS
    assert "offered_blocks" not in second.scheduler.counters()
    longer = second.run([*tokens, *prompt(3 * BLOCK_TOKENS)])
    assert second.matched[longer.request_id] == 5 * BLOCK_TOKENS
    assert free_rows(second) == second.staging._window.blocks


def test_the_last_token_is_left_to_the_engine(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(4 * BLOCK_TOKENS)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 4)
    assert matched(engine, tokens) == 3 * BLOCK_TOKENS


def test_nothing_is_answered_before_every_rank_has_mapped_the_memory(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    first = start(daemon, llm_args(tensor_parallel_size=2), ranks=2)
    first.run(tokens)
    stored(first, 3)
    second = start(daemon, llm_args(tensor_parallel_size=2), ranks=2)
    one, other = second.workers
    second.workers = [one]  # The other rank has not come to its first step.
    second.add([7] * 9)
    second.step()
    assert second.staging.ready() == 0
    request = Request(900, tokens)
    assert second.scheduler.get_num_new_matched_tokens(request, 0) == (0, False)
    other.bind_connector_meta(second.last_step)
    other.start_load_kv(None)
    request = Request(901, tokens)
    assert second.scheduler.get_num_new_matched_tokens(request, 0) == (3 * BLOCK_TOKENS, False)


def test_random_requests_with_shared_prefixes_never_use_a_wrong_block(
    daemon: Daemon, start: Start, prompt: Prompt, chance: random.Random
) -> None:
    roots = [prompt(6 * BLOCK_TOKENS) for _ in range(3)]
    for life in range(3):
        ranks = 2
        engine = start(
            daemon,
            llm_args(tensor_parallel_size=2),
            ranks=ranks,
            blocks=96,
            chunk_tokens=chance.choice([1 << 20, 48, 64]),
            per_chunk=chance.random() < 0.5,
            covers=chance.choice([None, 1, 3]),
            options={"STAGING_BYTES": chance.choice([1 << 16, 1 << 20])},
        )
        active: list[Request] = []
        for _ in range(40):
            if len(active) < 4:
                root = chance.choice(roots)[: chance.randrange(1, 6 * BLOCK_TOKENS)]
                active.append(engine.add([*root, *prompt(chance.randrange(1, 2 * BLOCK_TOKENS))]))
            engine.step(new_tokens=chance.randrange(1, 40))
            active = [one for one in active if not one.done]
            if active and chance.random() < 0.1:
                engine.finish(active.pop())  # Cancelled by its client.
            if active and chance.random() < 0.1:
                engine.reset(active[0])
        assert life == 0 or sum(engine.matched.values()) > 0
        engine.close()


# Ranks.


def test_each_rank_loads_its_own_shard(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    first = start(daemon, llm_args(tensor_parallel_size=2), ranks=2)
    first.run(tokens)
    stored(first, 4)
    second = start(daemon, llm_args(tensor_parallel_size=2), ranks=2)
    warm(second)
    request = second.run(tokens)
    assert second.matched[request.request_id] == 4 * BLOCK_TOKENS
    assert second.scheduler.counters()["loaded_bytes"] == 2 * 4 * ROW_BYTES


def test_a_block_of_which_one_shard_is_missing_is_no_hit(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(2 * BLOCK_TOKENS + 1)
    engine = start(daemon, llm_args(tensor_parallel_size=2), ranks=2)
    warm(engine)
    saves = engine.workers[1].wait_for_save
    engine.workers[1].wait_for_save = lambda _stream: None
    engine.run(tokens)
    assert matched(engine, tokens) == 0
    engine.workers[1].wait_for_save = saves


def test_mla_is_stored_once_and_loaded_by_all_ranks(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    first = start(daemon, llm_args(tensor_parallel_size=2), ranks=2, kind="mla")
    first.run(tokens)
    stored(first, 3)
    assert "stored_blocks" not in first.workers[1].counters()
    second = start(daemon, llm_args(tensor_parallel_size=2), ranks=2, kind="mla")
    warm(second)
    request = second.run(tokens)
    assert second.matched[request.request_id] == 3 * BLOCK_TOKENS
    assert second.scheduler.counters()["loaded_bytes"] == 3 * ROW_BYTES


def test_ranks_under_attention_data_parallelism_are_engines_that_share_blocks(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    arguments = llm_args(tensor_parallel_size=2, enable_attention_dp=True)
    assert connector.CairnScheduler.supports_attention_dp
    assert connector.CairnWorker.supports_attention_dp
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    owner = start(daemon, arguments)
    owner.run(tokens)
    stored(owner, 3)
    other = start(daemon, arguments, first_rank=1)
    warm(other)
    assert matched(other, tokens) == 3 * BLOCK_TOKENS


def test_another_process_maps_the_memory_and_a_wrong_one_is_refused(daemon: Daemon, prompt: Prompt) -> None:
    identity = identity_of(llm_args(), FACTS, "1", "m")
    with Session(daemon.socket, "mapped", [identity.descriptor]) as session:
        assert session.wait_connected(30)
        window = session.create_window(4, stride_bytes=row_stride(identity))
        staging = Staging(session, window, identity)
        window.row(2)[:] = b"\x5a" * ROW_BYTES
        source = staging.source()
        code = (
            "import sys, pickle; from cairn_kv.tensorrt_llm.mailbox import Mirror; m = Mirror(0);"
            "s, at, n = pickle.loads(sys.stdin.buffer.read()); m.follow(s);"
            "sys.stdout.buffer.write(bytes(m.piece(s.memory, at, n)))"
        )
        given = pickle.dumps((source, staging.offset(2), ROW_BYTES))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.run(
            [sys.executable, "-c", code], check=False, input=given, capture_output=True, env=environment
        )
        assert child.stdout == b"\x5a" * ROW_BYTES, child.stderr.decode()
        assert staging.ready() == source.memory
        foreign = Mirror(0)
        for wrong in (
            dataclasses.replace(source, token=b"x" * 16),
            dataclasses.replace(source, memory=source.memory + 1),
            dataclasses.replace(source, pid=2**22 + 1),
        ):
            foreign.follow(wrong)
            for memory in (source.memory, wrong.memory):
                with pytest.raises(AssertionError):
                    foreign.piece(memory, 0, 1)
        staging.mailbox.close()


# Failures.


def test_what_was_answered_is_loaded_although_the_daemon_dies_meanwhile(
    own_daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(own_daemon, llm_args(tensor_parallel_size=2), ranks=2)
    engine.run(tokens)
    stored(engine, 4)
    request = engine.add(tokens)
    engine.prepare(request)
    assert engine.matched[request.request_id] == 4 * BLOCK_TOKENS
    own_daemon.kill()
    eventually("the session has noticed", lambda: not engine.session.connected)
    while not request.done:
        engine.step()
    assert engine.computed[request.request_id] < BLOCK_TOKENS


def test_a_lost_daemon_is_a_miss_and_hits_resume_when_it_is_back(
    own_daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(own_daemon)
    engine.run(tokens)
    stored(engine, 4)
    own_daemon.kill()
    eventually("the session has noticed", lambda: not engine.session.connected)
    assert matched(engine, tokens) == 0
    assert engine.scheduler.counters()["lookups_unavailable"] >= 1
    own_daemon.start()

    def found() -> bool:
        return matched(engine, tokens) == 4 * BLOCK_TOKENS

    eventually("hits resume", found)


def test_an_engine_that_starts_before_its_daemon_is_served_once_that_is_there(
    start: Start, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Daemon()
    try:
        monkeypatch.setattr(connector, "CONNECT_SECONDS", 0.01)
        engine = start(late)
        tokens = prompt(3 * BLOCK_TOKENS + 1)
        assert matched(engine, tokens) == 0
        late.start()

        def found() -> bool:
            return matched(engine, tokens) == 3 * BLOCK_TOKENS

        eventually("hits come", found)
    finally:
        late.remove()


def test_a_daemon_that_hangs_is_a_miss_and_its_rows_come_back_when_it_goes_on(
    own_daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(own_daemon, options={"LOOKUP_MS": 20, "STAGE_MS": 20})
    warm(engine)
    engine.run(tokens)
    stored(engine, 4)
    own_daemon.send(signal.SIGSTOP)
    request = engine.run(tokens)
    own_daemon.send(signal.SIGCONT)
    assert engine.matched[request.request_id] == 0
    assert engine.scheduler.counters()["lookup_timeouts"] >= 1
    staging = engine.staging
    eventually("all rows are free", lambda: free_rows(engine) == staging._window.blocks)


def test_blocks_that_the_daemon_lost_are_offered_again_while_their_request_lives(
    own_daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(own_daemon, llm_args(tensor_parallel_size=2), ranks=2)
    warm(engine)
    request = engine.add(tokens)
    engine.step(new_tokens=10_000)
    engine.step(new_tokens=10_000)
    stored(engine, 4)
    sessions = [engine.session, *(one._side._session for one in engine.workers)]
    own_daemon.kill()
    eventually("the sessions have noticed", lambda: not any(one.connected for one in sessions))
    shutil.rmtree(own_daemon.directory / "pool")
    own_daemon.start()
    # A rank that is not back yet could not offer, and is not asked again.
    eventually("all sessions are back", lambda: all(one.connected for one in sessions))

    def cut_off() -> bool:
        engine.step(new_tokens=10_000)
        return all(one.counters().get("parent_absent", 0) >= 1 for one in engine.workers)

    eventually("a store finds the chain cut off", cut_off)
    blocks = request.position // BLOCK_TOKENS

    def found() -> bool:
        engine.step(new_tokens=10_000)
        again = Request(900, request.all_tokens[: blocks * BLOCK_TOKENS + 1])
        return engine.scheduler.get_num_new_matched_tokens(again, 0) == (blocks * BLOCK_TOKENS, False)

    eventually("all of it is stored again", found)


def test_notes_of_chains_that_are_cut_off_come_once_each_and_of_too_many_the_last() -> None:
    box = Mailbox(2)
    memfd = os.memfd_create("staging")
    os.ftruncate(memfd, 4_096)
    source = Source(os.getpid(), box.memfd, box.token, memfd, os.fstat(memfd).st_ino, 4_096)
    ranks = [Mirror(0), Mirror(1)]
    for rank in ranks:
        rank.follow(source)
    assert box.cut_off() == []
    ranks[0].note_cut_off(CutOff(1, 0))
    assert box.cut_off() == [CutOff(1, 0)]
    for _ in range(2 * NOTES):
        ranks[1].note_cut_off(CutOff(7, 3))
    assert box.cut_off() == [CutOff(7, 3)] * NOTES
    assert box.cut_off() == []
    ranks[1].note_cut_off(CutOff(2**32 + 5, 2**21))
    assert box.cut_off() == [CutOff(5, 2**20 - 1)]
    os.close(memfd)
    box.close()


class StandIn:
    """A session whose LOADs the test ends."""

    def __init__(self) -> None:
        self.loads: dict[int, tuple[int, list[int], int, Callable[[LoadDone], None]]] = {}
        self.cancelled: list[int] = []
        self.answer: Callable[[int], None] = lambda _tag: None

    def submit_load(
        self,
        window: object,
        lease: int,
        depth: int,
        keys: bytes,
        rows: list[int],
        *,
        shard: int,
        deadline_ms: int,
        sink: Callable[[LoadDone], None],
    ) -> int:
        tag = len(self.loads) + 1
        self.loads[tag] = (depth, rows, shard, sink)
        self.answer(tag)
        return tag

    def submit_cancel(self, tag: int, *, sink: Callable[[CancelDone], None]) -> int:
        self.cancelled.append(tag)
        sink(CancelDone(tag=0))
        return 0

    def end(self, tag: int, *failed: int) -> None:
        blocks = tuple(FailedBlock(index, ErrorCode.CHECKSUM_MISMATCH) for index in failed)
        self.loads[tag][3](LoadDone(tag=tag, failed=blocks))


Bench = tuple[StandIn, Staging]


@pytest.fixture
def bench(daemon: Daemon) -> Iterator[Bench]:
    """Staging of two shards, one block per LOAD, with 8 rows, all ranks mapped."""
    identity = identity_of(llm_args(tensor_parallel_size=2), FACTS, "1", "m")
    with Session(daemon.socket, "bench", [identity.descriptor]) as session:
        assert session.wait_connected(30)
        window = session.create_window(8, stride_bytes=row_stride(identity))
        link = StandIn()
        staging = Staging(link, window, identity)  # type: ignore[arg-type]
        staging._piece_blocks = 1
        for rank in range(2):
            Mirror(rank).follow(staging.source())
        yield link, staging
        staging.mailbox.close()


def test_blocks_behind_one_that_did_not_verify_are_not_answered(bench: Bench) -> None:
    link, staging = bench
    link.answer = lambda tag: link.end(tag, *((0,) if link.loads[tag][0] == 2 and link.loads[tag][2] == 1 else ()))
    staged = staging.stage(1, 0, bytes(32 * 4), 10.0)
    assert staged is not None
    assert (staged.first, staged.end) == (0, 2)
    assert staging.failed_depth == 2
    staging.settle()
    assert staging.free_rows == 4
    staging.release(staged)
    assert staging.free_rows == 8


def test_a_block_that_did_not_verify_is_offered_again(
    daemon: Daemon, start: Start, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 4)
    load = engine.session.submit_load

    def unverified(*given: Any, sink: Callable[[LoadDone], None], **rest: Any) -> int:
        failed = (FailedBlock(1, ErrorCode.CHECKSUM_MISMATCH),)
        tag: int = load(*given, sink=lambda done: sink(LoadDone(tag=done.tag, failed=failed)), **rest)
        return tag

    monkeypatch.setattr(engine.session, "submit_load", unverified)
    request = engine.add(tokens)
    engine.prepare(request)
    assert engine.matched[request.request_id] == BLOCK_TOKENS
    offered: list[int] = []
    for _ in range(2):
        engine.show()
        assert isinstance(engine.last_step, Step)
        offered += [block for plan in engine.last_step.stores for block in plan.block_ids]
        engine.begin()
        engine.forward(10)
    assert offered == request.block_ids[1:4]


def test_rows_of_loads_that_come_too_late_stay_the_daemons_until_they_end(bench: Bench) -> None:
    link, staging = bench
    link.answer = lambda tag: link.end(tag) if link.loads[tag][0] == 0 else None
    staged = staging.stage(1, 0, bytes(32 * 3), 0.01)
    assert staged is not None
    assert staged.end == 1
    assert sorted(link.cancelled) == [3, 4, 5, 6]
    staging.settle()
    assert staging.free_rows == 2
    late = [tag for tag in link.loads if tag > 2]

    def end_late() -> None:
        for tag in late:
            link.end(tag, 0)

    threading.Thread(target=end_late).start()

    def all_back() -> bool:
        staging.settle()
        return staging.free_rows == 6

    eventually("rows come back", all_back)


def test_no_more_is_answered_than_the_staging_memory_holds(bench: Bench) -> None:
    link, staging = bench
    link.answer = link.end
    staged = staging.stage(1, 0, bytes(32 * 9), 10.0)
    assert staged is not None
    assert staged.end == 4
    assert staging.stage(1, 4, bytes(32), 10.0) is None


def test_blocks_in_a_memory_that_was_replaced_meanwhile_are_not_answered(bench: Bench) -> None:
    link, staging = bench

    def replaced(tag: int) -> None:
        link.end(tag)
        if len(link.loads) == 3:
            staging._window.invalidate(unsettled=True)
            staging._window.settle()

    link.answer = replaced
    assert staging.stage(1, 0, bytes(32 * 2), 10.0) is None
    assert staging.free_rows == 8
    assert staging.ready() == 0


def test_rows_are_free_when_the_last_rank_has_copied_them(bench: Bench) -> None:
    link, staging = bench
    link.answer = link.end
    ranks = [Mirror(0), Mirror(1)]
    for rank in ranks:
        rank.follow(staging.source())
    staged = staging.stage(1, 0, bytes(32 * 4), 10.0)
    assert staged is not None
    staging.leave(staged, 5)
    ranks[0].write(Cell.COPIED, 5)
    staging.settle()
    assert staging.free_rows == 0
    ranks[1].write(Cell.COPIED, 6)
    staging.settle()
    assert staging.free_rows == 8


def test_a_memory_that_was_replaced_is_not_claimed_before_it_is_mapped_again(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 3)
    waiting = engine.add(tokens)
    engine.prepare(waiting)
    assert engine.matched[waiting.request_id] == 3 * BLOCK_TOKENS
    window = engine.staging._window
    window.invalidate(unsettled=True)
    window.settle()
    window.row(0)[:] = window.row(1)[:] = window.row(2)[:] = bytes(ROW_BYTES)
    assert engine.scheduler.get_num_new_matched_tokens(Request(900, tokens), 0) == (0, False)
    while not waiting.done:  # What was staged in the memory before is loaded out of that.
        engine.step()
    assert engine.computed[waiting.request_id] < BLOCK_TOKENS
    assert engine.staging.ready() != 0


# The engine's ways.


def test_a_step_that_is_shown_twice_is_loaded_once(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 3)
    request = engine.add(tokens)
    engine.step(new_tokens=1)
    assert request.done
    before = [bytes(block) for block in engine.caches[0].blocks]
    engine.workers[0].start_load_kv(None)  # No step was built, and the last one is still bound.
    engine.workers[0].wait_for_save(None)
    assert [bytes(block) for block in engine.caches[0].blocks] == before


def test_a_step_without_a_forward_pass_stores_nothing(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    warm(engine)
    request = engine.add(tokens)
    engine.step(forward=False)
    assert isinstance(engine.last_step, Step)
    assert engine.last_step.rows == 3
    engine.step(forward=False)
    engine.finish(request)
    credit = engine.staging.mailbox.read(Cell.RELEASED)
    assert credit == [3]
    assert "stored_blocks" not in engine.workers[0].counters()
    assert matched(engine, tokens) == 0


def test_a_step_that_was_never_shown_costs_no_credit_and_one_with_loads_stops_the_engine(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    engine = start(daemon)
    warm(engine)
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    lost = engine.add(tokens)
    engine.prepare(lost)
    engine.show()
    assert isinstance(engine.last_step, Step)
    assert engine.last_step.rows == 3
    engine.finish(lost)
    engine.step()
    assert engine.staging.mailbox.read(Cell.RELEASED) == [3]
    engine.run([tokens[0] + 1, *tokens[1:]])
    stored(engine, 3)
    again = engine.add([tokens[0] + 1, *tokens[1:]])
    engine.prepare(again)
    engine.show()
    assert len(engine.last_step.loads) == 1
    with pytest.raises(AssertionError, match="left out a step with loads"):
        engine.step()


def test_stores_wait_for_rows_and_none_is_dropped(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(24 * BLOCK_TOKENS + 1)
    options = {"WINDOW_BYTES": 1 << 16}
    first = start(daemon, options=options)
    rows = first.workers[0]._side._window.blocks
    assert rows < 24
    request = first.add(tokens)

    def all_stored() -> bool:
        if not request.done:
            first.step(new_tokens=10_000)
        return bool(first.workers[0].counters().get("stored_blocks", 0) >= 24)

    eventually("all blocks are stored", all_stored)
    assert "shed_blocks" not in first.workers[0].counters()
    second = start(daemon)
    warm(second)
    assert matched(second, tokens) == 24 * BLOCK_TOKENS


def test_a_prompt_in_chunks_is_stored_whole_although_only_the_first_chunk_was_announced(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(7 * BLOCK_TOKENS + 5)
    first = start(daemon, chunk_tokens=2 * BLOCK_TOKENS + 7, per_chunk=True)
    first.run(tokens)
    stored(first, 7)
    second = start(daemon)
    warm(second)
    assert matched(second, tokens) == 7 * BLOCK_TOKENS


def test_an_engine_that_takes_less_than_was_answered_computes_the_rest(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(6 * BLOCK_TOKENS + 1)
    first = start(daemon)
    first.run(tokens)
    stored(first, 6)
    second = start(daemon, per_chunk=True, chunk_tokens=BLOCK_TOKENS, covers=2)
    warm(second)
    request = second.run(tokens)
    assert second.matched[request.request_id] == 2 * BLOCK_TOKENS
    assert second.computed[request.request_id] >= 4 * BLOCK_TOKENS


def test_blocks_without_a_page_are_neither_read_nor_written(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(6 * BLOCK_TOKENS + 1)
    holed = start(daemon, passed=[3])
    holed.run(tokens)
    stored(holed, 3)
    whole = start(daemon)
    warm(whole)
    assert matched(whole, tokens) == 3 * BLOCK_TOKENS
    stored(whole, 3)
    again = start(daemon, passed=[1])
    warm(again)
    assert matched(again, tokens) == 6 * BLOCK_TOKENS


def test_a_request_that_is_reset_or_ends_early_gives_back_what_was_staged(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 4)
    all_rows = engine.staging._window.blocks
    ended = engine.add(tokens)
    engine.prepare(ended)
    assert free_rows(engine) == all_rows - 4
    engine.finish(ended)
    assert free_rows(engine) == all_rows
    reset = engine.add(tokens)
    engine.prepare(reset)
    engine._shown[reset.request_id] = trtllm_engine._Shown()
    engine.reset(reset)
    assert free_rows(engine) == all_rows
    while not reset.done:
        engine.step()
    assert engine.matched[reset.request_id] == 4 * BLOCK_TOKENS
    assert free_rows(engine) == all_rows


def test_a_request_that_loses_its_blocks_midway_stores_nothing_of_the_next_owner(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    engine = start(daemon, chunk_tokens=BLOCK_TOKENS)
    warm(engine)
    victim, other = engine.add(prompt(4 * BLOCK_TOKENS + 1)), engine.add(prompt(4 * BLOCK_TOKENS + 1))
    engine.step()
    engine.step()
    engine.reset(victim)
    while not (victim.done and other.done):
        engine.step()
    stored(engine, 8)
    fresh = start(daemon)
    warm(fresh)
    for request in (victim, other):
        again = fresh.run(request.all_tokens[: 4 * BLOCK_TOKENS + 1])
        assert fresh.matched[again.request_id] == 4 * BLOCK_TOKENS


@pytest.mark.parametrize(
    ("cancelled", "left"),
    [((0, 4), range(0)), ((2, 4), range(2)), ((0, 1), range(1, 4)), ((4, 9), range(4))],
)
def test_a_load_that_is_cancelled_in_part_loads_the_rest(
    daemon: Daemon, start: Start, prompt: Prompt, cancelled: tuple[int, int], left: range
) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 4)
    all_rows = engine.staging._window.blocks
    request = engine.add(tokens)
    engine.prepare(request)
    engine.scheduler.cancel_load(request, cancelled[0] * BLOCK_TOKENS, cancelled[1] * BLOCK_TOKENS)
    assert free_rows(engine) == all_rows - len(left)
    engine.show()
    assert isinstance(engine.last_step, Step)
    blocks = [block for plan in engine.last_step.loads for block in plan.block_ids]
    assert blocks == [request.block_ids[at] for at in left]
    assert free_rows(engine) == all_rows - len(left)  # Until the ranks have copied them.
    engine.begin()
    assert free_rows(engine) == all_rows


def test_an_engine_that_cancels_the_middle_of_a_load_or_tells_of_no_blocks_is_stopped(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 4)
    request = engine.add(tokens)
    engine.ask(request)
    assert engine.matched[request.request_id] == 4 * BLOCK_TOKENS
    with pytest.raises(AssertionError, match="middle of a load"):
        engine.scheduler.cancel_load(request, BLOCK_TOKENS, 2 * BLOCK_TOKENS)
    with pytest.raises(AssertionError, match="told nothing"):
        engine.show()


def test_of_too_many_requests_none_is_forgotten_that_was_answered_a_load(
    daemon: Daemon, start: Start, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "REQUESTS_MAX", 2)
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 3)
    waiting = [engine.add(tokens), engine.add(tokens)]
    engine.prepare(waiting[0])
    ask = engine.scheduler.get_num_new_matched_tokens
    for number in range(900, 905):
        assert ask(Request(number, prompt(BLOCK_TOKENS)), 0) == (0, False)
    engine.prepare(waiting[1])
    assert ask(Request(905, tokens), 0) == (0, False)
    assert ask(Request(906, prompt(BLOCK_TOKENS)), 0) == (0, False)
    assert list(vars(engine.scheduler)["_side"]._trackers) == [one.request_id for one in waiting]
    while not all(one.done for one in waiting):
        engine.step()
    for request in waiting:
        assert engine.matched[request.request_id] == 3 * BLOCK_TOKENS


def test_a_request_that_the_output_never_shows_as_new_is_loaded_and_not_stored(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 3)
    request = engine.add([*tokens, *prompt(BLOCK_TOKENS)])
    engine.prepare(request)
    engine._shown[request.request_id] = trtllm_engine._Shown(len(request.block_ids), len(request.all_tokens))
    engine.show()
    assert isinstance(engine.last_step, Step)
    assert [plan.block_ids for plan in engine.last_step.loads] == [request.block_ids[:3]]
    engine.begin()
    engine.forward(new_tokens=5)
    engine.show()
    assert engine.last_step.stores == []


def test_blocks_named_by_the_one_group_of_layers_are_the_same(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    first = start(daemon, by_group=True)
    first.run(tokens)
    stored(first, 3)
    second = start(daemon, by_group=True)
    warm(second)
    assert matched(second, tokens) == 3 * BLOCK_TOKENS
    assert free_rows(second) == second.staging._window.blocks
    assert vars(second.scheduler)["_side"]._trackers == {}


def test_memory_that_was_replaced_twice_is_kept_while_something_is_to_be_loaded_out_of_it(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 3)
    waiting = engine.add(tokens)
    engine.prepare(waiting)  # Answered, and put off by the engine's scheduler.
    engine._active.remove(waiting)
    for _ in range(2):
        engine.staging._window.invalidate(unsettled=True)
        engine.staging._window.settle()
        warm(engine)
        assert engine.staging.ready() != 0
    assert len(engine.workers[0]._side._mirror._memories) == 2
    engine._active.append(waiting)
    while not waiting.done:
        engine.step()
    assert engine.computed[waiting.request_id] < BLOCK_TOKENS


def test_a_local_match_that_ends_inside_a_block_is_left_alone(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(4 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 4)
    ask = engine.scheduler.get_num_new_matched_tokens
    assert ask(Request(901, tokens), BLOCK_TOKENS + 5) == (0, False)
    assert ask(Request(902, tokens), 4 * BLOCK_TOKENS) == (0, False)
    assert ask(Request(903, tokens, py_return_context_logits=True), 0) == (0, False)
    assert ask(Request(904, tokens), 2 * BLOCK_TOKENS) == (2 * BLOCK_TOKENS, False)


def test_short_hits_are_computed_if_the_option_says_so(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon, options={"LOAD_BLOCKS_MIN": 4})
    engine.run(tokens)
    stored(engine, 3)
    assert matched(engine, tokens) == 0


# Whose blocks they are.


def test_salts_do_not_meet(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens, cache_salt="a")
    stored(engine, 3)
    assert matched(engine, tokens) == 0
    assert matched(engine, tokens, cache_salt="b") == 0
    assert matched(engine, tokens, cache_salt="a") == 3 * BLOCK_TOKENS


@pytest.mark.parametrize(
    "over",
    [
        {"lora_task_id": 0},
        {"multimodal_hashes": [[1, 2]]},
        {"multimodal_embedding": object()},
        {"position_ids": [0]},
        {"encoder_tokens": [1]},
        {"py_multimodal_data": {"image": 1}},
    ],
)
def test_requests_with_more_than_tokens_and_salt_are_not_served(
    daemon: Daemon, start: Start, prompt: Prompt, over: dict[str, Any]
) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon, by_group=True)
    engine.run(tokens)
    stored(engine, 3)
    asked = engine.scheduler.counters()["lookups"]
    trtllm_engine.WARNINGS.clear()
    for _ in range(2):
        assert matched(engine, tokens, **over) == 0
    assert engine.scheduler.counters()["lookups"] == asked
    (said,) = trtllm_engine.WARNINGS
    assert said.endswith(f"requests with {next(iter(over))} are not served")


def model(directory: Path, **config: Any) -> str:
    """A model's directory with this configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    return str(directory)


OTHER_INPUTS: list[dict[str, Any]] = [
    {"vision_config": {"depth": 2}},
    {"embd_layer": {"image_embd_layer": {}}},
    {"parts": [{"audio_token_id": 3}]},
    {"model_type": "some_vision"},
    {"architectures": ["LlavaForConditionalGeneration"]},
    {"architectures": []},
    {"is_encoder_decoder": True},
]


@pytest.mark.parametrize("config", OTHER_INPUTS)
def test_a_model_that_may_take_more_than_text_is_served_only_where_requests_show_it(
    daemon: Daemon, start: Start, prompt: Prompt, tmp_path: Path, config: dict[str, Any]
) -> None:
    arguments = llm_args(model=model(tmp_path, **config))
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    newer = start(daemon, arguments, by_group=True)
    newer.run(tokens)
    stored(newer, 3)
    trtllm_engine.WARNINGS.clear()
    older = start(daemon, arguments)
    warm(older)
    assert matched(older, tokens) == 0
    assert matched(older, tokens, py_multimodal_data={"image": 1}) == 0
    assert older.scheduler.counters() == {}
    (said,) = trtllm_engine.WARNINGS
    assert "do not show images" in said


def test_a_model_whose_configuration_cannot_be_read_is_not_taken_for_one_of_text(tmp_path: Path) -> None:
    assert text_only(llm_args())
    assert not text_only(llm_args(model="nobody/has-this"))
    assert not text_only(llm_args(model=str(tmp_path)))
    for wrong in ("", "[]", "{", '{"architectures": 1}'):
        (tmp_path / "config.json").write_text(wrong)
        assert not text_only(llm_args(model=str(tmp_path)))


def test_a_hubs_model_is_described_by_its_files_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_up(name: str, file: str, revision: str | None) -> str | None:
        return str(tmp_path / revision / file) if name == "hub/model" and revision else None

    hub = ModuleType("huggingface_hub")
    vars(hub)["try_to_load_from_cache"] = looked_up
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model(tmp_path / "one")
    model(tmp_path / "two", rope_scaling={"factor": 2})
    one, two = (llm_args(model="hub/model", revision=name) for name in ("one", "two"))
    assert text_only(one)
    assert not text_only(llm_args(model="hub/model", revision=None))
    revisions = [json.loads(identity_of(args, FACTS, "1", "m").descriptor.revision) for args in (one, two)]
    assert revisions[0]["computing"] != revisions[1]["computing"]


def test_requests_that_want_the_prompts_logits_are_not_loaded_where_they_show_it(
    daemon: Daemon, start: Start, prompt: Prompt
) -> None:
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    newer = start(daemon, by_group=True)
    newer.run(tokens)
    stored(newer, 3)
    assert matched(newer, tokens, py_return_context_logits=True) == 0
    assert matched(newer, tokens) == 3 * BLOCK_TOKENS
    older = start(daemon)
    warm(older)
    assert matched(older, tokens, return_context_logits=True) == 0
    # Asked from C++ it does not show; its logits then begin where they do with the engine's own reuse.
    assert matched(older, tokens, py_return_context_logits=True) == 3 * BLOCK_TOKENS


def test_the_counters_go_to_the_engines_log_while_they_change(
    daemon: Daemon, start: Start, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(daemon)
    monkeypatch.setattr(scheduler, "LOG_SECONDS", 0.0)
    trtllm_engine.LOG.clear()
    tokens = prompt(2 * BLOCK_TOKENS + 1)
    engine.run(tokens)
    stored(engine, 2)
    engine.run(tokens)
    for counter in ("loaded_blocks=2", "stored_blocks=2"):
        assert any(counter in line for line in trtllm_engine.LOG)


@pytest.mark.parametrize("hidden", ["lora_task_id", "multimodal_hashes", "cache_salt"])
def test_requests_that_do_not_show_what_decides_are_not_served(hidden: str) -> None:
    request = Request(1, [1])
    for name in [hidden, "cache_salt_id"] if hidden == "cache_salt" else [hidden]:
        delattr(request, name)
    with pytest.raises(NotServed):
        salt_of(request, text_only=True)


def test_a_salt_that_is_only_a_number_is_told_apart_too() -> None:
    salts = {
        salt_of(Request(1, [1], cache_salt=salt, cache_salt_id=number), text_only=False)
        for salt, number in [(None, None), (None, 1), (None, 2), ("1", 1), ("2", 1)]
    }
    assert len(salts) == 5
    assert salt_of(Request(1, [1], py_multimodal_data={}), text_only=False) == ""


def test_keys_are_the_same_however_the_tokens_come(chance: random.Random) -> None:
    tokens = [chance.randrange(-1, 1 << 40) for _ in range(10 * BLOCK_TOKENS + 3)]
    whole = BlockChain(BLOCK_TOKENS, "")
    whole.extend(tokens)
    pieces = BlockChain(BLOCK_TOKENS, "")
    at = 0
    while at < len(tokens):
        step = chance.randrange(1, 50)
        pieces.extend(tokens[at : at + step])
        at += step
    assert whole.blocks == 10
    assert whole.tokens == pieces.tokens == len(tokens)
    assert whole.keys == pieces.keys
    other = BlockChain(BLOCK_TOKENS, "")
    other.extend([tokens[0] + 1, *tokens[1:]])
    assert all(whole.slice(at, at + 1) != other.slice(at, at + 1) for at in range(10))


# The proof.


def test_blocks_of_an_earlier_life_are_found_once_one_of_them_equalled_the_computed_one(
    start: Start, prompt: Prompt
) -> None:
    node = Daemon({"engineApi": {"proof": "required"}}).start()
    try:
        tokens = prompt(4 * BLOCK_TOKENS + 1)
        first = start(node, llm_args(tensor_parallel_size=2), ranks=2)
        first.run(tokens)
        stored(first, 4)
        first.close()
        second = start(node, llm_args(tensor_parallel_size=2), ranks=2)
        warm(second)
        assert matched(second, tokens) == 0

        def found() -> bool:
            return matched(second, tokens) == 4 * BLOCK_TOKENS

        eventually("the proof is made", found)
        assert second.scheduler.counters()["proofs"] == 1
        assert free_rows(second) == second.staging._window.blocks
    finally:
        node.remove()


def test_blocks_of_an_engine_that_computes_something_else_are_never_loaded(start: Start, prompt: Prompt) -> None:
    node = Daemon({"engineApi": {"proof": "required"}}).start()
    try:
        tokens = prompt(4 * BLOCK_TOKENS + 1)
        first = start(node)
        first.run(tokens)
        stored(first, 4)
        first.close()
        second = start(node, weights="others")  # The executor asserts that nothing of the first is used.
        warm(second)

        def own_blocks() -> bool:
            return matched(second, tokens) == 4 * BLOCK_TOKENS

        eventually("the second finds what it stored itself", own_blocks)
        assert second.scheduler.counters()["proofs_failed"] == 1
        assert "proofs" not in second.scheduler.counters()
    finally:
        node.remove()


@pytest.mark.parametrize("weights", ["w", "others"])
def test_a_proof_whose_step_ran_no_forward_pass_is_made_by_a_later_request(
    start: Start, prompt: Prompt, weights: str
) -> None:
    node = Daemon({"engineApi": {"proof": "required"}}).start()
    try:
        tokens = prompt(2 * BLOCK_TOKENS + 1)
        first = start(node)
        first.run(tokens)
        stored(first, 2)
        first.close()
        second = start(node, weights=weights)
        warm(second)
        lost = second.add(tokens)
        second.step(forward=False)
        assert isinstance(second.last_step, Step)
        assert len(second.last_step.proofs) == 1
        second.finish(lost)

        def found() -> bool:
            return matched(second, tokens) == 2 * BLOCK_TOKENS

        eventually("the proof is made", found)
    finally:
        node.remove()


def test_a_proof_in_a_step_that_was_never_shown_is_made_by_a_later_request(start: Start, prompt: Prompt) -> None:
    node = Daemon({"engineApi": {"proof": "required"}}).start()
    try:
        tokens = prompt(2 * BLOCK_TOKENS + 1)
        first = start(node, llm_args(tensor_parallel_size=2), ranks=2)
        first.run(tokens)
        stored(first, 2)
        first.close()
        second = start(node, llm_args(tensor_parallel_size=2), ranks=2)
        warm(second)
        lost = second.add(tokens)
        second.prepare(lost)
        second.show()
        assert isinstance(second.last_step, Step)
        assert len(second.last_step.proofs) == 1
        second.finish(lost)

        def found() -> bool:
            return matched(second, tokens) == 2 * BLOCK_TOKENS

        eventually("the proof is made", found)
        assert second.scheduler.counters()["proofs"] == 1
        assert free_rows(second) == second.staging._window.blocks
    finally:
        node.remove()


def test_a_proof_whose_request_ended_unreported_is_made_by_a_later_request(
    start: Start, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PROOF_STEPS", 3)
    node = Daemon({"engineApi": {"proof": "required"}}).start()
    try:
        tokens = prompt(2 * BLOCK_TOKENS + 1)
        first = start(node)
        first.run(tokens)
        stored(first, 2)
        first.close()
        second = start(node)
        warm(second)
        assert second.scheduler.get_num_new_matched_tokens(Request(1 << 40, tokens), 0) == (0, False)
        assert free_rows(second) == second.staging._window.blocks - 1

        def found() -> bool:
            return matched(second, tokens) == 2 * BLOCK_TOKENS

        eventually("the proof is made", found)
        assert second.scheduler.counters()["proofs"] == 1
        assert free_rows(second) == second.staging._window.blocks
    finally:
        node.remove()


def test_without_credit_nothing_is_stored_although_a_proof_takes_a_row_beyond_it(start: Start, prompt: Prompt) -> None:
    node = Daemon({"engineApi": {"proof": "required"}}).start()
    try:
        tokens = prompt(4 * BLOCK_TOKENS + 1)
        first = start(node)
        first.run(tokens)
        stored(first, 4)
        first.close()
        second = start(node)
        warm(second)
        vars(second.scheduler)["_side"]._store_rows = 0
        second.add(tokens)
        second.step()
        assert isinstance(second.last_step, Step)
        assert len(second.last_step.proofs) == 1
        assert second.last_step.stores == []
    finally:
        node.remove()


# What is served at all.


@pytest.mark.parametrize(
    "over",
    [
        {"max_beam_width": 2},
        {"pipeline_parallel_size": 2},
        {"context_parallel_size": 2},
        {"speculative_config": object()},
        {"tensor_parallel_size": 16},
        {"cache": {"max_attention_window": [128]}},
        {"cache": {"host_cache_size": 1}},
        {"cache": {"enable_block_reuse": False}},
    ],
)
def test_an_engine_that_is_not_served_works_as_without_a_connector(
    daemon: Daemon, start: Start, prompt: Prompt, over: dict[str, Any]
) -> None:
    with pytest.raises(NotServed):
        identity_of(llm_args(**over), FACTS, "1", "m")
    trtllm_engine.WARNINGS.clear()
    engine = start(daemon, llm_args(**over))
    assert [line.split(":")[:2] for line in trtllm_engine.WARNINGS] == [["cairn", " nothing is stored or loaded"]]
    tokens = prompt(2 * BLOCK_TOKENS + 1)
    for _ in range(3):
        assert matched(engine, tokens) == 0
    assert engine.scheduler.counters() == {}


class Opened:
    """Sessions that were made and not closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str, error: Exception) -> None:
        self.roles: list[str] = []
        opened = self.roles

        class Watched(Session):
            def __init__(self, *given: Any, role: str, **rest: Any) -> None:
                super().__init__(*given, role=role, **rest)
                self.watched = role
                opened.append(role)

            def create_window(self, *given: Any, **rest: Any) -> Any:
                if self.watched == fails:
                    raise error
                return super().create_window(*given, **rest)

            def close(self, timeout_seconds: float = 5.0) -> None:
                super().close(timeout_seconds)
                if self.watched in opened:
                    opened.remove(self.watched)

        monkeypatch.setattr(connector, "Session", Watched)


@pytest.mark.parametrize("role", ["worker", "scheduler"])
@pytest.mark.parametrize("error", [ValueError("too many rows"), RuntimeError("closed"), OSError("no memory")])
def test_an_engine_whose_window_cannot_be_made_is_not_served_and_leaves_nothing_open(
    daemon: Daemon, start: Start, prompt: Prompt, monkeypatch: pytest.MonkeyPatch, role: str, error: Exception
) -> None:
    opened = Opened(monkeypatch, role, error)
    trtllm_engine.WARNINGS.clear()
    engine = start(daemon)
    assert opened.roles == []
    (said,) = trtllm_engine.WARNINGS
    assert said.endswith(f"no window for the {role} of rank 0: {error}")
    assert matched(engine, prompt(2 * BLOCK_TOKENS + 1)) == 0


def test_a_cache_that_is_registered_anew_ends_the_one_before_it(
    daemon: Daemon, start: Start, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch, "nobody", OSError())
    tokens = prompt(3 * BLOCK_TOKENS + 1)
    engine = start(daemon)
    engine.run(tokens)
    stored(engine, 3)
    engine.caches[0].register(engine.workers[0])
    assert sorted(opened.roles) == ["scheduler", "worker"]
    warm(engine)
    assert matched(engine, tokens) == 3 * BLOCK_TOKENS
    engine.workers[0].register_kv_caches(SimpleNamespace(pool=refuse))
    assert opened.roles == []
    assert matched(engine, tokens) == 0
    other = start(daemon)
    third = start(daemon)
    assert sorted(opened.roles) == ["scheduler", "worker"]
    assert other.session is None
    warm(third)
    assert matched(third, tokens) == 3 * BLOCK_TOKENS


def refuse(_slots_of: object) -> None:
    """A cache that is not served."""
    raise NotServed("no such cache")


def test_what_changes_a_blocks_bytes_changes_the_namespace() -> None:
    def digest(facts: PoolFacts = FACTS, version: str = "1", machine: str = "m", **over: Any) -> str:
        return str(identity_of(llm_args(**over), facts, version, machine).descriptor)

    others = [
        digest(model="other"),
        digest(dtype="float16"),
        digest(tensor_parallel_size=2),
        digest(cache={"tokens_per_block": 64}),
        digest(quant_config="fp8"),
        digest(version="2"),
        digest(machine="n"),
        digest(PoolFacts(64, ROW_BYTES, "float8_e4m3fn", "full_attention", {})),
        digest(PoolFacts(64, ROW_BYTES, "bfloat16", "mla", FACTS.layout)),
    ]
    assert len({digest(), *others}) == len(others) + 1
    assert digest(tensor_parallel_size=2, enable_attention_dp=True) == digest()


def test_files_of_a_model_that_change_a_blocks_bytes_change_the_namespace(tmp_path: Path) -> None:
    def digest(**over: Any) -> str:
        return str(identity_of(llm_args(model=str(tmp_path), **over), FACTS, "1", "m").descriptor)

    seen = [digest()]
    model(tmp_path)
    seen.append(digest())
    model(tmp_path, rope_scaling={"factor": 2})
    seen.append(digest())
    (tmp_path / "hf_quant_config.json").write_text('{"kv_cache_quant_algo": "FP8"}')
    seen.append(digest())
    seen.append(digest(load_format="dummy"))
    assert len(set(seen)) == 5
    assert digest() == seen[3]


def test_options_are_read_from_the_environment_and_a_wrong_one_is_named() -> None:
    read = Options.read({"TRTLLM_CAIRN_LOOKUP_MS": "0.5", "CAIRN_SOCKET": "/s"})
    assert (read.lookup_seconds, read.socket, read.stage_seconds) == (0.0005, "/s", 0.05)
    assert Options.read({}).lookup_seconds <= 0.001
    for wrong in ("0", "nan", "inf", "soon"):
        with pytest.raises(ValueError, match="TRTLLM_CAIRN_STAGE_MS"):
            Options.read({"TRTLLM_CAIRN_STAGE_MS": wrong})


def test_a_wrong_option_leaves_the_engine_running(daemon: Daemon, start: Start, prompt: Prompt) -> None:
    engine = start(daemon, llm_args(tensor_parallel_size=2), ranks=2, options={"STAGE_MS": "soon"})
    tokens = prompt(2 * BLOCK_TOKENS + 1)
    assert matched(engine, tokens) == 0
    assert engine.scheduler.counters() == {}


def test_the_example_names_what_the_engine_looks_for() -> None:
    example = Path(__file__).resolve().parents[1] / "examples" / "tensorrt_llm.yaml"
    given = dict(re.findall(r"^  (connector_\w+): (\S+)$", example.read_text(), re.MULTILINE))
    module = importlib.import_module(given["connector_module"])
    assert issubclass(getattr(module, given["connector_scheduler_class"]), trtllm_engine.KvCacheConnectorScheduler)
    assert issubclass(getattr(module, given["connector_worker_class"]), trtllm_engine.KvCacheConnectorWorker)


@pytest.mark.parametrize("half", ["Scheduler", "Worker"])
def test_the_hooks_have_the_interfaces_parameters(half: str) -> None:
    base = getattr(trtllm_engine, f"KvCacheConnector{half}")
    ours = getattr(connector, f"Cairn{half}")
    assert issubclass(ours, base)
    for name, hook in inspect.getmembers(base, inspect.isfunction):
        if name.startswith("_"):
            continue
        count = len(inspect.signature(hook).parameters)
        inspect.signature(getattr(ours, name)).bind(*range(count))
