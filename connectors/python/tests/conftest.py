"""One daemon for the tests that leave it running, and one of its own for each test that does not."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from daemon import Daemon, descriptor
from fake import FakeDaemon

from cairn_kv import Session


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """A daemon that stays up for the whole run: each test uses keys and an engine id of its own."""
    shared = Daemon().start()
    yield shared
    shared.remove()


@pytest.fixture
def own_daemon() -> Iterator[Daemon]:
    """A daemon that the test may kill."""
    own = Daemon().start()
    yield own
    own.remove()


@pytest.fixture
def session(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Session]:
    """A connected session with an engine id of its own."""
    with Session(daemon.socket, request.node.name, [descriptor()]) as made:
        assert made.wait_connected(30.0), made.last_error
        yield made


@pytest.fixture
def fake() -> Iterator[FakeDaemon]:
    """A daemon of the test's own making, in this process."""
    made = FakeDaemon()
    yield made
    made.close()


@pytest.fixture
def chance() -> random.Random:
    """Seeded randomness; the seed is printed, and CAIRN_TEST_SEED repeats it."""
    seed = int(os.environ.get("CAIRN_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CAIRN_TEST_SEED={seed}")  # noqa: T201 (shown by pytest when the test fails)
    return random.Random(seed)
