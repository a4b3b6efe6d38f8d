"""Counters and times of one half of the connector: plain numbers, nothing per request."""

from __future__ import annotations

import threading

#: Counter: what it counts. The names are those of the log line; the metric is `vllm:cairn_<name>_total`.
COUNTERS = {
    "lookups": "Look-ups sent to the daemon.",
    "lookup_timeouts": "Look-ups that were not answered in time and became misses.",
    "lookups_unavailable": "Look-ups not sent because there was no daemon, or too many were under way.",
    "hit_blocks": "Blocks that look-ups found.",
    "remote_fetches": "Requests for which blocks of other nodes were fetched.",
    "remote_blocks": "Blocks that came while a request waited for them.",
    "load_requests": "Requests that loaded blocks.",
    "loaded_blocks": "Blocks loaded into the engine.",
    "loaded_bytes": "Bytes loaded into the engine.",
    "failed_load_blocks": "Blocks that could not be loaded and were computed.",
    "failed_load_requests": "Requests of which some blocks could not be loaded.",
    "offered_blocks": "Blocks offered to the daemon.",
    "stored_blocks": "Offered blocks that the daemon acknowledged, those that it already had included.",
    "stored_bytes": "Bytes copied to the daemon.",
    "stored_blocks_short": "Offered blocks that were not acknowledged.",
    "shed_blocks": "Blocks not offered because the workers' queue was full.",
    "parent_absent": "Stores whose chain the daemon no longer held from the start.",
    "preempted_requests": "Requests whose blocks the engine took away to make room.",
    "proofs": "Stored blocks of an earlier life that equalled the computed ones.",
    "proofs_failed": "Stored blocks of an earlier life that differed: their namespace was given up.",
    "hook_nanoseconds": "Time spent inside the connector's hooks.",
}

#: Times of which the sum and the number are reported, in seconds.
TIMES = {
    "lookup_seconds": "Look-up to answer.",
    "remote_seconds": "Wait for blocks of other nodes, the question whether there are any included, per request.",
    "load_seconds": "Load to last block, per request.",
}


class CairnStats:
    """What one half counted since it was last taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    def add(self, counter: str, value: float) -> None:
        """Adds to a counter of COUNTERS."""
        assert counter in COUNTERS, counter
        if value != 0:
            self._add(counter, value)

    def observe(self, name: str, seconds: float) -> None:
        """One time of TIMES."""
        assert name in TIMES, name
        self._add(f"{name}_sum", seconds)
        self._add(f"{name}_count", 1)

    def take(self) -> dict[str, float]:
        """All of it, from zero again."""
        with self._lock:
            counts, self._counts = self._counts, {}
            for name, value in counts.items():
                self._totals[name] = self._totals.get(name, 0) + value
        return counts

    def totals(self) -> dict[str, float]:
        """All that was ever counted."""
        with self._lock:
            names = {*self._totals, *self._counts}
            return {name: self._totals.get(name, 0) + self._counts.get(name, 0) for name in names}

    def _add(self, name: str, value: float) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + value
