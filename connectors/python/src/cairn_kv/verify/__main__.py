"""`python -m cairn_kv.verify vllm`: runs a tiny model with and without the daemon and compares, to the bit.

Run it after each upgrade of the engine, of cairn or of the machine. It writes a model itself, starts the engine
without the connector for the reference, then with it (cold), and again in a new process (which has to prove a block
first, then loads). Prints one line per step and ends with `pass`, or with the first difference and exit status 1.
Loaded blocks that are turned to zeros on purpose must be noticed, or the comparison itself is worth nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cairn_kv import default_socket

from .engine import Engine, Output, difference, same_bits

SEED = 7
LENGTHS = (700, 321, 64)
#: Tokens that the second process loads of each prompt: whole blocks, but for the last token.
LOADED = (672, 320, 32)
WAIT_SECONDS = 60.0


class Failed(Exception):
    """The first thing that is not as it should be."""


def main() -> int:
    """Parses the command line and runs it."""
    parser = argparse.ArgumentParser(prog="cairn_kv.verify", description="Compares an engine with and without cairn.")
    parser.add_argument("engine", choices=["vllm"])
    parser.add_argument("--socket", help="the daemon's socket (default: its default place)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that the engine is installed for")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="one JSON object at the end instead of lines")
    options = parser.parse_args()
    steps: list[dict[str, Any]] = []

    def tell(step: str, **facts: Any) -> None:
        steps.append({"step": step, **facts})
        if not options.json:
            print(f"{step}: " + ", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)

    failure = None
    with tempfile.TemporaryDirectory(prefix="cairn-verify-") as directory:
        try:
            verify(options, Path(directory), tell)
        except (Failed, AssertionError) as error:
            failure = str(error)
    if options.json:
        print(json.dumps({"passed": failure is None, "failure": failure, "steps": steps}))
    else:
        print("pass" if failure is None else f"FAILED: {failure}")
    return 0 if failure is None else 1


def verify(options: argparse.Namespace, directory: Path, tell: Any) -> None:
    """Runs the steps; raises Failed at the first that is not as it should be."""
    address = options.socket or default_socket()
    reach(address)
    model = write_in(options.python, directory / "tiny")
    chance = random.Random(SEED)  # noqa: S311 (prompts, no secret)
    prompts = [[chance.randrange(3, 500) for _ in range(length)] for length in LENGTHS]
    connector = {"lookupTimeoutMs": 5_000, "socket": address}
    settings = {"dtype": options.dtype}
    reference = run(Engine(options.python, model, None, **settings), prompts)
    tell("reference", prompts=len(prompts))
    engine = Engine(options.python, model, connector, **settings)
    try:
        cold = in_pieces(engine, prompts)
        compare("with the connector, nothing stored yet", reference, cold)
        wait_for(engine, "stored_blocks", sum(length // 32 for length in LENGTHS), "the daemon stores nothing")
    finally:
        engine.close()
    tell("cold", equal=True)
    engine = Engine(options.python, model, connector, **settings)
    try:
        in_pieces(engine, prompts[:1])
        wait_for(engine, "proofs", 1, "the stored blocks were not found, or not proven", prompts[0][:40])
        warm = [engine.generate([prompt])[0] for prompt in prompts]
        found = tuple(output.cached for output in warm)
        if found != LOADED:
            raise Failed(f"a new process loads {found} tokens of its prompts; {LOADED} are stored")
        compare("with blocks that another process stored", reference, warm)
        tell("warm", loaded_tokens=sum(found), equal=True)
        engine.zero_blocks()
        if same_bits(reference, [engine.generate([prompt])[0] for prompt in prompts]):
            raise Failed("zeros in place of the blocks changed nothing: this comparison cannot fail")
        tell("control", zeros="noticed")
    finally:
        engine.close()


def reach(address: str) -> None:
    """Raises Failed if nobody listens at the daemon's socket, or this user may not connect."""
    with socket.socket(socket.AF_UNIX) as stream:
        try:
            stream.connect(address)
        except OSError as error:
            raise Failed(f"no daemon can be reached at {address}: {error.strerror or error}") from error


def write_in(python: str, directory: Path, shape: str = "tiny") -> Path:
    """Writes a model of one of `model.SHAPES` with the engine's own libraries."""
    import subprocess

    from .engine import environment

    code = (
        "import sys, pathlib; from cairn_kv.verify.model import SHAPES, write_model;"
        "write_model(pathlib.Path(sys.argv[1]), SHAPES[sys.argv[2]])"
    )
    command = [python, "-c", code, str(directory), shape]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise Failed(f"{python} cannot write a model: {ended.stderr.strip()[-400:]}")
    return directory


def run(engine: Engine, prompts: list[list[int]]) -> list[Output]:
    """One engine's answers; it ends with them."""
    try:
        return in_pieces(engine, prompts)
    finally:
        engine.close()


def in_pieces(engine: Engine, prompts: list[list[int]]) -> list[Output]:
    """Computes each prompt in the pieces that a later load leaves: what is loaded, then the rest."""
    outputs: list[Output] = []
    for prompt, loaded in zip(prompts, LOADED, strict=False):
        engine.step_tokens(loaded)
        outputs += engine.generate([prompt])
    return outputs


def compare(what: str, reference: list[Output], outputs: list[Output]) -> None:
    """Raises Failed with the first difference."""
    for number, (expected, found) in enumerate(zip(reference, outputs, strict=True)):
        if same_bits([expected], [found]):
            continue
        place = difference(expected, found)
        where = "the same tokens with other log-probabilities" if place is None else f"token {place[0]}"
        raise Failed(f"{what}: prompt {number} differs ({where})")


def wait_for(engine: Engine, counter: str, least: int, failure: str, poke: list[int] | None = None) -> None:
    """Until a counter of the connector has come that far. ``poke``: a prompt that makes the engine step."""
    until = time.monotonic() + WAIT_SECONDS
    while engine.counters().get(counter, 0) < least:
        if time.monotonic() > until:
            raise Failed(failure)
        if poke is not None:
            engine.generate([poke])
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
