"""A worker's half of the vLLM connector, against a daemon and tensors of the test's own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from daemon import descriptor, eventually

from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity
from cairn_kv.vllm.metadata import CairnMetadata, LoadPlan, ProofPlan, StoreOutcome, StorePlan
from cairn_kv.vllm.worker import Event, LoadDone, StoreDone, StoreReply, WorkerSide

KEY_BYTES = 8
ROW_BYTES = 16
IDENTITY = Identity(descriptor(row_bytes=ROW_BYTES, key_bytes=KEY_BYTES), ("a",), ROW_BYTES, world=1)
ROWS = 16


def key_of(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


def keys_of(*numbers: int) -> bytes:
    return b"".join(map(key_of, numbers))


class Link:
    """A daemon that keeps rows by key; the test may hold its answers back, refuse, or end it."""

    def __init__(self) -> None:
        self.epoch: str | None = "life"
        self.served: bool | None = True
        self.rows = [bytearray(ROW_BYTES) for _ in range(ROWS)]
        self.kept: dict[bytes, bytes] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.verdicts: list[tuple[bytes, bool]] = []
        self.cancelled: list[int] = []
        self.corrupt: set[bytes] = set()
        self.parent_absent: int | None = None
        self.full_from: bytes | None = None
        self._tags = 0
        self._offers: dict[int, list[bytes]] = {}
        self._wanted: dict[int, set[int]] = {}
        self._events: deque[Event] = deque()
        self._held: deque[Event] = deque()
        self._bell = threading.Event()

    def load(self, lease: int, start_depth: int, keys: bytes, rows: list[int]) -> int | None:
        if self.epoch is None:
            return None
        failed = set()
        for at, row in enumerate(rows):
            key = keys[at * KEY_BYTES : (at + 1) * KEY_BYTES]
            if lease == 0 or key not in self.kept or key in self.corrupt:
                failed.add(at)
            else:
                self.rows[row][:] = self.kept[key]
        return self._answer(lambda tag: LoadDone(tag, failed))

    def store(self, lease: int, start_depth: int, parent_key: bytes, keys: bytes, count: int) -> int | None:
        if self.epoch is None:
            return None
        offered = [keys[at * KEY_BYTES : (at + 1) * KEY_BYTES] for at in range(count)]
        if self.parent_absent is not None:
            resident = self.parent_absent
            return self._answer(lambda tag: StoreReply(tag, 0, [], 0, 0, parent_absent=True, resident=resident))
        accepted = offered.index(self.full_from) if self.full_from in offered else count
        wanted = [at for at, key in enumerate(offered[:accepted]) if key not in self.kept]

        def reply(tag: int) -> StoreReply:
            self._offers[tag] = offered
            self._wanted[tag] = set(wanted)
            return StoreReply(tag, tag, wanted, 0, accepted, parent_absent=False, resident=0)

        return self._answer(reply)

    def fill(self, job: int, places: list[tuple[int, int]]) -> None:
        for position, row in places:
            self.kept[self._offers[job][position]] = bytes(self.rows[row])
            self._wanted[job].discard(position)
        if not self._wanted[job]:
            self._tell(StoreDone(job, set()))

    def cancel(self, job: int) -> None:
        self.cancelled.append(job)
        self._tell(StoreDone(job, set(self._wanted[job])))

    def prove(self, key: bytes, same: bool) -> None:
        self.verdicts.append((key, same))

    def row(self, row: int) -> memoryview:
        return memoryview(self.rows[row])

    def wait(self, seconds: float) -> list[Event]:
        if not self._events:
            self._bell.wait(min(seconds, 0.01))
        self._bell.clear()
        if self.gate.is_set():
            self._events.extend(self._held)
            self._held.clear()
        return [self._events.popleft() for _ in range(len(self._events))]

    def wake(self) -> None:
        self._bell.set()

    def close(self) -> None:
        self.epoch = self.served = None

    def _answer(self, event: Callable[[int], Event]) -> int:
        self._tags += 1
        self._tell(event(self._tags))
        return self._tags

    def _tell(self, event: Event) -> None:
        (self._events if self.gate.is_set() else self._held).append(event)
        self._bell.set()


class Tensors:
    """The engine's blocks, 16 bytes each, and a hook that runs before each copy."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.blocks: dict[int, bytes] = {}
        self.before: Callable[[], None] = lambda: None

    def gather(self, block: int, row: int) -> None:
        self.before()
        self.link.rows[row][:] = self.blocks[block]

    def scatter(self, row: int, block: int) -> None:
        self.before()
        self.blocks[block] = bytes(self.link.rows[row])


def _same(stored: memoryview, computed: bytes) -> bool:
    return bytes(stored) == computed


class Bench:
    """A worker's half with its daemon and tensors."""

    def __init__(self) -> None:
        self.link = Link()
        self.tensors = Tensors(self.link)
        self.stats = CairnStats()
        self.side = WorkerSide(IDENTITY, 0, self.link, ROWS, self.tensors, _same, self.stats)  # type: ignore[arg-type]
        self._serials = 0

    def store(self, request: str, first: int, blocks: list[int]) -> StorePlan:
        for block in blocks:
            self.tensors.blocks[block] = f"block {block}".encode().ljust(ROW_BYTES, b".")
        self._serials += 1
        keys = keys_of(*range(first + 1, first + 1 + len(blocks)))
        parent = key_of(first) if first else bytes(KEY_BYTES)
        plan = StorePlan(self._serials, request, 0, first, parent, keys, blocks)
        self.side.begin_stores(CairnMetadata(stores=[plan]))
        return plan

    def outcome(self, plan: StorePlan) -> StoreOutcome:
        found: dict[int, StoreOutcome] = {}

        def reported() -> bool:
            report = self.side.report()
            found.update(report.stores if report is not None else {})
            return plan.serial in found

        eventually("an outcome", reported)
        return found[plan.serial]

    def load(self, request: str, numbers: list[int], blocks: list[int], lease: int = 7) -> None:
        plan = LoadPlan(request, lease, numbers[0] - 1, keys_of(*numbers), blocks)
        self.side.begin_loads(CairnMetadata(loads=[plan]))

    def received(self) -> set[str]:
        got: set[str] = set()

        def any_received() -> bool:
            got.update(self.side.finished()[1])
            return bool(got)

        eventually("a load's end", any_received)
        return got


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.side.close()


def test_what_is_stored_is_what_is_loaded_in_pieces_that_fit_the_window(bench: Bench) -> None:
    blocks = list(range(100, 140))
    plan = bench.store("r", 0, blocks)
    assert bench.outcome(plan) == StoreOutcome(visible=40)
    assert len(bench.link.kept) == 40
    stored = {block: bench.tensors.blocks[block] for block in blocks}
    targets = list(range(500, 540))
    bench.load("s", list(range(1, 41)), targets)
    assert bench.received() == {"s"}
    assert bench.side.failed_blocks() == set()
    assert [bench.tensors.blocks[block] for block in targets] == [stored[block] for block in blocks]
    assert bench.side.finished() == (set(), set()), "a load is reported once"
    assert sorted(bench.side._free) == list(range(ROWS)), "every row is free again"


def test_blocks_the_daemon_has_already_are_not_copied(bench: Bench) -> None:
    bench.outcome(bench.store("r", 0, [1, 2, 3]))
    copied = bench.stats.totals()["stored_bytes"]
    assert bench.outcome(bench.store("s", 0, [7, 8, 9])) == StoreOutcome(visible=3)
    assert bench.stats.totals()["stored_bytes"] == copied


def test_blocks_that_do_not_arrive_are_reported_and_their_content_stays(bench: Bench) -> None:
    bench.outcome(bench.store("r", 0, [1, 2, 3, 4]))
    bench.link.corrupt = {key_of(3)}
    bench.tensors.blocks[23] = b"engine's own".ljust(ROW_BYTES)
    bench.load("s", [1, 2, 3, 4], [21, 22, 23, 24])
    assert bench.received() == {"s"}
    assert bench.side.failed_blocks() == {23}
    assert bench.tensors.blocks[23] == b"engine's own".ljust(ROW_BYTES)
    assert bench.side.failed_blocks() == set(), "reported once"


def test_without_a_daemon_a_load_ends_at_once_as_failed_and_a_store_as_not_stored(bench: Bench) -> None:
    bench.link.epoch = None
    bench.load("s", [1, 2], [21, 22])
    assert bench.received() == {"s"}
    assert bench.side.failed_blocks() == {21, 22}
    assert bench.outcome(bench.store("r", 4, [1])) == StoreOutcome(visible=4)


def test_a_full_daemon_ends_the_plan_where_it_is_full(bench: Bench) -> None:
    bench.link.full_from = key_of(7)
    assert bench.outcome(bench.store("r", 0, list(range(1, 13)))) == StoreOutcome(visible=6)


def test_a_chain_cut_off_above_says_down_to_where_it_stands(bench: Bench) -> None:
    bench.link.parent_absent = 2
    assert bench.outcome(bench.store("r", 8, [1, 2])) == StoreOutcome(visible=8, resident=2)


def test_the_engine_is_told_that_blocks_are_copied_once_they_are_and_only_if_it_waits(bench: Bench) -> None:
    bench.link.gate.clear()
    plan = bench.store("r", 0, [1, 2])
    bench.side.begin_stores(CairnMetadata(awaited={"r"}))
    time.sleep(0.05)
    assert bench.side.finished() == (set(), set())
    bench.link.gate.set()
    sent: set[str] = set()
    eventually("the request is reported as sent", lambda: bool(sent.update(bench.side.finished()[0]) or sent))
    assert sent == {"r"}
    bench.outcome(plan)
    bench.outcome(bench.store("s", 0, [1, 2]))
    assert bench.side.finished() == (set(), set()), "nobody waits for s"


def test_after_the_fence_no_block_of_a_preempted_request_is_read(bench: Bench) -> None:
    bench.link.gate.clear()
    plan = bench.store("r", 0, [1, 2, 3, 4])
    time.sleep(0.05)
    bench.side.fence(CairnMetadata(preempted={"r"}))
    for block in (1, 2, 3, 4):
        bench.tensors.blocks[block] = b"another's".ljust(ROW_BYTES)
    bench.link.gate.set()
    assert bench.outcome(plan) == StoreOutcome(visible=0)
    assert bench.link.kept == {}
    assert len(bench.link.cancelled) == 1
    again = bench.store("r", 0, [5, 6])
    assert bench.outcome(again) == StoreOutcome(visible=2), "what the request stores later is no longer fenced"


def test_the_fence_waits_for_a_copy_that_is_running_and_for_nothing_else(bench: Bench) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(10)

    bench.tensors.before = slow
    plan = bench.store("r", 0, [1, 2, 3])
    assert begun.wait(10)
    fenced = threading.Event()
    fence = threading.Thread(target=lambda: (bench.side.fence(CairnMetadata(preempted={"r"})), fenced.set()))
    fence.start()
    assert not fenced.wait(0.05), "a block is being copied"
    go_on.set()
    fence.join(10)
    assert fenced.is_set()
    assert bench.outcome(plan).visible <= 1
    assert len(bench.link.kept) <= 1


def test_what_does_not_fit_the_queue_is_shed_and_counted(bench: Bench) -> None:
    bench.link.gate.clear()
    first = bench.store("r", 0, list(range(60)))
    shed = bench.store("s", 0, list(range(100, 110)))
    assert bench.outcome(shed) == StoreOutcome(visible=0)
    assert bench.stats.totals()["shed_blocks"] == 10
    bench.link.gate.set()
    assert bench.outcome(first) == StoreOutcome(visible=60)


def test_a_proof_compares_what_is_stored_with_what_was_computed(bench: Bench) -> None:
    bench.outcome(bench.store("r", 0, [1, 2]))
    for block, same in ((2, True), (9, False)):
        bench.tensors.blocks.setdefault(block, b"something else".ljust(ROW_BYTES))
        bench.link.verdicts.clear()
        bench.side.begin_stores(CairnMetadata(proofs=[ProofPlan(99, "p", 7, 2, key_of(2), block)]))
        eventually("a verdict", lambda: bool(bench.link.verdicts))
        assert bench.link.verdicts == [(key_of(2), same)]
    bench.link.verdicts.clear()
    bench.side.begin_stores(CairnMetadata(proofs=[ProofPlan(100, "q", 7, 2, key_of(77), 2)]))
    found: dict[str, Any] = {}

    def reported() -> bool:
        report = bench.side.report()
        found.update(report.proofs if report is not None else {})
        return "q" in found

    eventually("an outcome", reported)
    assert found["q"].same is None
    assert bench.link.verdicts == [], "a block that cannot be read is no verdict"


def test_a_fault_of_the_connector_fails_what_is_under_way_and_what_comes_and_hangs_nothing(bench: Bench) -> None:
    bench.outcome(bench.store("r", 0, [1, 2]))

    def fault() -> None:
        raise RuntimeError("a fault of the test's")

    bench.tensors.before = fault
    bench.load("s", [1, 2], [21, 22])
    assert bench.received() == {"s"}
    assert bench.side.failed_blocks() == {21, 22}
    bench.load("t", [1], [23])
    assert bench.received() == {"t"}
    assert bench.side.failed_blocks() == {23}
    plan = bench.store("u", 0, [5])
    bench.side.begin_stores(CairnMetadata(awaited={"u"}))
    sent: set[str] = set()
    eventually("the request is reported as sent", lambda: bool(sent.update(bench.side.finished()[0]) or sent))
    assert bench.outcome(plan) == StoreOutcome(visible=0)


def test_a_fault_hangs_nothing_that_came_behind_it_in_the_same_step_nor_what_the_daemon_has_not_answered(
    bench: Bench,
) -> None:
    bench.outcome(bench.store("r", 0, [1, 2]))
    at_copy, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        at_copy.set()
        go_on.wait(60)

    bench.tensors.before = hold
    bench.load("s", [1], [21])
    assert at_copy.wait(60)
    # The connector's thread copies; what comes now it finds all at once, the proof first.
    proof = ProofPlan(99, "p", 7, 1, key_of(1), 1)
    bench.side.begin_stores(CairnMetadata(proofs=[proof]))
    bench.load("t", [2], [22])
    unanswered = bench.store("u", 2, [3])

    def fault() -> None:
        raise RuntimeError("a fault of the test's")

    bench.tensors.before = fault
    go_on.set()
    got: set[str] = set()
    eventually("both loads end", lambda: bool(got.update(bench.received())) or got == {"s", "t"})
    assert bench.side.failed_blocks() == {22}
    assert bench.side.broken
    assert bench.outcome(unanswered) == StoreOutcome(visible=2)


def test_a_window_that_the_daemon_will_not_have_is_reported_once_and_so_is_its_return(bench: Bench) -> None:
    assert bench.side.report() is None
    bench.link.served = False
    told = bench.side.report()
    assert told is not None
    assert told.windows == {0: False}
    assert bench.side.report() is None
    bench.link.served = None
    assert bench.side.report() is None, "without a daemon nothing is known"
    bench.link.served = True
    told = bench.side.report()
    assert told is not None
    assert told.windows == {0: True}


def test_a_half_that_a_fault_ended_reports_that_it_has_no_window(bench: Bench) -> None:
    def fault() -> None:
        raise ZeroDivisionError

    bench.tensors.before = fault
    bench.store("r", 0, [1])
    eventually("the fault", lambda: bench.side.broken)
    told = bench.side.report()
    assert told is not None
    assert told.windows == {0: False}
