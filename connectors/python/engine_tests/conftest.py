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

from engines import Engine, engine_python, say

Start = Callable[..., Engine]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, written by the package itself."""
    import subprocess

    directory = tmp_path_factory.mktemp("models") / "tiny"
    source = Path(__file__).resolve().parents[1] / "src"
    code = (
        "import sys; from pathlib import Path; from cairn_kv.verify.model import write_model;"
        "write_model(Path(sys.argv[1]))"
    )
    subprocess.run(
        [engine_python(), "-c", code, str(directory)], check=True, env={**os.environ, "PYTHONPATH": str(source)}
    )
    return directory


@pytest.fixture
def node() -> Iterator[Node]:
    """A daemon of the test's own, that asks for proofs as it does by default."""
    own = Node({"engineApi": {"proof": "required"}}).start()
    yield own
    own.remove()


@pytest.fixture
def start(model: Path) -> Iterator[Start]:
    """Starts engines; all of them end with the test."""
    engines: list[Engine] = []

    def make(daemon: Node | None = None, **settings: Any) -> Engine:
        connector = None if daemon is None else {"socket": daemon.socket, "lookupTimeoutMs": 5_000}
        engines.append(Engine(engine_python(), model, connector, **settings))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def chance() -> random.Random:
    """Seeded randomness; the seed is printed, and CAIRN_TEST_SEED repeats it."""
    seed = int(os.environ.get("CAIRN_TEST_SEED") or random.SystemRandom().randrange(2**32))
    say(f"CAIRN_TEST_SEED={seed}")
    return random.Random(seed)
