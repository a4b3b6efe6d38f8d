"""An engine in a child process, as acceptance and tests drive it (engine_process.py is the other end)."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parents[2]
#: An engine's start, and any one job: generous, because machines that check are shared.
START_SECONDS = 600.0
JOB_SECONDS = 600.0
#: A difference between two runs of one prompt is rounding if the reference itself could hardly decide.
GAP_MAX = 1e-4


def environment() -> dict[str, str]:
    """What an engine runs in: this package importable, nothing of another daemon's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCES), kept.get("PYTHONPATH", "")]))
    return kept


@dataclass(frozen=True)
class Output:
    """One request's answer. ``logprobs``: of each step the two best, (token, bits of the log-probability)."""

    cached: int
    tokens: tuple[int, ...]
    logprobs: tuple[tuple[tuple[int, str], ...], ...]
    finish: str


class Engine:
    """One vLLM in a process of its own."""

    def __init__(self, python: str, model: Path, connector: dict[str, Any] | None = None, **settings: Any) -> None:
        self._log = Path(model).parent / f"engine-{os.getpid()}-{id(self)}.log"
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [python, "-m", "cairn_kv.verify.engine_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                text=True,
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        setup = {
            "model": str(model),
            "dtype": "float32",
            "blockTokens": 32,
            "blocks": 256,
            "modelTokensMax": 2_048,
            "stepTokensMax": 2_048,
            "sequencesMax": 8,
            "threads": None,
            "connector": connector,
        }
        self._send({**setup, **settings})
        self._ready = False

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def ready(self) -> Engine:
        """Waits until the engine takes jobs."""
        if not self._ready:
            assert self._receive(START_SECONDS) == {"ready": True}
            self._ready = True
        return self

    def generate(self, prompts: list[list[int]], tokens: int = 8) -> list[Output]:
        """Answers of prompts that are given to the engine together."""
        self.begin(prompts, tokens)
        return self.end()

    def begin(self, prompts: list[list[int]], tokens: int = 8) -> None:
        """The same without waiting; end() waits."""
        self.ready()
        self._send({"op": "generate", "prompts": prompts, "maxTokens": tokens})

    def end(self) -> list[Output]:
        """The answers of what begin() began."""
        answer = self._receive(JOB_SECONDS)
        return [
            Output(
                cached=output["cached"],
                tokens=tuple(output["tokens"]),
                logprobs=tuple(tuple((token, bits) for token, bits in step) for step in output["logprobs"]),
                finish=output["finish"],
            )
            for output in answer["outputs"]
        ]

    def counters(self) -> dict[str, float]:
        """What the connector counted since its start, both halves."""
        self.ready()
        self._send({"op": "counters"})
        counters: dict[str, float] = self._receive(JOB_SECONDS)["counters"]
        return counters

    def zero_blocks(self, every: int = 1) -> None:
        """From here on every block that is loaded, or every n-th, arrives as zeros."""
        self.ready()
        self._send({"op": "zeroBlocks", "every": every})
        self._receive(JOB_SECONDS)

    def reset_cache(self) -> None:
        """Resets the engine's cache and its connector's, as for new weights."""
        self.ready()
        self._send({"op": "resetCache"})
        self._receive(JOB_SECONDS)

    def step_tokens(self, tokens: int) -> None:
        """From here on a step computes so many tokens at most: sums are equal to the bit only in equal pieces."""
        self.ready()
        self._send({"op": "stepTokensMax", "value": tokens})
        self._receive(JOB_SECONDS)

    def kill(self) -> None:
        """Ends the process as a crash would."""
        self._child.kill()
        self._ended()

    def close(self) -> None:
        """Ends the process in order."""
        if self._child.poll() is None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            try:
                self._child.wait(60)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._ended()

    def _ended(self) -> None:
        self._child.wait()
        self._reader.join(10)
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def log(self) -> str:
        """The engine's log."""
        return self._log.read_text(errors="replace")

    def _send(self, job: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(job) + "\n")
        self._child.stdin.flush()

    def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"the engine did not answer in {seconds} s:\n{self.log()[-4_000:]}") from None
        if line is None:
            raise AssertionError(f"the engine ended:\n{self.log()[-4_000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line)
        self._lines.put(None)


def difference(expected: Output, found: Output) -> tuple[int, float] | None:
    """The first token that differs, and how far apart the expected run's two best were there; None if all are equal."""
    for at, (left, right) in enumerate(zip(expected.tokens, found.tokens, strict=True)):
        if left != right:
            best = sorted((float.fromhex(bits) for _, bits in expected.logprobs[at]), reverse=True)
            return at, best[0] - best[1]
    return None


def same_bits(expected: Sequence[Output], found: Sequence[Output]) -> bool:
    """Whether tokens and log-probabilities are equal to the last bit."""
    return [(output.tokens, output.logprobs) for output in expected] == [
        (output.tokens, output.logprobs) for output in found
    ]
