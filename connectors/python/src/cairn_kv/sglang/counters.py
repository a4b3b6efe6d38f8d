"""What one rank counts: plain numbers, nothing per request."""

from __future__ import annotations

import threading

#: Counter: what it counts. The names are those of the log line.
COUNTERS = {
    "queries": "Queries of the engine, each for a run of pages.",
    "queried_pages": "Pages asked for.",
    "hit_pages": "Pages that queries found.",
    "lookup_timeouts": "Look-ups that were not answered in time and became misses.",
    "unavailable": "Calls that found no daemon and became misses.",
    "loaded_pages": "Pages loaded into the host pool.",
    "loaded_bytes": "Bytes loaded into the host pool.",
    "load_pages_short": "Pages asked to be loaded that did not arrive verified.",
    "stored_pages": "Pages that the daemon acknowledged, those that it already had included.",
    "present_pages": "Of these, pages that it already had: nothing was copied.",
    "stored_bytes": "Bytes copied to the daemon.",
    "store_pages_short": "Pages offered that were not acknowledged.",
    "proofs": "Stored pages of an earlier life that equalled the computed ones.",
    "proofs_failed": "Stored pages of an earlier life that differed: they are not used by this engine.",
    "clears": "Times that the engine gave up what was stored.",
    "faults": "Faults of the backend that became misses; each is in the log.",
}


class Counters:
    """Adds from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(COUNTERS, 0)

    def add(self, counter: str, value: int = 1) -> None:
        """Adds to a counter of COUNTERS."""
        assert counter in COUNTERS, counter
        with self._lock:
            self._totals[counter] += value

    def totals(self) -> dict[str, int]:
        """All that was ever counted."""
        with self._lock:
            return dict(self._totals)
