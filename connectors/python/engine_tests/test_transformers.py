"""Real models of transformers with the adapter: what is restored is what would have been computed."""

from __future__ import annotations

import json
import queue
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import eventually
from node import Node

from cairn_kv.verify.engine import environment
from engines import engine_python, prompt_of

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "transformers_prefix.py"
JOB_SECONDS = 300.0
BLOCK_TOKENS = 32
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
#: Of transformers_process.py.
EDITS = ["merge", "next up", "negate a column", "swap rows", "buffer"]
LLAMA = {"model_type": "llama", **SMALL, "intermediate_size": 128, "num_key_value_heads": 2}


class Child:
    """A process with a model (transformers_process.py)."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._child = subprocess.Popen(
                [engine_python(), str(HERE / "transformers_process.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**environment(), "HF_HUB_OFFLINE": "1"},
                text=True,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def begin(self, job: str, **fields: Any) -> None:
        """Gives a job; end() waits for its answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"job": job, **fields}) + "\n")
        self._child.stdin.flush()

    def end(self) -> dict[str, Any]:
        """The answer of the oldest job that was begun."""
        line = self._lines.get(timeout=JOB_SECONDS)
        assert line, f"the process ended:\n{self._log.read_text(errors='replace')[-4_000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, job: str, **fields: Any) -> dict[str, Any]:
        """One job and its answer."""
        self.begin(job, **fields)
        return self.end()

    def compute(self, ids: list[int], first: int) -> tuple[int, dict[str, Any]]:
        """(tokens restored, logits) of a sequence, which is then saved."""
        restored = self.do("restore", ids=ids)["tokens"]
        found = self.do("forward", ids=ids, first=first)
        self.do("save", ids=ids)
        return restored, found

    def reference(self, ids: list[int], first: int) -> dict[str, Any]:
        """The logits of a sequence computed in the same pieces without the daemon."""
        self.do("plain")
        return self.do("forward", ids=ids, first=first)

    def close(self) -> None:
        """Ends the process."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(60)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join(10)
        self._child.stdout.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line)
        self._lines.put("")


Process = Callable[[], Child]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """Starts new processes; all of them end with the test."""
    children: list[Child] = []

    def make() -> Child:
        children.append(Child(tmp_path / f"child-{len(children)}.log"))
        return children[-1]

    yield make
    for child in children:
        child.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A process for all tests here, since each takes seconds to import torch."""
    child = Child(tmp_path_factory.mktemp("transformers") / "shared.log")
    yield child
    child.close()


@pytest.fixture
def child(shared: Child) -> Iterator[Child]:
    """The same, without what the test before left in it."""
    yield shared
    shared.do("forget")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_new_process_restores_what_another_stored_and_its_logits_are_equal_to_the_last_bit(
    node: Node, child: Child, process: Process, model: Path, chance: random.Random, dtype: str
) -> None:
    prompts = [prompt_of(chance, tokens) for tokens in (700, 321, 64, 33)]
    whole = [672, 320, 32, 32]
    first = child
    first.do("load", model=str(model), dtype=dtype)
    first.do("open", socket=node.socket)
    reference = [first.reference(prompt, tokens) for prompt, tokens in zip(prompts, whole, strict=True)]
    cold = [first.compute(prompt, tokens) for prompt, tokens in zip(prompts, whole, strict=True)]
    assert cold == [(0, logits) for logits in reference]
    first.do("close")
    second = process()
    second.do("load", model=str(model), dtype=dtype)
    second.do("open", socket=node.socket)
    assert second.compute(prompts[0], whole[0]) == (0, reference[0])
    assert second.do("counters")["proofs"] == 1
    warm = [second.compute(prompt, 0) for prompt in prompts]
    assert warm == list(zip(whole, reference, strict=True))
    other_dtype = "bfloat16" if dtype == "float32" else "float32"
    for load, options in (
        ({"model": str(model), "dtype": other_dtype}, {}),
        ({"config": LLAMA, "dtype": dtype}, {}),
        ({"model": str(model), "dtype": dtype}, {"cache_salt": "another"}),
        ({"model": str(model), "dtype": dtype}, {"block_tokens": 16}),
    ):
        second.do("load", **load)
        assert second.do("open", socket=node.socket, **options) == {"notServed": None}
        assert second.do("restore", ids=prompts[0])["tokens"] == 0
        counted = second.do("counters")
        assert (counted["lookups"], counted["failed_lookups"], counted["proofs"]) == (1, 0, 0)


def test_zeros_in_place_of_restored_blocks_are_noticed_by_the_comparison(
    node: Node, child: Child, model: Path, chance: random.Random
) -> None:
    prompt = prompt_of(chance, 700)
    child.do("load", model=str(model))
    child.do("open", socket=node.socket)
    _, reference = child.compute(prompt, 672)
    assert child.compute(prompt, 0) == (672, reference)
    child.do("zero_blocks")
    restored, spoiled = child.compute(prompt, 0)
    assert restored == 672
    assert spoiled["logits"] != reference["logits"]
    assert spoiled["best"] != reference["best"]
    # A window registered now is refused: the layout's proof runs the same code.
    assert "layout" in child.do("open", socket=node.socket)["notServed"]


def test_a_daemon_killed_in_the_middle_is_a_miss_and_hits_come_back_with_it(
    node: Node, child: Child, model: Path, chance: random.Random
) -> None:
    prompt, long = prompt_of(chance, 200), prompt_of(chance, 4_000)
    child.do("load", model=str(model))
    child.do("open", socket=node.socket)
    reference = child.reference(prompt, 192)
    long_reference = child.reference(long, 3_968)
    assert child.compute(prompt, 192) == (0, reference)
    assert child.compute(long, 3_968) == (0, long_reference)
    # While blocks arrive: whatever prefix had arrived, the best tokens are the same.
    child.begin("restore", ids=long)
    time.sleep(chance.random() * 0.02)
    node.kill()
    restored = child.end()["tokens"]
    assert restored in range(0, 3_969, BLOCK_TOKENS)
    assert child.do("forward", ids=long, first=0)["best"][-1] == long_reference["best"][-1]
    assert child.do("save", ids=long)["tokens"] == restored
    # Without a daemon.
    assert child.compute(prompt, 192) == (0, reference)
    node.start()
    # Restored from the daemon that came back, after one proof of what had survived in its pool.
    eventually("the proof", lambda: child.compute(prompt, 192)[0] == 192, 60)
    assert child.compute(prompt, 0) == (192, reference)
    assert child.do("counters")["proofs"] == 1
    assert child.compute(long, 3_968) == (3_968, long_reference)
    # Between restore and save: what was acknowledged may be gone with the daemon, and is stored again.
    longer = [*prompt, *prompt_of(chance, 100)]
    assert child.do("restore", ids=longer)["tokens"] == 192
    node.kill()
    child.do("forward", ids=longer, first=0)
    assert child.do("save", ids=longer)["tokens"] == 192
    node.start()
    eventually("the save", lambda: child.do("save", ids=longer)["tokens"] == 288, 60)
    # Opened without a daemon.
    node.kill()
    assert child.do("open", socket=node.socket) == {"notServed": None}
    assert child.compute(longer, 288)[0] == 0
    node.start()
    eventually("the proof", lambda: child.compute(longer, 288)[0] == 288, 60)


def test_blocks_of_other_weights_under_the_same_name_are_hidden_by_the_proof(
    node: Node, child: Child, model: Path, chance: random.Random
) -> None:
    prompt, own = prompt_of(chance, 200), prompt_of(chance, 200)
    child.do("load", model=str(model))
    child.do("open", socket=node.socket, weights="the same")
    theirs = child.compute(prompt, 192)
    child.do("load", model=str(model))
    child.do("disturb", by=0.2)
    child.do("open", socket=node.socket, weights="the same")
    reference = child.reference(prompt, 192)
    assert reference != theirs[1]
    assert child.compute(prompt, 192) == (0, reference)
    counted = child.do("counters")
    assert (counted["proofs"], counted["proofs_failed"]) == (0, 1)
    assert sum("differs" in text for text in child.do("log")["texts"]) == 1
    # From here on it has a namespace of its own.
    assert child.compute(prompt, 0) == (192, reference)
    child.compute(own, 192)
    assert child.do("restore", ids=own)["tokens"] == 192
    # Whoever computes the first blocks still finds them.
    child.do("load", model=str(model))
    child.do("open", socket=node.socket, weights="the same")
    assert child.compute(prompt, 192) == theirs
    assert child.compute(prompt, 0) == (192, theirs[1])


def test_a_cache_that_is_copied_or_cropped_goes_on_with_other_tokens(
    node: Node, child: Child, model: Path, chance: random.Random
) -> None:
    prompt = prompt_of(chance, 97)
    one, two, three = ([*prompt, *prompt_of(chance, 63)] for _ in range(3))
    child.do("load", model=str(model))
    child.do("open", socket=node.socket)
    child.compute(prompt, 96)
    assert child.do("restore", ids=one)["tokens"] == 96
    for ids, copies in ((one, True), (two, True), (three, False)):
        if copies:
            child.do("copy")
        child.do("crop", tokens=0 if ids is one else 63)
        child.do("forward", ids=ids, first=0)
        assert child.do("save", ids=ids)["tokens"] == 160
    assert "not those" in child.do("save", ids=one)["error"]
    for ids in (one, two, three):
        assert child.do("restore", ids=[*ids, 7])["tokens"] == 160


def test_generating_over_several_turns_and_processes_gives_the_tokens_of_plain_generation(
    node: Node, child: Child, process: Process, model: Path, chance: random.Random
) -> None:
    children = [child, process()]
    for one in children:
        one.do("load", model=str(model))
        one.do("open", socket=node.socket)
    ids = prompt_of(chance, 100)
    for turn in range(4):
        one = children[turn % 2]
        answer = one.do("generate", ids=ids, max_new_tokens=40)["tokens"][0]
        assert answer == one.do("generate", ids=ids, plain=True, max_new_tokens=40)["tokens"][0]
        ids += [*answer, *prompt_of(chance, 20)]
    one, two = (each.do("counters") for each in children)
    # The second process proves a block in its first turn; the first one's blocks need no proof by itself,
    # and afterwards each finds what the other stored: 3 blocks of the first prompt, 2 more with each turn's answer.
    assert two["proofs"] == 1
    assert one["loaded_blocks"] + two["loaded_blocks"] > 10
    assert one["failed_load_blocks"] + two["failed_load_blocks"] == 0


def test_models_of_many_kinds_are_restored_bit_for_bit_and_others_store_nothing_and_say_so_once(
    node: Node, child: Child, chance: random.Random
) -> None:
    prompt = prompt_of(chance, 200)
    served = [
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512},
        {"model_type": "qwen3", **LLAMA_LIKE, "head_dim": 16},
        {"model_type": "mixtral", **LLAMA_LIKE, "num_local_experts": 4},
        {"model_type": "deepseek_v3", **LLAMA_LIKE, **DEEPSEEK},
    ]
    for config in served:
        child.do("load", config=config)
        assert child.do("open", socket=node.socket) == {"notServed": None}
        reference = child.reference(prompt, 192)
        assert child.compute(prompt, 192) == (0, reference), config
        assert child.compute(prompt, 0) == (192, reference), config
    rotary = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    others = [
        ({"model_type": "mistral", **LLAMA_LIKE, "sliding_window": 64}, "DynamicSlidingWindowLayer"),
        ({**LLAMA, "rope_parameters": rotary}, "depend on the length"),
        ({"model_type": "bert", **SMALL, "intermediate_size": 128}, "depend on the tokens after"),
    ]
    for config, why in others:
        said = len(child.do("log")["texts"])
        child.do("load", config=config)
        assert why in child.do("open", socket=node.socket)["notServed"], config
        assert child.do("restore", ids=prompt)["tokens"] == 0
        assert child.do("save", ids=prompt)["tokens"] == 0
        texts = child.do("log")["texts"][said:]
        assert len(texts) == 1
        assert why in texts[0]
        assert child.do("counters") == {}


LLAMA_LIKE = {**SMALL, "intermediate_size": 128, "num_key_value_heads": 2}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}


def test_what_the_keys_do_not_name_is_computed_without_the_daemon_and_said_once(
    node: Node, child: Child, model: Path, chance: random.Random
) -> None:
    prompts = [prompt_of(chance, 100) for _ in range(2)]
    child.do("load", model=str(model))
    child.do("open", socket=node.socket)
    child.compute(prompts[0], 96)
    for options in ({"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}, {}):
        ids = prompts if not options else prompts[:1]
        for _ in range(2):
            assert child.do("generate", ids=ids, **options) == child.do("generate", ids=ids, plain=True, **options)
    assert child.do("restore", ids=prompts)["tokens"] == 0
    assert child.do("counters")["lookups"] == 1
    assert len(child.do("log")["texts"]) == 5
    for how in ("training", "hook", "attention", "weights", "buffer"):
        child.do("load", model=str(model))
        child.do("open", socket=node.socket, weights=how)
        child.compute(prompts[0], 96)
        assert child.do("restore", ids=prompts[0])["tokens"] == 96
        said = len(child.do("log")["texts"])
        child.do("spoil", how=how)
        for _ in range(2):
            assert child.do("restore", ids=prompts[0])["tokens"] == 0
            child.do("forward", ids=prompts[0], first=0)
            assert child.do("save", ids=prompts[0])["tokens"] == 0
        assert len(child.do("log")["texts"]) == said + 1, how
        assert child.do("counters")["lookups"] == 2


@pytest.mark.parametrize("how", EDITS)
def test_weights_that_are_written_to_through_their_data_are_noticed_and_a_new_store_serves_those_that_are_put_back(
    node: Node, child: Child, model: Path, chance: random.Random, how: str
) -> None:
    prompt, other = prompt_of(chance, 100), prompt_of(chance, 100)
    child.do("load", model=str(model))
    child.do("open", socket=node.socket)
    child.compute(prompt, 96)
    assert child.do("restore", ids=prompt)["tokens"] == 96
    assert child.do("edit", how=how) == {"changed": True}
    for _ in range(2):
        assert child.do("restore", ids=prompt)["tokens"] == 0
        child.do("forward", ids=prompt, first=0)
        assert child.do("save", ids=prompt)["tokens"] == 0
    child.do("restore", ids=other)
    child.do("forward", ids=other, first=0)
    assert child.do("save", ids=other)["tokens"] == 0
    texts = child.do("log")["texts"]
    assert len(texts) == 1
    assert "weights have changed" in texts[0]
    # The cache at hand still holds what the other weights computed.
    child.do("put_back")
    assert child.do("save", ids=other)["tokens"] == 0
    child.do("open", socket=node.socket)
    child.compute(prompt, 96)
    assert child.do("restore", ids=prompt)["tokens"] == 96
    assert child.do("restore", ids=other)["tokens"] == 0
    assert child.do("counters")["proofs_failed"] == 0


def test_a_digest_is_the_same_wherever_numbers_lie_and_in_whatever_pieces_and_another_with_each_edit(
    child: Child,
) -> None:
    # An embedding of 2.5 MB: two whole pieces, and one that is not.
    child.do("load", config={**LLAMA, "vocab_size": 20_001}, dtype="bfloat16")
    digest = child.do("digest")
    assert child.do("digest", pieces=32) == digest
    child.do("shift")
    assert child.do("digest") == digest
    found = [digest]
    for how in EDITS:
        child.do("edit", how=how)
        found.append(child.do("digest"))
        assert child.do("digest", pieces=32) == found[-1]
        child.do("put_back")
        assert child.do("digest") == digest
    assert len({str(one) for one in found}) == 1 + len(EDITS)


def test_weights_are_read_only_before_something_is_used_or_stored_and_never_where_the_caller_named_them(
    node: Node, child: Child, model: Path, chance: random.Random
) -> None:
    prompt, later = prompt_of(chance, 100), prompt_of(chance, 100)
    child.do("load", model=str(model))
    child.do("open", socket=node.socket)

    def read() -> int:
        return int(child.do("counters")["weights_read"])

    assert child.do("restore", ids=prompt)["tokens"] == 0
    assert read() == 0
    child.do("forward", ids=prompt, first=0)
    assert child.do("save", ids=prompt)["tokens"] == 96
    assert read() == 1
    assert child.do("save", ids=prompt)["tokens"] == 96
    assert read() == 1
    assert child.do("restore", ids=prompt)["tokens"] == 96
    assert read() == 2
    node.kill()
    child.compute(later, 96)
    assert read() == 2
    node.start()
    child.do("open", socket=node.socket, weights="vouched for")
    child.compute(prompt, 96)
    child.do("edit", how="merge")
    assert child.do("restore", ids=prompt)["tokens"] == 96
    assert read() == 0


def test_the_example_restores_a_common_beginning_in_its_own_run_and_in_later_ones(node: Node) -> None:
    runs = [
        subprocess.run(
            [engine_python(), str(EXAMPLE), "--socket", node.socket],
            env={**environment(), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=JOB_SECONDS,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    # Its own answers differ in their last 20 tokens and so find the common beginning, and no more.
    restored = ["0 of 276 tokens", "256 of 276 tokens", "256 of 276 tokens"]
    for proofs, run in enumerate(runs):
        lines = run.splitlines()
        assert [line.split(": ")[1].split(" restored")[0] for line in lines[:3]] == restored
        assert lines[3] == f"proofs: {proofs}"
