"""What `--hicache-storage-backend-extra-config` may hold for this backend.

The engine takes its own names out of the same map before the backend sees it; what neither knows is told once, never
an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_NAMES = {
    "socket": "socket",
    "windowBytes": "window_bytes",
    "lookupTimeoutMs": "lookup_timeout_ms",
    "loadTimeoutMs": "load_timeout_ms",
    "storeTimeoutMs": "store_timeout_ms",
    "interface_v1": "interface_v1",
}
#: What the engine's loader reads out of the same map.
_OF_THE_ENGINE = ("backend_name", "module_path", "class_name", "tp_lcm_size")


@dataclass(frozen=True)
class Options:
    """The backend's options.

    ``socket``: the daemon's, None for its default place. ``window_bytes``: memory shared with the daemon per rank,
    through which pages travel. The time-outs bound one call of the engine each: a query, a read, a write; what has not
    happened by then is a miss. ``interface_v1``: the engine hands over addresses of pages; without it, copies of them.
    """

    socket: str | None = None
    window_bytes: int = 256 << 20
    lookup_timeout_ms: float = 200.0
    load_timeout_ms: float = 5_000.0
    store_timeout_ms: float = 10_000.0
    interface_v1: bool = False
    unknown: tuple[str, ...] = field(default=())

    @staticmethod
    def read(config: Mapping[str, Any]) -> Options:
        """From the engine's configuration. Raises ValueError for a value that is out of range."""
        known = {field_name: config[name] for name, field_name in _NAMES.items() if name in config}
        known["interface_v1"] = bool(known.get("interface_v1", 0))
        options = Options(**known, unknown=tuple(sorted(set(config) - set(_NAMES) - set(_OF_THE_ENGINE))))
        if options.socket is not None and not isinstance(options.socket, str):
            raise ValueError(f"socket is {options.socket!r}; a path")
        _within("windowBytes", options.window_bytes, 1 << 16, 1 << 40)
        _within("lookupTimeoutMs", options.lookup_timeout_ms, 1, 60_000)
        _within("loadTimeoutMs", options.load_timeout_ms, 1, 60_000)
        _within("storeTimeoutMs", options.store_timeout_ms, 1, 60_000)
        return options


def _within(name: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; {least} to {most}")
