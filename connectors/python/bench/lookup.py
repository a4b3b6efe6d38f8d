"""Look-ups of a long chain from Python, one after the other: how long the engine's thread is held.

Prints one JSON object: for a list of keys and for one buffer, the blocking look-up's microseconds and those of the
submit alone; for vLLM's scheduler half, from a request's arrival to the answer, and inside its hooks; the longest pause
of the garbage collector, and the load average, since figures of a busy machine are orientation only. Needs a running
daemon; `cairn bench lookup-python` starts one.

usage: python bench/lookup.py [SOCKET] [KEYS] [ROUNDS]
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

from cairn_kv import LookupDone, NamespaceDescriptor, Session, default_socket
from cairn_kv.adapters.counters import CairnStats
from cairn_kv.adapters.identity import Identity
from cairn_kv.keys import Keys

ROW_BYTES = 4_096
STORED = 512
BLOCK_TOKENS = 16


def namespace() -> NamespaceDescriptor:
    """A namespace of the benchmark's own."""
    return NamespaceDescriptor(
        model="bench/lookup",
        revision=str(os.getpid()),
        kv_dtype="bf16",
        quant_scales=False,
        layout="opaque",
        row_bytes=ROW_BYTES,
        group_kinds=("full",),
        draft=False,
        block_tokens=BLOCK_TOKENS,
        hash_algorithm="sha256",
        hash_seed="0",
        engine_build="bench",
        key_bytes=32,
        shards=1,
        chained=True,
    )


def chain(count: int) -> list[bytes]:
    """Keys of one chain."""
    keys, key = [], b""
    for _ in range(count):
        key = hashlib.sha256(key).digest()
        keys.append(key)
    return keys


def percentiles(rounds: int, once: Callable[[], None], between: Callable[[], object]) -> dict[str, float]:
    """Microseconds of `once`, p50 and p99, after a tenth of the rounds to warm up; `between` is not counted."""
    taken = []
    for index in range(rounds + rounds // 10):
        start = time.perf_counter_ns()
        once()
        if index >= rounds // 10:
            taken.append((time.perf_counter_ns() - start) / 1_000)
        between()
    return summary(taken)


def summary(microseconds: list[float]) -> dict[str, float]:
    """p50, p99 and the longest."""
    taken = sorted(microseconds)
    return {
        "p50Microseconds": taken[len(taken) // 2],
        "p99Microseconds": taken[len(taken) * 99 // 100],
        "maxMicroseconds": taken[-1],
    }


class CollectorPauses:
    """The longest pause of Python's garbage collector, microseconds."""

    def __init__(self) -> None:
        self.longest_microseconds = 0.0
        self._begun = 0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._begun = time.perf_counter_ns()
        else:
            taken = (time.perf_counter_ns() - self._begun) / 1_000
            self.longest_microseconds = max(self.longest_microseconds, taken)


def measure(session: Session, keys: Keys, rounds: int) -> dict[str, object]:
    """The two ways to look one chain up."""

    def blocking() -> None:
        if session.lookup(1, keys).hit != STORED:
            raise AssertionError("the stored prefix was not found")

    def submit() -> None:
        session.submit_lookup(1, keys)

    def answered() -> None:
        while not any(isinstance(done, LookupDone) for done in session.poll()):
            time.sleep(0.0001)

    held = percentiles(rounds, blocking, lambda: None)
    handed = percentiles(rounds, submit, answered)
    return {"lookup": held, "submit": handed}


def measure_scheduler(session: Session, keys: list[bytes], rounds: int) -> dict[str, object]:
    """A request's arrival, then questions until the answer is there, as the engine asks between its steps."""
    # The engine itself is not measured, and takes long to import; its halves work without it.
    sys.modules["vllm"] = None  # type: ignore[assignment]
    from cairn_kv.vllm.links import SchedulerSession  # noqa: PLC0415
    from cairn_kv.vllm.scheduler import SchedulerSide  # noqa: PLC0415

    link = SchedulerSession(session, 5.0)
    side = SchedulerSide(Identity(namespace(), ("layer",), ROW_BYTES, world=1), link, CairnStats(), 5.0)
    hooks: list[float] = []
    requests: list[SimpleNamespace] = []

    def once() -> None:
        tokens = len(keys) * BLOCK_TOKENS + 1
        request = SimpleNamespace(request_id="r", num_tokens=tokens, block_hashes=keys, num_preemptions=0)
        requests[:] = [request]
        begun = time.perf_counter_ns()
        side.new_request(request)
        inside = time.perf_counter_ns() - begun
        while True:
            begun = time.perf_counter_ns()
            matched, _ = side.matched_tokens(request, 0)
            inside += time.perf_counter_ns() - begun
            if matched is not None:
                break
            time.sleep(0.00005)  # The engine's step, in which other threads run.
        hooks.append(inside / 1_000)
        if matched != STORED * BLOCK_TOKENS:
            raise AssertionError("the stored prefix was not found")

    answered = percentiles(rounds, once, lambda: side.finished(requests[0]))
    return {"answer": answered, "hooks": summary(hooks[rounds // 10 :])}


def main(arguments: list[str]) -> None:
    """Store a prefix, look it up."""
    socket = arguments[0] if arguments else default_socket()
    count = int(arguments[1]) if len(arguments) > 1 else 8_192
    rounds = int(arguments[2]) if len(arguments) > 2 else 2_000  # noqa: PLR2004 (the third argument)
    with Session(socket, f"bench-{os.getpid()}", [namespace()], engine=("bench", "1")) as session:
        if not session.wait_connected(10.0):
            raise SystemExit(str(session.last_error))
        keys = chain(count)
        window = session.create_window(STORED)
        stored = session.store(window, 0, None, keys[:STORED], range(STORED), generation=window.generation)
        stored.done.raise_for_error()
        pauses = CollectorPauses()
        result = {
            "keys": count,
            "rounds": rounds,
            "list": measure(session, keys, rounds),
            "buffer": measure(session, b"".join(keys), rounds),
            "scheduler": measure_scheduler(session, keys, rounds),
            "longestCollectorPauseMicroseconds": pauses.longest_microseconds,
            "loadAverage": os.getloadavg()[0],
        }
        print(json.dumps(result))  # noqa: T201 (the result)


if __name__ == "__main__":
    main(sys.argv[1:])
