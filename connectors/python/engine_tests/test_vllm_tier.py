"""A real vLLM with its own tiering and the daemon as its second tier: what comes back is what was computed."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon import eventually
from node import Node

from engines import Engine, Output, prompt_of, same_bits

Start = Callable[..., Engine]
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "vllm_tier.json"
BLOCK_TOKENS = 32
#: A chunk of the tiny model: two layers of 2 · 2 heads · 32 tokens · 32 numbers of 4 bytes.
CHUNK_BYTES = 2 * 2 * 2 * 32 * 32 * 4
#: The engine's CPU tier: two of the prompts below, so that a third one evicts the first.
CPU_CHUNKS = 30
PROMPT_TOKENS = 400
PROMPT_CHUNKS = PROMPT_TOKENS // BLOCK_TOKENS


def tiering(node: Node, **options: Any) -> dict[str, Any]:
    """The example's configuration, with this test's daemon, a small CPU tier and a worker that needs no GPU."""
    transfer: dict[str, Any] = json.loads(EXAMPLE.read_text())
    extra = transfer["kv_connector_extra_config"]
    extra |= {"spec_name": "CpuTieringSpec", "spec_module_path": "cpu_tiering"}
    extra["cpu_bytes_to_use"] = CPU_CHUNKS * CHUNK_BYTES
    extra["secondary_tiers"][0] |= {"socket": node.socket, "lookupTimeoutMs": 5_000, **options}
    return transfer


@pytest.fixture
def tiered(node: Node, start: Start, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Starts engines with a tier of this test's daemon."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return lambda **options: start(None, transfer=tiering(node, **options))


def run(engine: Engine, prompts: list[list[int]]) -> list[Output]:
    """Each prompt by itself, all computed in pieces of whole chunks, so that sums are equal to the bit."""
    outputs = []
    for prompt in prompts:
        engine.step_tokens(PROMPT_CHUNKS * BLOCK_TOKENS)
        outputs += engine.generate([prompt])
    return outputs


def stored(engine: Engine, chunks: int) -> None:
    """Waits until the daemon has acknowledged that many chunks; the engine looks for results when it steps."""
    eventually("everything is stored", lambda: engine.counters().get("stored_blocks", 0) >= chunks)


def test_what_the_engines_own_tier_evicted_comes_back_bit_for_bit_and_zeros_in_its_place_are_noticed(
    tiered: Callable[..., Engine], chance: random.Random
) -> None:
    prompts = [prompt_of(chance, PROMPT_TOKENS) for _ in range(4)]
    # Options of another version are no reason not to start, and the engine's detector has to be taken.
    detector = {"backpressure_cls": "EMABackpressureDetector"}
    engine = tiered(locality="LOCAL", optionOfAnotherVersion=1, backpressure=detector)
    cold = run(engine, prompts)
    assert [output.cached for output in cold] == [0] * 4
    stored(engine, 4 * PROMPT_CHUNKS)
    warm = run(engine, prompts)
    assert [output.cached for output in warm] == [PROMPT_CHUNKS * BLOCK_TOKENS] * 4
    assert same_bits(cold, warm)
    counters = engine.counters()
    assert counters["loaded_blocks"] >= 4 * PROMPT_CHUNKS - CPU_CHUNKS
    assert counters.get("failed_load_blocks", 0) == 0
    engine.zero_blocks()
    zeroed = run(engine, prompts[:1])[0]
    assert zeroed.cached == PROMPT_CHUNKS * BLOCK_TOKENS
    assert zeroed.tokens != cold[0].tokens
    assert zeroed.logprobs != cold[0].logprobs
    engine.reset_cache()
    counted = engine.counters()
    assert [output.cached for output in run(engine, prompts)] == [0] * 4, "the weights may be others now"
    assert engine.counters() == counted
    engine.close()
    _, told, afterwards = engine.log().rpartition("the cache was reset")
    assert told
    assert "Traceback" not in afterwards, "the engine lets its CPU tier go, which nothing of ours holds on to"


def test_an_engine_that_starts_anew_finds_its_chunks_once_one_of_them_is_proven(
    tiered: Callable[..., Engine], chance: random.Random
) -> None:
    prompts = [prompt_of(chance, PROMPT_TOKENS) for _ in range(4)]
    first = tiered()
    cold = run(first, prompts)
    stored(first, 4 * PROMPT_CHUNKS)
    first.close()
    second = tiered()
    proving = run(second, prompts[:1])[0]
    assert proving.cached == 0
    eventually("the proof", lambda: second.counters().get("proofs", 0) == 1)
    again = run(second, prompts[1:])
    assert [output.cached for output in again] == [PROMPT_CHUNKS * BLOCK_TOKENS] * 3
    assert same_bits(cold, [proving, *again])


def test_a_daemon_killed_in_the_middle_fails_no_request_and_hits_come_back_with_it(
    tiered: Callable[..., Engine], node: Node, chance: random.Random
) -> None:
    prompts = [prompt_of(chance, PROMPT_TOKENS) for _ in range(12)]
    engine = tiered()
    cold = run(engine, prompts)
    stored(engine, 12 * PROMPT_CHUNKS)
    engine.begin(prompts, 8)
    time.sleep(chance.random() * 0.2)
    node.kill()
    assert [output.finish for output in engine.end()] == ["length"] * 12
    without = run(engine, prompts)
    assert [output.tokens for output in without] == [output.tokens for output in cold]
    node.start()

    def back() -> bool:
        outputs = run(engine, prompts)
        assert [output.tokens for output in outputs] == [output.tokens for output in cold]
        return all(output.cached > 0 for output in outputs)

    eventually("hits are back", back, 300)
