"""The adapters' own classes over a stand-in of the engine: what they hold open, and what becomes of a refusal."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from daemon import Daemon, descriptor
from test_vllm_tier_identity import Config

import cairn_kv
from cairn_kv import CairnError, Session, limits
from cairn_kv.adapters.counters import COUNTERS, TIMES, CairnStats
from cairn_kv.adapters.identity import Identity, NotServed
from cairn_kv.vllm import setup
from cairn_kv.vllm.links import SchedulerSession
from cairn_kv.vllm.options import Options

IDENTITY = Identity(descriptor(), ("a",), descriptor().row_bytes, world=1)


class Base:
    """The engine's base classes: they keep what they are given."""

    def __init__(self, *given: Any, vllm_config: Any = None, **_named: Any) -> None:
        self._kv_transfer_config = getattr(vllm_config, "kv_transfer_config", None)
        self._offloading_spec, self._primary_kv_view = (*given, None, None)[:2]


class Role(Enum):
    """The halves."""

    SCHEDULER = 0
    WORKER = 1


class Found(Enum):
    """What a tier answers."""

    HIT = 1
    MISS = 2
    RETRY = 3


@dataclass
class Ended:
    """A job's result."""

    job_id: int
    success: bool


class Log:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, text: str, *values: object) -> None:
        self.lines.append(text % values)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """Puts the engine's modules in place; its log."""
    made = Log()
    connectors = "vllm.distributed.kv_transfer.kv_connector.v1"
    modules: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": "0.32.0"},
        "vllm.logger": {"init_logger": lambda _name: made},
        f"{connectors}.base": {
            "KVConnectorBase_V1": Base,
            "KVConnectorRole": Role,
            "SupportsHMA": type("SupportsHMA", (), {}),
            "KVConnectorMetadata": type("KVConnectorMetadata", (), {}),
            "KVConnectorWorkerMetadata": type("KVConnectorWorkerMetadata", (), {}),
        },
        f"{connectors}.metrics": {"KVConnectorPromMetrics": Base, "KVConnectorStats": type("Stats", (), {})},
        "vllm.v1.kv_offload.base": {"LookupResult": Found, "RequestOffloadingContext": Base},
        "vllm.v1.kv_offload.tiering.base": {"JobResult": Ended, "SecondaryTierManager": Base},
    }
    for name, held in modules.items():
        module = ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)
    yield made
    for name in ("connector", "stats", "tier"):
        sys.modules.pop(f"cairn_kv.vllm.{name}", None)


def kept(made: list[Refusing]) -> Callable[..., Refusing]:
    """Makes sessions and keeps them."""

    def make(*_given: Any, **_named: Any) -> Refusing:
        made.append(Refusing())
        return made[-1]

    return make


class Refusing:
    """A session that cannot make a window."""

    def __init__(self) -> None:
        self.closed = False

    def wait_connected(self, _seconds: float) -> bool:
        return False

    def create_window(self, *_given: Any, **_named: Any) -> None:
        raise ValueError("more rows than a window has")

    def close(self) -> None:
        self.closed = True


def test_a_window_that_cannot_be_made_is_not_served_and_leaves_no_session_open(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Refusing()
    monkeypatch.setattr(setup, "worker_rank", lambda: 0)
    monkeypatch.setattr(setup, "_session", lambda *_: session)
    tensors = {"a": SimpleNamespace(device=SimpleNamespace(type="cpu"))}
    with pytest.raises(NotServed, match="more rows than a window has"):
        setup.open_worker(IDENTITY, "engine", Options(), tensors, CairnStats())
    assert session.closed


def test_a_fault_while_a_worker_is_set_up_leaves_no_session_open(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Refusing()
    monkeypatch.setattr(setup, "worker_rank", lambda: 0)
    monkeypatch.setattr(setup, "_session", lambda *_: session)
    with pytest.raises(AttributeError):
        setup.open_worker(IDENTITY, "engine", Options(), {"a": object()}, CairnStats())
    assert session.closed


def test_a_tier_whose_window_cannot_be_made_says_so_and_stores_nothing(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = importlib.import_module("cairn_kv.vllm.tier")
    made: list[Refusing] = []
    monkeypatch.setattr(tier, "Session", kept(made))
    monkeypatch.setattr(tier, "_machine", lambda: "cpu")
    chunks = memoryview(bytearray(4 * 4_096)).cast("b", (4, 4_096))
    one = tier.CairnTier(SimpleNamespace(config=Config()), chunks, "CairnTier")
    assert [session.closed for session in made] == [True]
    assert "more rows than a window has" in log.lines[-1]
    assert one.lookup(bytes(36), SimpleNamespace(req_id="a")) is Found.MISS


def test_registering_tensors_again_ends_what_the_first_ones_opened(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = importlib.import_module("cairn_kv.vllm.connector")
    opened: list[Refusing] = []

    def refuse(*_: Any) -> None:
        raise NotServed("the blocks are elsewhere")

    monkeypatch.setattr(connector, "describe_engine", lambda *_: IDENTITY)
    monkeypatch.setattr(connector, "open_worker", kept(opened))
    transfer = SimpleNamespace(kv_connector_extra_config={}, kv_load_failure_policy="recompute", engine_id="engine")
    one = connector.CairnConnector(SimpleNamespace(kv_transfer_config=transfer), Role.WORKER)
    one.register_kv_caches({})
    one.register_kv_caches({})
    assert [worker.closed for worker in opened] == [True, False]
    monkeypatch.setattr(connector, "open_worker", refuse)
    one.register_kv_caches({})
    assert [worker.closed for worker in opened] == [True, True]
    assert one.build_connector_worker_meta() is None, "of the first ones nothing is told any more"
    assert "the blocks are elsewhere" in log.lines[-1]


def test_a_session_with_too_many_calls_is_a_miss_for_the_scheduler(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(daemon.socket, "overloaded", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        link = SchedulerSession(session, 1.0)
        monkeypatch.setattr(limits, "COMPLETIONS_WAITING_MAX", -1)
        with pytest.raises(CairnError, match="poll"):
            session.submit_lookup(1, [bytes(descriptor().key_bytes)])
        assert link.lookup(1, bytes(descriptor().key_bytes)) is None
        link.prove(bytes(descriptor().key_bytes), same=True)


@pytest.mark.parametrize("name", [*COUNTERS, *TIMES])
def test_every_counter_is_counted_somewhere(name: str) -> None:
    package = Path(cairn_kv.__file__).parent
    sources = [path for path in package.rglob("*.py") if path.name != "counters.py"]
    assert any(f'"{name}"' in path.read_text() for path in sources)
