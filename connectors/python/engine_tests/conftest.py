"""A model, a daemon, and engines that end with their test."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from node import Node

from cairn_kv.verify.__main__ import write_in
from engines import Engine, engine_python, seeded

Start = Callable[..., Engine]

# An engine keeps what Python compiles of it: half of each start would be compiling.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, written by the package itself."""
    return write_in(engine_python(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def node() -> Iterator[Node]:
    """A daemon of the test's own, that asks for proofs as it does by default."""
    own = Node({"engineApi": {"proof": "required"}}).start()
    yield own
    own.remove()


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """Starts engines; all of them end with the test."""
    yield from starter(model)


@pytest.fixture(scope="module")
def start_shared(model: Path) -> Iterator[Start]:
    """Starts engines that several tests of a file use."""
    yield from starter(model)


def starter(model: Path) -> Iterator[Start]:
    """Starts engines of a model, with the connector if there is a daemon; all end at the end.

    One thread computes unless the test says otherwise: the tiny model's steps are too short to be shared out.
    """
    engines: list[Engine] = []

    def make(
        daemon: Node | None = None,
        other_model: Path | None = None,
        options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Engine:
        own = {"lookupTimeoutMs": 5_000, **(options or {})}
        connector = None if daemon is None else {"socket": daemon.socket, **own}
        engines.append(Engine(engine_python(), other_model or model, connector, **{"threads": 1, **settings}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def chance() -> random.Random:
    """Seeded randomness; the seed is printed, and CAIRN_TEST_SEED repeats it."""
    return seeded()
