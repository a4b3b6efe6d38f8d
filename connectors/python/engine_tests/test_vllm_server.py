"""`vllm serve` with the connector: API server, scheduler and worker are processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import eventually
from node import Node

from cairn_kv.verify.__main__ import write_in
from cairn_kv.verify.engine import environment
from engines import engine_python, prompt_of, say

START_SECONDS = 600.0
BLOCK_TOKENS = 32
LENGTHS = (256, 1_024, 4_096)
#: At the longest prompt, of medians.
FASTER_MIN = 5.0
ROUNDS = 3


class Server:
    """One OpenAI server of vLLM on a port of its own."""

    def __init__(self, model: Path, daemon_socket: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        transfer = {
            "kv_connector": "CairnConnector",
            "kv_connector_module_path": "cairn_kv.vllm",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"socket": daemon_socket},
        }
        command = [str(Path(engine_python()).parent / "vllm"), "serve", str(model), "--skip-tokenizer-init"]
        command += ["--dtype", "float32", "--enforce-eager", "--block-size", str(BLOCK_TOKENS)]
        command += ["--max-model-len", "8192", "--max-num-seqs", "4", "--num-gpu-blocks-override", "512"]
        command += ["--max-num-batched-tokens", "1024", "--no-enable-prefix-caching"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--kv-transfer-config", json.dumps(transfer)]
        variables = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self._log = model.parent / "server.log"
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                command, env={**environment(), **variables}, stdout=log, stderr=log, start_new_session=True
            )

    def ready(self) -> None:
        """Waits until the server answers."""
        until = time.monotonic() + START_SECONDS
        while True:
            assert self._child.poll() is None, f"the server ended:\n{self.log()}"
            assert time.monotonic() < until, f"the server did not come up:\n{self.log()}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)

    def first_token(self, model: Path, prompt: list[int]) -> tuple[float, list[int]]:
        """(seconds until the first token, the tokens) of a completion of one token."""
        body: dict[str, Any] = {"model": str(model), "prompt": prompt, "max_tokens": 1, "temperature": 0}
        body["return_token_ids"] = True
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        begun = time.perf_counter()
        with urllib.request.urlopen(request, timeout=300) as answer:
            choice = json.load(answer)["choices"][0]
        return time.perf_counter() - begun, choice["token_ids"]

    def log(self) -> str:
        """The end of the server's log."""
        return self._log.read_text(errors="replace")[-6_000:]

    def close(self) -> None:
        """Ends the server and the processes that it started."""
        self._child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on which prefill dominates."""
    return write_in(engine_python(), tmp_path_factory.mktemp("served") / "middle", "middle")


@pytest.fixture
def server(middle: Path) -> Iterator[tuple[Server, Node]]:
    node = Node({"engineApi": {"proof": "required"}, "dram": {"capacityBytes": 1 << 29, "slabBytes": 4 << 20}}).start()
    made = Server(middle, node.socket)
    try:
        made.ready()
        yield made, node
    finally:
        made.close()
        node.remove()


def test_a_warm_prompt_of_4096_tokens_has_its_first_token_five_times_sooner(
    server: tuple[Server, Node], middle: Path, chance: random.Random
) -> None:
    serving, node = server
    serving.first_token(middle, prompt_of(chance, 300))
    medians: dict[int, tuple[float, float]] = {}
    for tokens in LENGTHS:
        cold: list[float] = []
        warm: list[float] = []
        for _ in range(ROUNDS):
            prompt = prompt_of(chance, tokens)
            blocks = node.gauge("cairn_tier_visible_blocks") + tokens // BLOCK_TOKENS
            seconds, expected = serving.first_token(middle, prompt)
            cold.append(seconds)
            eventually("the prompt is stored", lambda least=blocks: node.gauge("cairn_tier_visible_blocks") >= least)
            seconds, found = serving.first_token(middle, prompt)
            warm.append(seconds)
            assert found == expected
        medians[tokens] = sorted(cold)[ROUNDS // 2], sorted(warm)[ROUNDS // 2]
        before, after = medians[tokens]
        say(f"{tokens} tokens: first token after {1e3 * before:.0f} ms cold, {1e3 * after:.0f} ms warm")
    before, after = medians[LENGTHS[-1]]
    say(f"{LENGTHS[-1]} tokens: {before / after:.1f} times sooner (bar {FASTER_MIN:.0f})")
