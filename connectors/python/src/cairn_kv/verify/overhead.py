"""What the connector costs an engine that finds nothing: `python -m cairn_kv.verify.overhead --socket …`.

Two engines run the same fresh prompts in turn, one without the connector, one with it: every look-up is a miss and
every block is stored. The connector adds up the time inside its hooks, which is time that the engine's step waits; its
share of the steps is the figure. Throughput of both stands beside it: copying beside the steps takes memory bandwidth
and, where the engine computes on the CPU, a share of the cores.

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .__main__ import write_in
from .engine import Engine

STEP_TOKENS = 512
PROMPTS = 16


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="cairn_kv.verify.overhead", description="The connector's share of a step.")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cairn-overhead-") as directory:
        model = write_in(sys.executable, Path(directory) / "middle", "middle")
        print(json.dumps(measure(model, options.socket, options.repetitions)))


def measure(model: Path, socket: str, repetitions: int) -> dict[str, Any]:
    """Interleaved pairs; seconds per step, share of hooks, throughput with the connector by that without."""
    settings = {"stepTokensMax": STEP_TOKENS, "blocks": 512, "sequencesMax": 4}
    engines = [Engine(sys.executable, model, connector, **settings) for connector in (None, {"socket": socket})]
    chance = random.Random(1)  # noqa: S311 (prompts, no secret)
    shares: list[float] = []
    ratios: list[float] = []
    steps: list[float] = []
    try:
        for engine in engines:
            engine.generate(fresh(chance), 1)
        for _ in range(repetitions):
            prompts = fresh(chance)
            seconds = []
            hooks = engines[1].counters()["hook_nanoseconds"]
            for engine in engines:
                begun = time.perf_counter()
                engine.generate(prompts, 1)
                seconds.append(time.perf_counter() - begun)
            hooks = engines[1].counters()["hook_nanoseconds"] - hooks
            shares.append(hooks / 1e9 / seconds[1])
            ratios.append(seconds[0] / seconds[1])
            steps.append(seconds[1] / PROMPTS)
        counters = engines[1].counters()
    finally:
        for engine in engines:
            engine.close()
    return {
        "stepTokens": STEP_TOKENS,
        "stepSeconds": statistics.median(steps),
        "hookShares": shares,
        "throughputRatios": ratios,
        "storedBlocks": counters.get("stored_blocks", 0),
        "hitBlocks": counters.get("hit_blocks", 0),
        "shedBlocks": counters.get("shed_blocks", 0),
    }


def fresh(chance: random.Random) -> list[list[int]]:
    """Prompts of one step each that nobody has seen."""
    return [[chance.randrange(3, 500) for _ in range(STEP_TOKENS)] for _ in range(PROMPTS)]


if __name__ == "__main__":
    main()
