"""The parts of the SGLang backend that need neither SGLang nor torch, against a real daemon where they talk to one."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from daemon import Daemon

from cairn_kv import Session
from cairn_kv.adapters.identity import NotServed
from cairn_kv.sglang import transfers as transfers_module
from cairn_kv.sglang.counters import Counters
from cairn_kv.sglang.identity import Identity, identity_of, launch_of
from cairn_kv.sglang.options import Options
from cairn_kv.sglang.pages import Geometry, Place, address_of, gather, scatter
from cairn_kv.sglang.transfers import Transfers

BUFFERS = (1_000, 600)
ROW_BYTES = sum(BUFFERS)
GEOMETRY = Geometry(4, BUFFERS)


def config(**over: object) -> SimpleNamespace:
    """The engine's storage configuration."""
    facts: dict[str, object] = {
        "model_name": "served",
        "is_mla_model": False,
        "tp_rank": 0,
        "tp_size": 2,
        "pp_rank": 0,
        "pp_size": 1,
        "attn_cp_rank": 0,
        "attn_cp_size": 1,
        "dcp_size": 1,
        "enable_storage_metrics": False,
        "extra_config": {},
    }
    return SimpleNamespace(**{**facts, **over})


def pool(**over: object) -> SimpleNamespace:
    """The engine's host pool, as far as an identity asks."""
    facts: dict[str, object] = {"dtype": "torch.bfloat16", "layout": "page_first", "page_size": 4, "layer_num": 2}
    return SimpleNamespace(**{**facts, **over})


def identity(
    of_config: SimpleNamespace | None = None,
    of_pool: SimpleNamespace | None = None,
    arguments: object = None,
    *,
    version: str = "0.5.23",
    flat: bool = False,
    cleared: int = 0,
) -> Identity:
    """An identity that differs from another in what is named."""
    return identity_of(
        of_config or config(), of_pool or pool(), GEOMETRY, arguments, version, "launch", flat=flat, cleared=cleared
    )


def test_whatever_changes_a_pages_bytes_changes_its_namespace(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    arguments = SimpleNamespace(model_path=str(tmp_path), revision="a", kv_cache_dtype="auto")
    first = identity(arguments=arguments)
    weights.write_bytes(b"two")
    others = [
        first,
        identity(arguments=arguments),
        identity(arguments=SimpleNamespace(model_path=str(tmp_path), revision="b", kv_cache_dtype="auto")),
        identity(),
        identity(config(model_name="other")),
        identity(config(tp_rank=1)),
        identity(config(tp_size=4)),
        identity(config(pp_rank=1, pp_size=2)),
        identity(config(attn_cp_rank=1, attn_cp_size=2)),
        identity(config(is_mla_model=True)),
        identity(None, pool(dtype="torch.float16")),
        identity(None, pool(layout="layer_first")),
        identity(None, pool(layer_num=3)),
        identity(None, pool(start_layer=8)),
        identity(None, pool(storage_format_tag="packed")),
        identity(version="0.5.24"),
        identity(flat=True),
        identity(cleared=1),
        identity(cleared=2),
    ]
    assert len({found.descriptor for found in others}) == len(others)
    assert len({found.engine_id for found in others}) == len(others)
    assert all(not found.descriptor.chained and found.descriptor.shards == 1 for found in others)


def test_ranks_that_hold_the_same_bytes_share_a_namespace_and_an_engine_id() -> None:
    mla = [identity(config(is_mla_model=True, tp_rank=rank)) for rank in range(2)]
    assert mla[0].descriptor == mla[1].descriptor
    assert mla[0].engine_id == mla[1].engine_id
    assert [(found.rank, found.ranks) for found in mla] == [(0, 2), (1, 2)]
    assert identity(config(dp_rank=1)).descriptor == identity(config(dp_rank=0)).descriptor


def test_pages_of_a_context_split_over_ranks_are_not_served() -> None:
    with pytest.raises(NotServed, match="decode context"):
        identity(config(is_mla_model=True, dcp_size=2))


def test_eight_bit_keys_and_values_are_told_by_their_kind_and_not_as_the_bytes_that_the_pool_holds() -> None:
    found = [
        identity(None, pool(dtype="torch.uint8"), SimpleNamespace(kv_cache_dtype=name))
        for name in ("fp8_e4m3", "fp8_e5m2")
    ]
    assert [one.dtype for one in found] == ["float8_e4m3fn", "float8_e5m2"]
    assert all(one.descriptor.quant_scales for one in found)


def test_a_launch_is_the_same_for_all_children_of_a_process_and_another_for_those_of_another() -> None:
    assert launch_of() == launch_of(os.getppid())
    assert launch_of(os.getpid()) != launch_of()
    assert launch_of(2**30) != launch_of(2**30), "a parent that is gone names nothing"


def test_options_are_read_and_held_to_their_ranges() -> None:
    read = Options.read({"socket": "/s", "windowBytes": 1 << 20, "interface_v1": 1, "backend_name": "x", "typo": 1})
    assert read == Options(socket="/s", window_bytes=1 << 20, interface_v1=True, unknown=("typo",))
    for wrong in (
        {"windowBytes": 1},
        {"windowBytes": "many"},
        {"lookupTimeoutMs": 0},
        {"loadTimeoutMs": 90_000},
        {"storeTimeoutMs": True},
        {"socket": 7},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options.read(wrong)


class Memory:
    """Host memory of pages, each in two pieces that do not touch."""

    def __init__(self, pages: int, seed: int = 0) -> None:
        self.pieces = [[bytearray(size) for size in BUFFERS] for _ in range(pages)]
        for at, page in enumerate(self.pieces if seed else []):
            for number, piece in enumerate(page):
                piece[:] = random.Random(f"{seed} {at} {number}").randbytes(len(piece))

    @property
    def places(self) -> list[Place]:
        """Addresses, as the engine tells them."""
        return [[(address_of(memoryview(piece)), len(piece)) for piece in page] for page in self.pieces]

    def content(self) -> list[bytes]:
        """Bytes of each page."""
        return [b"".join(bytes(piece) for piece in page) for page in self.pieces]


def keys_of(name: str, count: int) -> list[bytes]:
    """Keys of a test's own."""
    return [hashlib.sha256(f"{name} {number}".encode()).digest() for number in range(count)]


@pytest.fixture
def open_transfers(daemon: Daemon) -> Iterator[Callable[..., Transfers]]:
    """Transfers over a window of eight rows: four for reads, four for writes."""
    sessions: list[Session] = []

    def make(name: str, socket: str | None = None, counters: Counters | None = None) -> Transfers:
        descriptor = identity(config(model_name=name)).descriptor
        session = Session(socket or daemon.socket, f"{name} {len(sessions)}", [descriptor], role="worker")
        sessions.append(session)
        assert session.wait_connected(30.0), session.last_error
        window = session.create_window(8, stride_bytes=1_664)
        return Transfers(session, window, "bfloat16", counters or Counters())

    yield make
    for session in sessions:
        session.close()


def test_a_row_holds_the_pieces_of_a_page_one_behind_the_other() -> None:
    source, target = Memory(1, seed=1), Memory(1)
    row = memoryview(bytearray(ROW_BYTES))
    gather(source.places[0], row)
    assert bytes(row) == source.content()[0]
    scatter(row, target.places[0])
    assert target.content() == source.content()


def test_pages_travel_in_pieces_and_only_those_before_the_first_that_is_missing_arrive(
    open_transfers: Callable[..., Transfers],
) -> None:
    counters = Counters()
    mine = open_transfers("pieces", None, counters)
    keys, source = keys_of("pieces", 11), Memory(11, seed=2)
    assert mine.find(keys, 5) == 0
    assert mine.store(keys[:6] + keys[7:], source.places[:6] + source.places[7:], 5) == [True] * 10
    assert mine.find(keys, 5) == 6
    target = Memory(11)
    assert mine.load(keys, target.places, 5) == 6
    assert target.content()[:6] == source.content()[:6]
    assert target.content()[6:] == [bytes(ROW_BYTES)] * 5, "what did not arrive is not touched"
    assert mine.load(keys[7:], target.places[7:], 5) == 4, "a page is found by its key, wherever it stands"
    assert mine.store(keys, source.places, 5) == [True] * 11
    assert mine.load(keys, target.places, 5) == 11
    assert target.content() == source.content()
    totals = counters.totals()
    assert (totals["present_pages"], totals["stored_bytes"], totals["loaded_pages"]) == (10, 11 * ROW_BYTES, 21)


def test_two_threads_read_and_write_at_once_and_neither_gets_the_others_rows(
    open_transfers: Callable[..., Transfers],
) -> None:
    mine = open_transfers("threads")
    keys, source = keys_of("threads", 64), Memory(64, seed=3)
    assert all(mine.store(keys[:32], source.places[:32], 30))
    wrong: list[str] = []

    def read() -> None:
        for _ in range(10):
            target = Memory(32)
            if mine.load(keys[:32], target.places, 30) != 32 or target.content() != source.content()[:32]:
                wrong.append("a read")

    def write() -> None:
        stored = [mine.store(keys[at : at + 4], source.places[at : at + 4], 30) for at in range(32, 64, 4)]
        wrong.extend("a write" for pages in stored if not all(pages))

    threads = [threading.Thread(target=work) for work in (read, read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    target = Memory(64)
    assert mine.load(keys, target.places, 30) == 64
    assert target.content() == source.content()


@pytest.mark.parametrize("same", [True, False])
def test_the_first_pages_written_again_decide_whether_those_of_an_earlier_life_are_read(
    open_transfers: Callable[..., Transfers], monkeypatch: pytest.MonkeyPatch, *, same: bool
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(stored: memoryview, computed: bytearray, _dtype: str) -> bool:
        compared.append((bytes(stored), bytes(computed)))
        return same

    monkeypatch.setattr(transfers_module, "same_page", compare)
    own = Daemon({"engineApi": {"proof": "required"}}).start()
    try:
        counters = Counters()
        name = f"proof {same}"
        keys, old, new = keys_of(name, 9), Memory(9, seed=4), Memory(9, seed=5)
        first = open_transfers(name, own.socket)
        assert all(first.store(keys, old.places, 5))
        assert first.find(keys, 5) == 9, "nobody else's pages are there"
        second = open_transfers(name, own.socket, counters)
        assert second.find(keys, 5) == 0
        assert second.load(keys, Memory(9).places, 5) == 0
        assert second.store(keys[:3], new.places[:3], 5) == [True] * 3
        assert compared == [(old.content()[2], new.content()[2])], "the deepest of them"
        assert second.find(keys, 5) == (9 if same else 3)
        target = Memory(9)
        assert second.load(keys, target.places, 5) == (9 if same else 3)
        assert target.content()[:3] == (old if same else new).content()[:3]
        assert second.store(keys, new.places, 5) == [True] * 9
        assert len(compared) == 1, "one verdict is enough"
        totals = counters.totals()
        assert (totals["proofs"], totals["proofs_failed"]) == ((1, 0) if same else (0, 1))
        assert first.find(keys, 5) == 9
    finally:
        own.remove()


def test_a_daemon_that_dies_or_is_not_there_makes_misses_at_once(open_transfers: Callable[..., Transfers]) -> None:
    own = Daemon().start()
    try:
        counters = Counters()
        mine = open_transfers("dies", own.socket, counters)
        keys, source = keys_of("dies", 5), Memory(5, seed=6)
        assert all(mine.store(keys, source.places, 5))
        own.kill()
        target = Memory(5)
        begun = time.monotonic()
        assert mine.find(keys, 30) == 0
        assert mine.load(keys, target.places, 30) == 0
        assert mine.store(keys, source.places, 30) == [False] * 5
        assert time.monotonic() - begun < 20, "none waits for its time-out"
        assert target.content() == [bytes(ROW_BYTES)] * 5
    finally:
        own.remove()


@pytest.fixture
def backend_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The backend over a stand-in for the engine's abstract class; the real one is in engine_tests."""
    package = "sglang.srt.mem_cache.hicache_storage"
    parts = package.split(".")
    for depth in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
    module = sys.modules[package]

    class Base:
        def register_mem_pool_host(self, mem_pool_host: object) -> None:
            self.mem_pool_host = mem_pool_host

    class Result:
        def __init__(self, kv_hit_pages: int, extra_pool_hit_pages: dict[str, int]) -> None:
            self.kv_hit_pages = kv_hit_pages
            self.extra_pool_hit_pages = extra_pool_hit_pages

        @classmethod
        def empty(cls) -> Result:
            return cls(0, {})

    vars(module).update(HiCacheStorage=Base, PoolTransferResult=Result)
    monkeypatch.delitem(sys.modules, "cairn_kv.sglang.storage", raising=False)
    yield importlib.import_module("cairn_kv.sglang").CairnHiCacheStorage
    monkeypatch.delitem(sys.modules, "cairn_kv.sglang.storage", raising=False)


def answers_of(backend: Any) -> dict[str, Any]:
    """What every method that the engine calls from its threads answers."""
    keys = [key.hex() for key in keys_of("answers", 2)]
    transfer = SimpleNamespace(name="kv", keys=keys)
    found = {
        "batch_exists": backend.batch_exists(keys, SimpleNamespace(prefix_keys=None)),
        "batch_get_v1": backend.batch_get_v1(keys, [0, 1], None),
        "batch_set_v1": backend.batch_set_v1(keys, [0, 1], None),
        "get": backend.get(keys[0], object()),
        "batch_get": backend.batch_get(keys, [object(), object()]),
        "set": backend.set(keys[0], object()),
        "batch_set": backend.batch_set(keys, [object(), object()]),
        "exists": backend.exists(keys[0]),
        "batch_get_v2": backend.batch_get_v2([transfer]),
        "batch_set_v2": backend.batch_set_v2([transfer]),
    }
    exists = backend.batch_exists_v2(keys, [transfer])
    return {**found, "batch_exists_v2": (exists.kv_hit_pages, exists.extra_pool_hit_pages)}


MISSES = {
    "batch_exists": 0,
    "batch_get_v1": [False, False],
    "batch_set_v1": [False, False],
    "get": None,
    "batch_get": [None, None],
    "set": False,
    "batch_set": False,
    "exists": False,
    "batch_exists_v2": (0, {}),
    "batch_get_v2": {"kv": [False, False]},
    "batch_set_v2": {"kv": [False, False]},
}


def test_without_a_pool_and_after_its_end_every_answer_is_a_miss_of_the_right_shape(backend_class: Any) -> None:
    backend = backend_class(config(), {})
    assert answers_of(backend) == MISSES
    backend.clear()
    backend.close()
    backend.close()
    assert answers_of(backend) == MISSES
    assert backend.get_stats() is None
    assert backend.counters()["faults"] == 0


def test_a_pool_that_is_not_served_is_said_once_and_every_answer_is_a_miss(
    backend_class: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_pool: object) -> Geometry:
        raise NotServed("pages that move")

    backend = backend_class(config(), {})
    monkeypatch.setattr(sys.modules["cairn_kv.sglang.storage"], "geometry_of", refuse)
    with caplog.at_level(logging.ERROR, "cairn_kv.sglang"):
        backend.register_mem_pool_host(pool())
        assert answers_of(backend) == MISSES
        backend.clear()
    assert [record.getMessage() for record in caplog.records] == ["cairn: nothing is stored or loaded: pages that move"]


def test_a_pool_that_nobody_foresaw_does_not_keep_the_engine_from_starting(
    backend_class: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = backend_class(config(), {})
    monkeypatch.setattr(sys.modules["cairn_kv.sglang.storage"], "geometry_of", lambda _pool: 1 // 0)
    with caplog.at_level(logging.ERROR, "cairn_kv.sglang"):
        backend.register_mem_pool_host(pool())
    assert answers_of(backend) == MISSES
    assert "ZeroDivisionError" in caplog.text


def test_a_fault_of_the_backend_is_counted_told_in_full_once_and_a_miss(
    backend_class: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"a fault of the test's: {name}")

    backend = backend_class(config(), {})
    vars(backend)["_side"] = Faulty()
    with caplog.at_level(logging.WARNING, "cairn_kv.sglang"):
        assert answers_of(backend) == MISSES
    assert backend.counters()["faults"] == 8
    assert [record.exc_info is not None for record in caplog.records] == [True] + [False] * 7
