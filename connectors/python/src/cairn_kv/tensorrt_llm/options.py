"""The connector's options, out of environment variables.

The engine's `kv_connector_config` has no place for options of a connector. Of the environment its own way of starting
ranks hands on what begins with `TRTLLM`, hence the names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "TRTLLM_CAIRN_"


@dataclass(frozen=True)
class Options:
    """What the environment says.

    ``socket``: the daemon's, None for its default place. ``lookup_seconds``: a look-up that takes longer is a miss.
    ``stage_seconds``: blocks that have not arrived by then are computed. ``staging_bytes``: memory of one engine into
    which found blocks are read. ``window_bytes``: memory of each rank out of which blocks are stored.
    ``load_blocks_min``: hits of fewer blocks are computed.
    """

    socket: str | None = None
    lookup_seconds: float = 0.001
    stage_seconds: float = 0.05
    staging_bytes: int = 512 << 20
    window_bytes: int = 256 << 20
    load_blocks_min: int = 1

    @staticmethod
    def read(environment: Mapping[str, str]) -> Options:
        """From the environment of any rank. Raises ValueError, naming the variable that is out of range."""
        socket = environment.get(f"{PREFIX}SOCKET") or environment.get("CAIRN_SOCKET")
        return Options(
            socket=socket or None,
            lookup_seconds=_number(environment, "LOOKUP_MS", 1.0, 0.05, 60_000.0) / 1_000,
            stage_seconds=_number(environment, "STAGE_MS", 50.0, 1.0, 60_000.0) / 1_000,
            staging_bytes=int(_number(environment, "STAGING_BYTES", 512 << 20, 1 << 16, 1 << 40)),
            window_bytes=int(_number(environment, "WINDOW_BYTES", 256 << 20, 1 << 16, 1 << 40)),
            load_blocks_min=int(_number(environment, "LOAD_BLOCKS_MIN", 1, 1, 1 << 20)),
        )


def _number(environment: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = environment.get(PREFIX + name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ValueError(f"{PREFIX}{name} is {text!r}; {least:g} to {most:g}")
    return value
