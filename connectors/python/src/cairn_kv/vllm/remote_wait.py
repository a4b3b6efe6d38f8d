"""The wait of a request for blocks that other nodes stored.

The daemon knows of them only after it asked its store, so a look-up may say that more may be known soon: it is repeated
for a share of the wait. What is known to be there is fetched, once per request, and looked up again when the fetch has
ended or the time is over; whatever becomes of it, the request then goes on with what there is.

Only chains that the daemon keeps can be fetched. It keeps a chain until the request ends, so it is asked to only once a
request does wait: the look-up that began the wait is sent again at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cairn_kv.adapters.counters import CairnStats

from .answers import Answer, Fetched

#: Of the wait, the share in which the daemon's store must have said that there is anything.
HINT_SHARE = 0.25
#: Between two look-ups while the store is asked.
POLL_SECONDS = 0.01


class FetchLink(Protocol):
    """What the wait needs of a session."""

    def fetch(self, request: int, seconds: float) -> int | None:
        """Brings a chain that was kept into the daemon's memory; its tag, or None if it cannot be sent."""


@dataclass
class Wait:
    """One request's."""

    #: When it began, None before.
    since: float | None = None
    asked_at: float = 0.0
    fetch_tag: int | None = None
    #: Blocks that were there when the fetch began.
    fetched_from: int = 0
    #: Blocks came since the last look-up.
    came: bool = False
    done: bool = False


class Step(Enum):
    """What a request does now."""

    GO_ON = 0
    WAIT = 1
    LOOK_UP = 2


class RemoteWait:
    """The waits of all requests of an engine."""

    def __init__(
        self, link: FetchLink, stats: CairnStats, seconds: float, blocks_min: int, clock: Callable[[], float]
    ) -> None:
        """``seconds``: of a request, 0: none waits. ``blocks_min``: for fewer no request waits."""
        self._link = link
        self._stats = stats
        self._seconds = seconds
        self._blocks_min = blocks_min
        self._clock = clock
        self._fetches: dict[int, Wait] = {}

    def waits(self, wait: Wait) -> bool:
        """Whether the request waits, and its time is not over."""
        return self._left(wait, self._clock()) > 0

    def _left(self, wait: Wait, now: float) -> float:
        if wait.since is None or wait.done:
            return 0
        return self._seconds - (now - wait.since)

    def step(self, wait: Wait, request: int, answer: Answer, local_blocks: int, blocks_max: int) -> Step:
        """What a request with this answer does, which has ``local_blocks`` itself and can use ``blocks_max``."""
        if wait.done or self._seconds <= 0:
            return Step.GO_ON
        now = self._clock()
        held = max(answer.hit, local_blocks)
        there = min(answer.remote, blocks_max) - held >= self._blocks_min
        useful = blocks_max - held >= self._blocks_min and answer.proof_depth == 0
        if not useful or not (there or answer.remote_asking or wait.fetch_tag is not None):
            step = Step.GO_ON
        elif wait.since is None:
            wait.since = wait.asked_at = now
            step = Step.LOOK_UP
        elif wait.fetch_tag is not None:
            # At the end some of it may have come.
            step = Step.WAIT if self._left(wait, now) > 0 else Step.LOOK_UP
        elif there:
            step = self._fetch(wait, request, held, self._left(wait, now))
        else:
            step = self._while_asked(wait, now)
        if step == Step.GO_ON or self._left(wait, now) <= 0:
            self.end(wait)
        return step

    def fetched(self, fetched: Fetched) -> None:
        """A fetch ended."""
        wait = self._fetches.get(fetched.tag)
        if wait is None:
            return
        self.end(wait)
        wait.came = fetched.blocks > wait.fetched_from
        self._stats.add("remote_blocks", max(0, fetched.blocks - wait.fetched_from))

    def end(self, wait: Wait) -> None:
        """The request waits no more. A fetch that has not ended is cancelled when the request is."""
        if wait.since is not None and not wait.done:
            self._stats.observe("remote_seconds", self._clock() - wait.since)
        wait.done = True
        if wait.fetch_tag is not None:
            self._fetches.pop(wait.fetch_tag, None)
            wait.fetch_tag = None

    def _while_asked(self, wait: Wait, now: float) -> Step:
        assert wait.since is not None
        if now - wait.since > self._seconds * HINT_SHARE:
            return Step.GO_ON
        if now - wait.asked_at < POLL_SECONDS:
            return Step.WAIT
        wait.asked_at = now
        return Step.LOOK_UP

    def _fetch(self, wait: Wait, request: int, held: int, seconds: float) -> Step:
        tag = self._link.fetch(request, seconds) if seconds > 0 else None
        if tag is None:
            return Step.GO_ON
        wait.fetch_tag = tag
        wait.fetched_from = held
        self._fetches[tag] = wait
        self._stats.add("remote_fetches", 1)
        return Step.WAIT
