"""What `kv_connector_extra_config` may hold. Unknown names are kept aside and told, never an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_NAMES = {
    "socket": "socket",
    "windowBytes": "window_bytes",
    "lookupTimeoutMs": "lookup_timeout_ms",
    "loadBlocksMin": "load_blocks_min",
    "remoteWaitMs": "remote_wait_ms",
    "keepFailurePolicy": "keep_failure_policy",
}

#: A quoted number is not a number: it would be met by the first comparison, inside the engine's loop.
_TYPES: dict[str, tuple[type, ...]] = {
    "socket": (str, type(None)),
    "windowBytes": (int,),
    "lookupTimeoutMs": (int, float),
    "loadBlocksMin": (int,),
    "remoteWaitMs": (int, float),
    "keepFailurePolicy": (bool,),
}
_MISSING = object()

# Options of the connector that this one replaces: they may stand there still.
_LMCACHE = "lmcache."


@dataclass(frozen=True)
class Options:
    """The connector's options.

    ``socket``: the daemon's, None for its default place. ``window_bytes``: memory shared with the daemon per worker,
    through which blocks travel. ``lookup_timeout_ms``: a look-up that takes longer is a miss. ``load_blocks_min``: hits
    of fewer blocks are computed. ``remote_wait_ms``: how long a request may wait for blocks that other nodes stored; 0:
    it does not. ``keep_failure_policy``: leave the engine's policy for failed loads as it is.
    ``unknown``: names that mean nothing here, sorted; ``lmcache``: those of LMCache, which mean nothing here either.
    """

    socket: str | None = None
    window_bytes: int = 256 << 20
    lookup_timeout_ms: float = 50.0
    load_blocks_min: int = 1
    remote_wait_ms: float = 0.0
    keep_failure_policy: bool = False
    unknown: tuple[str, ...] = field(default=())
    lmcache: tuple[str, ...] = field(default=())

    @staticmethod
    def read(config: Mapping[str, Any]) -> Options:
        """From the engine's configuration. Raises ValueError for a value of another type, or out of range."""
        for name, kinds in _TYPES.items():
            given = config.get(name, _MISSING)
            if given is not _MISSING and (
                not isinstance(given, kinds) or (isinstance(given, bool) and bool not in kinds)
            ):
                raise ValueError(f"{name} is {given!r}; {' or '.join(kind.__name__ for kind in kinds)} is expected")
        known = {field_name: config[name] for name, field_name in _NAMES.items() if name in config}
        others = sorted(set(config) - set(_NAMES))
        lmcache = tuple(name for name in others if name.startswith(_LMCACHE))
        unknown = tuple(name for name in others if not name.startswith(_LMCACHE))
        options = Options(**known, unknown=unknown, lmcache=lmcache)
        if not 1 << 16 <= options.window_bytes <= 1 << 40:
            raise ValueError(f"windowBytes is {options.window_bytes}; 65536 to 2^40")
        if not 0 < options.lookup_timeout_ms <= 60_000:
            raise ValueError(f"lookupTimeoutMs is {options.lookup_timeout_ms}; up to 60000")
        if not 1 <= options.load_blocks_min <= 1 << 20:
            raise ValueError(f"loadBlocksMin is {options.load_blocks_min}; 1 to 2^20")
        if not 0 <= options.remote_wait_ms <= 60_000:
            raise ValueError(f"remoteWaitMs is {options.remote_wait_ms}; up to 60000")
        return options

    def warnings(self) -> list[str]:
        """What an operator should know of names that were given for nothing, a line each; values are never quoted."""
        lines = [f"unknown option {name} in kv_connector_extra_config" for name in self.unknown]
        if self.lmcache:
            names = ", ".join(self.lmcache)
            lines.append(f"options of LMCache are ignored: {names}; docs/migration.md says what replaces them")
        return lines
