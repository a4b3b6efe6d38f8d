"""A real vLLM with the connector: what is loaded is what would have been computed, and no death of anybody is felt."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon import eventually
from node import Node

from cairn_kv.adapters.identity import STRIPES_PER_FILE, pieces_read, weights_fingerprint
from cairn_kv.verify.__main__ import write_in
from cairn_kv.verify.engine import GAP_MAX, environment
from engines import Engine, Output, difference, engine_python, prompt_of, same_bits, say, seeded

Start = Callable[..., Engine]
BLOCK_TOKENS = 32
#: Tokens that a random request is answered with.
ANSWER_TOKENS = 24


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    """What the engines of a test compute in."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def without(start_shared: Start, dtype: str) -> Iterator[Engine]:
    """An engine without the connector. Its step_tokens() is set by each test that has to know it."""
    engine = start_shared(dtype=dtype)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def asked(without: Engine) -> tuple[list[list[int]], list[Output]]:
    """200 random prompts with shared prefixes, and what an engine with room for all answers."""
    prompts = shared_prefixes(seeded(), 200)
    without.step_tokens(2_048)
    return prompts, without.generate(prompts, ANSWER_TOKENS)


def stored(engine: Engine, blocks: int) -> bool:
    """Whether the engine's connector had that many blocks acknowledged."""
    return engine.counters().get("stored_blocks", 0) >= blocks


def test_a_second_run_loads_what_the_first_computed_and_answers_bit_for_bit_the_same(
    without: Engine, node: Node, start: Start, chance: random.Random, dtype: str
) -> None:
    lengths, loaded = (700, 321, 64, 33), (672, 320, 32, 32)
    prompts = [prompt_of(chance, tokens) for tokens in lengths]
    engine = start(node, dtype=dtype)
    reference, cold = [], []
    for prompt, first_tokens in zip(prompts, loaded, strict=True):
        for runs, runner in ((reference, without), (cold, engine)):
            runner.step_tokens(first_tokens)
            runs.extend(runner.generate([prompt]))
    assert [output.cached for output in cold] == [0, 0, 0, 0]
    eventually("everything is stored", lambda: stored(engine, 21 + 10 + 2 + 1))
    warm = [engine.generate([prompt])[0] for prompt in prompts]
    assert tuple(output.cached for output in warm) == loaded
    assert same_bits(reference, cold)
    assert same_bits(reference, warm)
    assert engine.counters().get("failed_load_blocks", 0) == 0
    engine.zero_blocks()
    zeroed = [engine.generate([prompt])[0] for prompt in prompts]
    assert tuple(output.cached for output in zeroed) == loaded
    assert not any(same_bits([expected], [found]) for expected, found in zip(reference, zeroed, strict=True))
    assert zeroed[0].tokens != reference[0].tokens


def test_an_engine_that_starts_anew_finds_its_blocks_once_one_of_them_is_proven(
    node: Node, start: Start, chance: random.Random
) -> None:
    prompts = [prompt_of(chance, 400) for _ in range(2)]
    first = start(node)
    cold = [first.generate([prompt])[0] for prompt in prompts]
    eventually("everything is stored", lambda: stored(first, 24))
    first.close()
    second = start(node)
    proving = second.generate(prompts[:1])[0]
    assert proving.cached == 0
    assert proving.tokens == cold[0].tokens
    eventually(
        "the proof", lambda: second.generate([prompts[1][:40]]) is not None and second.counters().get("proofs", 0) == 1
    )
    again = [second.generate([prompt])[0] for prompt in prompts]
    assert [output.cached for output in again] == [384, 384]
    assert same_bits(cold, again)


def test_two_engines_share_one_daemon(node: Node, start: Start, chance: random.Random) -> None:
    prompt = prompt_of(chance, 500)
    one, two = start(node), start(node)
    cold = one.generate([prompt])[0]
    eventually("everything is stored", lambda: stored(one, 15))
    two.generate([prompt])  # Its proof of the other's blocks.
    eventually("the proof", lambda: two.generate([prompt[:40]]) is not None and two.counters().get("proofs", 0) == 1)
    warm = two.generate([prompt])[0]
    assert warm.cached == 480
    assert (warm.tokens, warm.logprobs) == (cold.tokens, cold.logprobs)
    own = prompt_of(chance, 500)
    two.generate([own])
    eventually("everything is stored", lambda: stored(two, 15))
    assert one.generate([own])[0].cached == 480


def test_what_an_engine_of_another_node_computed_is_fetched_while_the_request_waits(
    start: Start, chance: random.Random, tmp_path: Path
) -> None:
    remote = {"enabled": True, "kind": "directory", "directory": str(tmp_path), "chunkBytesMax": 65_536}
    settings: dict[str, dict[str, object]] = {"engineApi": {"proof": "required"}, "remote": remote}
    nodes = [Node(settings).start() for _ in range(2)]
    try:
        prompts = [prompt_of(chance, 500) for _ in range(2)]
        first = start(nodes[0])
        cold = [first.generate([prompt])[0] for prompt in prompts]
        eventually("everything is stored", lambda: stored(first, 30))
        eventually("what was stored is uploaded", lambda: uploads_done(nodes[0]))
        second = start(nodes[1], options={"remoteWaitMs": 30_000})
        assert second.generate(prompts[:1])[0].cached == 0, "blocks of another node are proven first"
        eventually(
            "the proof",
            lambda: second.generate([prompts[0][:40]]) is not None and second.counters().get("proofs", 0) == 1,
        )
        warm = second.generate(prompts[1:])[0]
        counters = second.counters()
        say(f"{warm.cached} of 500 tokens from another node, {counters['remote_seconds_sum']:.2f} s of waiting")
        assert warm.cached >= 384
        assert same_bits(cold[1:], [warm])
        assert counters["remote_blocks"] >= 2 * warm.cached // BLOCK_TOKENS
        unknown = second.generate([prompt_of(chance, 500)])[0]
        assert unknown.cached == 0
        assert second.counters()["remote_fetches"] == counters["remote_fetches"], "nobody has it: nothing is fetched"
    finally:
        for node in nodes:
            node.remove()


def uploads_done(node: Node) -> bool:
    """Whether there were uploads and none waits."""
    return node.gauge("cairn_uploaded_chunks_total") > 0 and node.gauge("cairn_remote_uploads_waiting") == 0


def test_a_daemon_killed_in_the_middle_fails_no_request_and_hits_come_back_with_it(
    node: Node, start: Start, chance: random.Random
) -> None:
    prompts = [prompt_of(chance, 300) for _ in range(24)]
    engine = start(node)
    reference = engine.generate(prompts, 16)
    eventually("everything is stored", lambda: stored(engine, 24 * 9))
    engine.begin(prompts, 16)
    time.sleep(chance.random() * 0.2)
    node.kill()
    outputs = engine.end()
    assert_same(reference, outputs)
    assert all(output.finish == "length" for output in outputs)
    assert_same(reference, engine.generate(prompts, 16))
    node.start()
    eventually("hits are back", lambda: engine.generate(prompts[:1])[0].cached > 0, 60)


def test_while_the_daemon_refuses_the_window_nothing_is_asked_offered_or_failed_and_then_all_is(
    start: Start, chance: random.Random
) -> None:
    def counted(engine: Engine) -> list[float]:
        names = ("lookups", "lookups_unavailable", "offered_blocks", "failed_load_requests")
        return [engine.counters().get(name, 0) for name in names]

    def stands_still(engine: Engine) -> bool:
        before = counted(engine)
        engine.generate([prompt_of(chance, 320)])
        return counted(engine) == before  # Without a daemon it would count what it could not ask.

    node = Node({"engineApi": {"windowBytesMax": 65_536}}).start()
    try:
        at_start = start(node).ready()
        eventually("the first engine asks no more", lambda: stands_still(at_start))
        node.stop()
        later = start(node).ready()
        node.start()
        # Its halves connect each on its own: the scheduler's may ask until the worker's has been refused.
        eventually("the other asks no more", lambda: stands_still(later))
        before = counted(later)
        later.generate([prompt_of(chance, 320) for _ in range(3)])
        assert counted(later) == before
        node.stop()
        node.configure({})
        node.start()

        def stores() -> bool:
            later.generate([prompt_of(chance, 320)])
            return stored(later, 10)

        eventually("the engine stores", stores)
        assert later.log().count("windowBudget") == 1, "the log says why, once"
    finally:
        node.remove()


def test_a_killed_engine_leaves_nothing_behind_in_the_daemon(node: Node, start: Start, chance: random.Random) -> None:
    engine = start(node)
    engine.generate([prompt_of(chance, 300)])
    assert node.gauge("cairn_regions") == 1
    engine.begin([prompt_of(chance, 1_500) for _ in range(8)], 64)
    time.sleep(0.5)
    os.kill(engine.pid, signal.SIGKILL)
    killed = time.monotonic()
    gauges = ("cairn_regions", "cairn_jobs", "cairn_leases", "cairn_connections")
    eventually("all is freed", lambda: all(node.gauge(name) == 0 for name in gauges), 5)
    milliseconds = 1e3 * (time.monotonic() - killed)
    say(f"a killed engine's regions, jobs and leases were freed after {milliseconds:.0f} ms (bar 1000)")


@pytest.mark.parametrize("block_tokens", [16, 32, 64])
def test_random_requests_with_shared_prefixes_and_preemption_answer_the_same(
    asked: tuple[list[list[int]], list[Output]], node: Node, start: Start, dtype: str, block_tokens: int
) -> None:
    # Loading, and preemption too, put a token into another batch, and another batch adds in another order: with two
    # threads that compute, bfloat16 log-probabilities move by up to .05 without any connector, and one step of such a
    # logit (.0625) is 600 times the gap that is excused. With one thread (`starter`) the CPU kernels add in one order
    # whatever the batch is; on the machine that this was written on every answer is equal to the bit, in both types.
    # What is asked is that tokens are equal, with the rule of `assert_same`; equal bits are counted and printed.
    prompts, reference = asked
    # So small that requests that run together push each other out.
    engine = start(node, dtype=dtype, blockTokens=block_tokens, stepTokensMax=512, blocks=2_048 // block_tokens + 8)
    cold = engine.generate(prompts, ANSWER_TOKENS)
    assert_same(reference, cold)
    warm = engine.generate(prompts, ANSWER_TOKENS)
    assert_same(reference, warm)
    counters = engine.counters()
    equal = sum(same_bits([expected], [found]) for expected, found in zip(2 * reference, cold + warm, strict=True))
    say(
        f"{dtype}, blocks of {block_tokens}: {2 * len(prompts)} requests, {equal} equal to the bit, "
        f"{counters.get('loaded_blocks', 0):.0f} blocks loaded, {counters.get('preempted_requests', 0):.0f} preemptions"
    )
    assert sum(output.cached for output in warm) > 0
    assert counters.get("preempted_requests", 0) > 0
    assert counters.get("failed_load_blocks", 0) == 0
    # Tokens tell wrong blocks apart: with zeros in one loaded block of twenty the same comparison fails.
    engine.zero_blocks(every=20)
    zeroed = engine.generate(prompts[:60], ANSWER_TOKENS)
    noticed = sum(gap >= GAP_MAX for _, _, gap in differing(reference[:60], zeroed))
    say(f"zeros in one loaded block of twenty: {noticed} of 60 requests answer otherwise")
    assert noticed > 0


def test_blocks_of_other_weights_under_the_same_name_are_hidden_by_a_failed_proof(
    node: Node, start: Start, chance: random.Random, tmp_path: Path
) -> None:
    model = write_in(engine_python(), tmp_path / "retrained", "deep")
    prompts = [prompt_of(chance, 300) for _ in range(3)]
    first = start(node, model)
    earlier = [first.generate([prompt])[0] for prompt in prompts]
    eventually("everything is stored", lambda: stored(first, 27))
    first.close()
    retrain(model / "model.safetensors")
    second, reference = start(node, model), start(None, model)
    expected = [reference.generate([prompt])[0] for prompt in prompts]
    assert [output.tokens for output in expected] != [output.tokens for output in earlier]
    assert same_bits(expected[:1], second.generate(prompts[:1]))
    eventually("the verdict", lambda: second.generate([prompts[0][:40]]) and second.counters().get("proofs_failed", 0))
    assert node.gauge("cairn_proof_failures_total") == 1
    cold = [second.generate([prompt])[0] for prompt in prompts[1:]]
    assert [output.cached for output in cold] == [0, 0], "what the other weights stored is not found any more"
    assert same_bits(expected[1:], cold)
    eventually("everything is stored", lambda: stored(second, 18))
    warm = [second.generate([prompt])[0] for prompt in prompts[1:]]
    assert [output.cached for output in warm] == [288, 288], "its own blocks are"
    assert [output.tokens for output in warm] == [output.tokens for output in expected[1:]]
    assert second.counters().get("proofs", 0) == 0


def test_the_operators_acceptance_test_passes_and_says_what_it_did(node: Node) -> None:
    command = [engine_python(), "-m", "cairn_kv.verify", "vllm", "--socket", node.socket, "--json"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["passed"], told["failure"]) == (0, True, None)
    assert [step["step"] for step in told["steps"]] == ["reference", "cold", "warm", "control"]


def retrain(weights: Path) -> None:
    """Turns the signs of numbers between the stripes of a file, which its fingerprint does not see."""
    fingerprint = weights_fingerprint(weights)
    content = bytearray(weights.read_bytes())
    pieces = pieces_read(len(content), STRIPES_PER_FILE)
    gaps = [range(left.stop + 3 & -4, right.start & -4) for left, right in itertools.pairwise(pieces)]
    assert sum(map(len, gaps)) > 1 << 20
    for gap in gaps:
        for at in range(gap.start + 3, gap.stop, 8):
            content[at] ^= 0x80
    weights.write_bytes(content)
    assert weights_fingerprint(weights) == fingerprint


def shared_prefixes(chance: random.Random, count: int) -> list[list[int]]:
    """Prompts that begin with one of a few prefixes of different lengths."""
    prefixes = [prompt_of(chance, tokens) for tokens in (96, 200, 480, 640)]
    return [chance.choice(prefixes) + prompt_of(chance, chance.randrange(1, 200)) for _ in range(count)]


def differing(reference: list[Output], outputs: list[Output]) -> list[tuple[int, int, float]]:
    """Requests whose tokens differ: (number, first such token, how far apart the reference's two best are there)."""
    assert len(reference) == len(outputs)
    pairs = enumerate(zip(reference, outputs, strict=True))
    found = [(number, difference(expected, output)) for number, (expected, output) in pairs]
    return [(number, *differs) for number, differs in found if differs is not None]


def assert_same(reference: list[Output], outputs: list[Output]) -> None:
    """Equal tokens, except from where the reference's two best are closer than rounding; each such place is printed."""
    for number, at, gap in differing(reference, outputs):
        say(f"request {number} differs from token {at} on, where the reference's two best are {gap:.2e} apart")
        assert gap < GAP_MAX, f"request {number}, token {at}: {reference[number].tokens} and {outputs[number].tokens}"
