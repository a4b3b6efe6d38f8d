"""What `cairn_kv` says appears where vLLM writes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from cairn_kv.vllm.engine_log import join_engine_log

OURS, ENGINE = logging.getLogger("cairn_kv"), logging.getLogger("vllm")


class Kept(logging.Handler):
    """Keeps lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Puts both loggers back as they were."""
    before = [(one, list(one.handlers), one.level, one.propagate) for one in (OURS, ENGINE)]
    for one in (OURS, ENGINE):
        one.handlers[:] = []
        one.setLevel(logging.NOTSET)
    yield
    for one, handlers, level, propagate in before:
        one.handlers[:] = handlers
        one.setLevel(level)
        one.propagate = propagate


def test_the_engine_s_handlers_and_level_are_taken_over_once() -> None:
    kept = Kept()
    ENGINE.addHandler(kept)
    ENGINE.setLevel(logging.INFO)
    join_engine_log()
    join_engine_log()
    logging.getLogger("cairn_kv.vllm.connector").info("shown")
    OURS.debug("not shown")
    assert kept.lines == ["shown"]


def test_a_logger_that_somebody_set_up_is_left_alone() -> None:
    ENGINE.addHandler(Kept())
    own = Kept()
    OURS.addHandler(own)
    join_engine_log()
    assert OURS.handlers == [own]


def test_an_engine_without_a_log_of_its_own_changes_nothing() -> None:
    join_engine_log()
    assert (OURS.handlers, OURS.level, OURS.propagate) == ([], logging.NOTSET, True)
