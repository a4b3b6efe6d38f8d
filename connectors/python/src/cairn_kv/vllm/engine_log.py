"""Shows what `cairn_kv` says in the engine's log: the engine gives handlers to its own loggers alone."""

from __future__ import annotations

import logging


def join_engine_log() -> None:
    """Write what cairn_kv logs where vLLM writes, at its level, unless somebody has set up cairn_kv's logger."""
    ours, engine = logging.getLogger("cairn_kv"), logging.getLogger("vllm")
    if ours.handlers or ours.level != logging.NOTSET:
        return
    ours.handlers[:] = engine.handlers
    ours.setLevel(engine.level)
    ours.propagate = not engine.handlers
