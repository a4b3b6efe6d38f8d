"""SGLang's HiCache and its ranks in child processes, as the tests drive it (sglang_process.py is the other end)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cairn_kv.verify.engine import environment

#: The start imports much of the engine; machines that check are shared.
START_SECONDS = 300.0
JOB_SECONDS = 120.0
BACKEND = {
    "backend_name": "cairn",
    "module_path": "cairn_kv.sglang",
    "class_name": "CairnHiCacheStorage",
    "interface_v1": 1,
    "hicache_storage_pass_prefix_keys": True,
    "prefetch_threshold": 4,
    "lookupTimeoutMs": 5_000,
}
SETUP: dict[str, Any] = {
    "pool": "mha",
    "layout": "page_first",
    "dtype": "float32",
    "layers": 3,
    "heads": 2,
    "headSize": 16,
    "pageTokens": 4,
    "pages": 512,
    "tpRank": 0,
    "tpSize": 1,
    "ppRank": 0,
    "ppSize": 1,
    "model": "served-name",
    "sidePool": False,
    "storageMetrics": False,
    "arguments": None,
    "ownLaunch": False,
}
PAGE_TOKENS = int(SETUP["pageTokens"])
ROW_BYTES = 2 * 3 * 4 * 2 * 16 * 4


def sglang_python() -> str:
    """The interpreter of the environment that SGLang's wheel is installed in (.ci/engines prints where)."""
    named = os.environ.get("CAIRN_TEST_SGLANG_PYTHON")
    if not named:
        raise RuntimeError('CAIRN_TEST_SGLANG_PYTHON names no Python with sglang 0.5.23: eval "$(bash .ci/engines)"')
    return named


class RankRefused(Exception):
    """The engine did not start with this configuration."""


class Engine:
    """SGLang, imported once; its ranks are forked from it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cairn-sglang-"))
        self.socket = str(self.directory / "ranks.sock")
        with (self.directory / "engine.log").open("wb") as log:
            self._child = subprocess.Popen(
                [sglang_python(), str(Path(__file__).with_name("sglang_process.py")), self.socket],
                stdin=subprocess.PIPE,
                stderr=log,
                stdout=log,
                env=environment(),
            )
        until = time.monotonic() + START_SECONDS
        while not Path(self.socket).exists():
            assert self._child.poll() is None, (self.directory / "engine.log").read_text(errors="replace")[-4_000:]
            assert time.monotonic() < until, "the engine's modules were not imported in time"
            time.sleep(0.05)

    def close(self) -> None:
        """Ends the process."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(JOB_SECONDS)
        shutil.rmtree(self.directory, ignore_errors=True)


class Rank:
    """One rank. Jobs are given one after the other, or begun and ended apart."""

    def __init__(
        self, engine: Engine, daemon_socket: str, options: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        extra = {**BACKEND, "socket": daemon_socket, **(options or {})}
        handle, log = tempfile.mkstemp(suffix=".log", dir=engine.directory)
        os.close(handle)
        self._log = Path(log)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(JOB_SECONDS)
        self._connection.connect(engine.socket)
        self._answers = self._connection.makefile("r")
        self._send({**SETUP, **settings, "extra": json.dumps(extra), "log": log})
        answer = self._receive()
        if "refused" in answer:
            self.close()
            raise RankRefused(answer["refused"])
        self._pid = int(answer["ready"])

    def begin(self, operation: str, **job: Any) -> None:
        """Gives a job without waiting for its answer."""
        self._send({"op": operation, **job})

    def end(self) -> dict[str, Any]:
        """The answer of what begin() began."""
        return self._receive()

    def do(self, operation: str, **job: Any) -> dict[str, Any]:
        """A job and its answer."""
        self.begin(operation, **job)
        return self.end()

    def backup(self, tokens: Sequence[int], **job: Any) -> int:
        """Pages that the engine counted as written."""
        return int(self.do("backup", tokens=list(tokens), **job)["completed"])

    def prefetch(self, tokens: Sequence[int], **job: Any) -> dict[str, Any]:
        """Pages found and read, and how their bytes are."""
        return self.do("prefetch", tokens=list(tokens), **job)

    def call(self, method: str, keys: Sequence[str], **job: Any) -> Any:
        """A method of the backend."""
        return self.do("call", method=method, keys=list(keys), **job)["answer"]

    def state(self) -> dict[str, Any]:
        """Counters and more."""
        return self.do("state")

    def log(self) -> str:
        """What the rank said."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Lets the rank go: it detaches its backend and ends."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            self._answers.read()
        self._answers.close()
        self._connection.close()

    def _send(self, job: dict[str, Any]) -> None:
        self._connection.sendall((json.dumps(job) + "\n").encode())

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._answers.readline()
        except TimeoutError:
            raise AssertionError(f"no answer in {JOB_SECONDS} s:\n{self.log()[-4_000:]}") from None
        assert line, f"the rank ended:\n{self.log()[-4_000:]}"
        answer: dict[str, Any] = json.loads(line)
        assert "hung" not in answer, f"the engine's threads do not answer {answer}:\n{self.log()[-4_000:]}"
        return answer
