"""SGLang's own HiCache threads, loader and host pools with the backend: what is read was written, or nothing is."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon import eventually
from node import Node
from sglang_rank import PAGE_TOKENS, ROW_BYTES, Engine, Rank, RankRefused

Open = Callable[..., Rank]
MISS = {"hit": 0, "completed": 0, "right": 0, "wrong": 0, "untouched": 0}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The engine's modules."""
    own = Engine()
    yield own
    own.close()


@pytest.fixture
def open_rank(engine: Engine, node: Node) -> Iterator[Open]:
    """Starts ranks; all of them end with the test."""
    ranks: list[Rank] = []

    def make(**settings: object) -> Rank:
        ranks.append(Rank(engine, node.socket, **settings))  # type: ignore[arg-type]
        return ranks[-1]

    yield make
    for rank in ranks:
        rank.close()


@pytest.fixture
def tokens(chance: random.Random) -> list[int]:
    """A prompt of 40 pages."""
    return prompt(chance, 40)


def prompt(chance: random.Random, pages: int) -> list[int]:
    """Random tokens."""
    return [chance.randrange(50_000) for _ in range(pages * PAGE_TOKENS)]


def all_of(pages: int) -> dict[str, int]:
    """A prefetch that brought everything."""
    return {"hit": pages, "completed": pages, "right": pages, "wrong": 0, "untouched": 0}


@pytest.mark.parametrize(
    ("pool", "layout", "dtype"),
    [
        ("mha", "page_first", "float32"),
        ("mha", "page_first_direct", "bfloat16"),
        ("mha", "layer_first", "float32"),
        ("mla", "page_first", "bfloat16"),
        ("mla", "page_first_direct", "float32"),
        ("mla", "layer_first", "float16"),
    ],
)
def test_what_was_written_is_read_in_every_layout_and_through_both_interfaces(
    open_rank: Open, tokens: list[int], pool: str, layout: str, dtype: str
) -> None:
    for interface in (1, 0):
        rank = open_rank(pool=pool, layout=layout, dtype=dtype, options={"interface_v1": interface})
        assert rank.prefetch(tokens) == MISS
        assert rank.backup(tokens) == 40
        assert rank.prefetch(tokens) == all_of(40)
        assert rank.prefetch(tokens, weights=1)["wrong"] == 40, "other bytes would be noticed here"
        state = rank.state()
        assert state["isSubclass"], "the engine's loader built it"
        assert state["alive"]
        assert state["layout"]["layout"] == layout
        assert state["counters"]["faults"] == 0
        assert state["counters"]["loaded_pages"] == 80
        rank.close()


def test_a_prompt_longer_than_the_engines_batch_and_than_the_window_is_written_and_read(
    open_rank: Open, chance: random.Random
) -> None:
    long = prompt(chance, 300)
    rank = open_rank(options={"windowBytes": 65_536})
    assert 65_536 // ROW_BYTES // 4 < 300, "several pieces"
    assert rank.backup(long) == 300
    assert rank.prefetch(long) == all_of(300)
    assert rank.state()["counters"]["faults"] == 0


@pytest.mark.parametrize("pass_prefix_keys", [True, False])
def test_a_tail_is_found_behind_pages_that_the_engine_has_itself(
    open_rank: Open, chance: random.Random, tokens: list[int], *, pass_prefix_keys: bool
) -> None:
    # In a read the engine's prefix_keys lack the pages of the node that is continued, and at the root they are None.
    rank = open_rank(options={"hicache_storage_pass_prefix_keys": pass_prefix_keys})
    assert rank.backup(tokens) == 40
    longer = tokens + prompt(chance, 20)
    assert rank.backup(longer, **{"from": 40}) == 20
    assert rank.prefetch(longer, **{"from": 25}, lastNodePages=10) == all_of(35)
    assert rank.prefetch(longer, **{"from": 40}, lastNodePages=40) == all_of(20)
    assert rank.prefetch(longer) == all_of(60)
    other = tokens[: 30 * PAGE_TOKENS] + prompt(chance, 10)
    found = rank.prefetch(other)
    assert (found["hit"], found["wrong"]) == (30, 0)


def test_an_engine_that_starts_anew_finds_pages_once_one_is_proven_by_being_written_again(
    open_rank: Open, chance: random.Random, tokens: list[int]
) -> None:
    first = open_rank(dtype="bfloat16")
    others = prompt(chance, 30)
    assert (first.backup(tokens), first.backup(others)) == (40, 30)
    first.close()
    second = open_rank(dtype="bfloat16")
    assert second.prefetch(others) == MISS, "not before the proof"
    # The prompt is computed in other pieces now: the same up to rounding.
    assert second.backup(tokens, rounding=0.004) == 40
    counters = second.state()["counters"]
    assert (counters["proofs"], counters["proofs_failed"], counters["present_pages"]) == (1, 0, 40)
    assert second.prefetch(others) == all_of(30)


def test_pages_of_other_weights_under_the_same_name_are_never_read(open_rank: Open, tokens: list[int]) -> None:
    first = open_rank()
    assert first.backup(tokens) == 40
    first.close()
    second = open_rank()
    assert second.prefetch(tokens, weights=1)["hit"] == 0
    assert second.backup(tokens, weights=1) == 40
    counters = second.state()["counters"]
    assert (counters["proofs"], counters["proofs_failed"], counters["present_pages"]) == (0, 1, 0)
    assert second.prefetch(tokens, weights=1) == all_of(40)


def test_eight_bit_pages_are_proven_by_their_direction_for_one_step_of_them_is_an_eighth_of_the_value(
    open_rank: Open, tokens: list[int]
) -> None:
    arguments = {"model_path": "/nowhere", "kv_cache_dtype": "fp8_e4m3", "revision": "main", "quantization": None}
    settings = {"dtype": "uint8", "arguments": arguments}
    first = open_rank(**settings)
    assert first.state()["revision"] == {
        "model_path": "/nowhere",
        "kv_cache_dtype": "fp8_e4m3",
        "revision": "main",
        "weights": "",
    }, "the engine's own arguments are in the identity"
    assert first.backup(tokens) == 40
    first.close()
    second = open_rank(**settings)
    assert second.backup(tokens, rounding=0.01) == 40
    assert second.prefetch(tokens) == all_of(40)
    second.close()
    third = open_rank(**settings)
    assert third.backup(tokens, weights=1) == 40
    assert third.prefetch(tokens, weights=1) == all_of(40)
    counters = third.state()["counters"]
    assert (counters["proofs"], counters["proofs_failed"]) == (0, 1)


def test_two_engines_share_one_daemon_once_each_has_proven_a_page_of_the_others(
    open_rank: Open, chance: random.Random, tokens: list[int]
) -> None:
    one, two = open_rank(ownLaunch=True), open_rank(ownLaunch=True)
    assert one.state()["engineId"] != two.state()["engineId"]
    assert one.backup(tokens) == 40
    assert two.prefetch(tokens) == MISS, "nobody has proven anything to it"
    assert two.backup(tokens[: 8 * PAGE_TOKENS]) == 8
    assert two.state()["counters"]["proofs"] == 1
    assert two.prefetch(tokens) == all_of(40)
    own = prompt(chance, 20)
    assert two.backup(own) == 20
    assert one.prefetch(own) == all_of(20), "what a proven engine stores needs no further proof"


def test_each_tensor_parallel_rank_has_its_own_pages(open_rank: Open, tokens: list[int]) -> None:
    ranks = [open_rank(tpRank=rank, tpSize=2) for rank in range(2)]
    for rank in ranks:
        assert rank.prefetch(tokens)["hit"] == 0
    assert ranks[0].backup(tokens, weights=10) == 40
    # The engine goes on with the least of the ranks' answers.
    assert [rank.prefetch(tokens, weights=10)["hit"] for rank in ranks] == [40, 0]
    assert ranks[1].backup(tokens, weights=11) == 40
    for number, rank in enumerate(ranks):
        assert rank.prefetch(tokens, weights=10 + number) == all_of(40)


def test_with_mla_one_rank_writes_and_all_read_and_its_proof_holds_for_all(open_rank: Open, tokens: list[int]) -> None:
    before = open_rank(pool="mla", tpRank=0, tpSize=2)
    assert before.backup(tokens) == 40
    before.close()
    ranks = [open_rank(pool="mla", tpRank=rank, tpSize=2) for rank in range(2)]
    assert [rank.prefetch(tokens)["hit"] for rank in ranks] == [0, 0]
    assert [rank.backup(tokens) for rank in ranks] == [40, 0], "the engine lets rank 0 write"
    assert ranks[0].state()["engineId"] == ranks[1].state()["engineId"]
    for rank in ranks:
        assert rank.prefetch(tokens) == all_of(40)
    assert [rank.state()["counters"]["proofs"] for rank in ranks] == [1, 0]


OTHERS: tuple[dict[str, object], ...] = (
    {"model": "another-name"},
    {"layout": "page_first_direct"},
    {"dtype": "bfloat16", "headSize": 32},
    {"layers": 2, "headSize": 24},
    {"ppRank": 1, "ppSize": 2},
    {"tpRank": 1, "tpSize": 2},
)


def test_an_engine_that_differs_in_anything_finds_nothing(open_rank: Open, tokens: list[int]) -> None:
    one, *others = open_rank(), *(open_rank(**other) for other in OTHERS)
    assert one.backup(tokens) == 40
    for number, other in enumerate(others):
        assert other.prefetch(tokens) == MISS
        assert other.backup(tokens, weights=1 + number) == 40
    assert one.prefetch(tokens) == all_of(40)
    for number, other in enumerate(others):
        assert other.prefetch(tokens, weights=1 + number) == all_of(40)
    assert len({rank.state()["engineId"] for rank in (one, *others)}) == 1 + len(OTHERS)


def test_without_a_daemon_the_engine_starts_and_everything_is_a_miss_until_one_comes(
    node: Node, open_rank: Open, tokens: list[int]
) -> None:
    node.kill()
    rank = open_rank()
    assert rank.prefetch(tokens) == MISS
    assert rank.backup(tokens) == 0
    assert rank.state()["counters"]["unavailable"] == 2
    node.start()
    eventually("the daemon takes pages", lambda: rank.backup(tokens) == 40)
    assert rank.prefetch(tokens) == all_of(40)
    assert rank.state()["alive"]


def test_a_daemon_killed_between_query_and_read_is_a_miss_and_hits_come_back_with_it(
    node: Node, open_rank: Open, tokens: list[int]
) -> None:
    rank = open_rank()
    assert rank.backup(tokens) == 40
    assert rank.do("query", tokens=tokens) == {"hit": 40}
    node.kill()
    assert rank.do("transfer", tokens=tokens) == {"completed": 0, "right": 0, "wrong": 0, "untouched": 40}
    assert rank.prefetch(tokens) == MISS
    node.start()
    # The daemon kept its blocks; for it they are of an earlier life, and this engine has to prove one again.
    eventually("the proof", lambda: rank.backup(tokens) == 40 and rank.prefetch(tokens)["hit"] == 40)
    assert rank.prefetch(tokens) == all_of(40)
    state = rank.state()
    assert state["alive"]
    assert state["counters"]["proofs_failed"] == 0


def test_a_daemon_killed_while_pages_move_fails_nothing_and_corrupts_nothing(
    node: Node, open_rank: Open, chance: random.Random
) -> None:
    rank = open_rank(options={"windowBytes": 65_536})
    long = prompt(chance, 400)
    assert rank.backup(long) == 400
    rank.begin("prefetch", tokens=long)
    time.sleep(chance.random() * 0.03)
    node.kill()
    assert rank.end()["wrong"] == 0
    node.start()
    eventually("pages are taken again", lambda: rank.backup(long) == 400)
    assert rank.prefetch(long) == all_of(400)
    rank.begin("backup", tokens=prompt(chance, 400))
    time.sleep(chance.random() * 0.03)
    node.kill()
    rank.end()
    assert rank.state()["alive"]


def test_a_daemon_that_hangs_costs_a_bounded_time_and_no_thread(node: Node, open_rank: Open, tokens: list[int]) -> None:
    rank = open_rank(options={"lookupTimeoutMs": 300, "loadTimeoutMs": 300, "storeTimeoutMs": 300})
    assert rank.backup(tokens) == 40
    assert rank.do("query", tokens=tokens) == {"hit": 40}
    os.kill(node.pid, signal.SIGSTOP)
    try:
        lost = {"completed": 0, "right": 0, "wrong": 0, "untouched": 40}
        assert rank.do("transfer", tokens=tokens, keep=True) == lost
        kept = rank.do("untouched")
        assert rank.backup(tokens, weights=1) == 0
        assert rank.do("query", tokens=tokens) == {"hit": 0}
    finally:
        os.kill(node.pid, signal.SIGCONT)
    time.sleep(0.5)
    assert rank.do("untouched") == kept == {"pages": 40}, "no late write"
    # The daemon took the silence for this engine's end, so that one page is to be proven again.
    eventually("hits are back", lambda: rank.backup(tokens) == 40 and rank.prefetch(tokens) == all_of(40))
    assert rank.state()["alive"]


def test_a_page_damaged_in_the_daemons_memory_is_not_read_nor_those_behind_it(
    node: Node, open_rank: Open, tokens: list[int]
) -> None:
    rank = open_rank(options={"windowBytes": 65_536})  # Several pieces: the next is under way when this one fails.
    assert rank.backup(tokens) == 40
    damaged = damage(node, rank, tokens, 25)
    found = rank.prefetch(tokens)
    assert damaged == 1
    assert (found["completed"], found["right"], found["wrong"]) == (25, 25, 0)
    assert rank.state()["counters"]["load_pages_short"] == 15
    assert rank.prefetch(tokens)["completed"] == 25, "rows and leases of the pieces that were given up are free again"
    assert rank.prefetch(tokens[: 25 * PAGE_TOKENS]) == all_of(25)


def damage(node: Node, rank: Rank, tokens: list[int], page: int) -> int:
    """Flips a byte of one page where the daemon keeps it; how many copies there were."""
    content = bytes.fromhex(rank.do("content", tokens=tokens, page=page)["bytes"])
    found = 0
    for path in (node.directory / "pool").rglob("*"):
        if not path.is_file():
            continue
        held = path.read_bytes()
        at = held.find(content)
        while at >= 0:
            with path.open("r+b") as file:
                file.seek(at + 7)
                file.write(bytes([content[7] ^ 1]))
            found += 1
            at = held.find(content, at + len(content))
    return found


def test_a_full_daemon_makes_room_or_says_no_and_the_engine_goes_on(open_rank: Open, chance: random.Random) -> None:
    rank = open_rank(layers=16, heads=8, headSize=64, pages=64)  # Pages of 256 KiB: 64 MiB hold some 250.
    prompts = [prompt(chance, 60) for _ in range(8)]
    for tokens in prompts:
        assert rank.backup(tokens) in {0, 60}
    found = [rank.prefetch(tokens) for tokens in prompts]
    assert found[-1] == all_of(60)
    assert found[0]["hit"] < 60, "the oldest had to go"
    assert all(answer["wrong"] == 0 for answer in found)
    assert rank.state()["alive"]


def test_pages_that_left_memory_for_a_disk_are_read_from_there(
    engine: Engine, chance: random.Random, tmp_path: Path
) -> None:
    disk = {"path": str(tmp_path / "disk"), "capacityBytes": 512 << 20}
    disks = {"enabled": True, "directories": [disk], "segmentBytes": 4 << 20, "stagingBytes": 1 << 20}
    node = Node({"engineApi": {"proof": "required"}, "nvme": {**disks, "writeThrough": True}}).start()
    try:
        rank = Rank(engine, node.socket, layers=16, heads=8, headSize=64, pages=64)
        prompts = [prompt(chance, 60) for _ in range(8)]
        for tokens in prompts:
            eventually("pages are taken", lambda tokens=tokens: rank.backup(tokens) == 60)
            time.sleep(0.2)
        found = [rank.prefetch(tokens) for tokens in prompts]
        assert found == [all_of(60)] * 8, "120 MiB through 64 MiB of memory"
        rank.close()
    finally:
        node.remove()


def test_pages_that_the_engine_has_itself_do_not_leave_the_daemon_before_those_behind_them(
    open_rank: Open, chance: random.Random
) -> None:
    rank = open_rank(layers=16, heads=8, headSize=64, pages=64)
    conversation = prompt(chance, 60)
    assert rank.backup(conversation[: 30 * PAGE_TOKENS]) == 30
    assert rank.backup(conversation, **{"from": 30}) == 30
    for _ in range(8):
        # The engine holds the first half in its own memory and asks only for the second; the rest is others' traffic.
        assert rank.prefetch(conversation, **{"from": 30}, lastNodePages=1)["hit"] == 30
        assert rank.backup(prompt(chance, 40)) == 40
    assert rank.prefetch(conversation[: 29 * PAGE_TOKENS])["hit"] == 29


def test_a_model_with_another_pool_stores_and_loads_nothing_and_answers_in_the_right_shape(
    open_rank: Open, tokens: list[int]
) -> None:
    rank = open_rank(sidePool=True)
    keys = [hashlib.sha256(b"page").hexdigest()]
    assert rank.call("batch_exists_v2", keys, side=True) == [0, {}]
    assert rank.call("batch_get_v2", keys) == {"swa": [False]}
    assert rank.call("batch_set_v2", keys) == {"swa": [False]}
    assert rank.backup(tokens) == 0
    assert rank.prefetch(tokens) == MISS
    assert rank.state()["alive"]
    assert rank.log().count("cairn: nothing is stored or loaded") == 1


def test_the_backend_has_every_method_of_the_engines_abstract_class_with_its_parameters(open_rank: Open) -> None:
    assert open_rank().do("signatures") == {"differ": [], "abstract": []}


def test_no_call_answers_none_or_raises_whatever_it_is_given(open_rank: Open) -> None:
    rank = open_rank()
    good = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]
    assert rank.call("batch_set_v1", good, indices=7) == [False] * 3, "indices that are not whole pages"
    assert rank.call("batch_get_v1", good, indices=0) == [False] * 3
    assert rank.call("batch_get_v1", good) == [False] * 3
    assert rank.call("batch_set_v1", [*good[:2], "no hash"]) == [False] * 3
    assert rank.call("batch_set_v1", good) == [True] * 3
    assert rank.call("batch_exists", [*good[:2], "zz" * 32, good[2]]) == 2
    assert rank.call("batch_exists", []) == 0
    assert rank.call("batch_get_v1", []) == []
    assert rank.call("batch_set_v1", []) == []
    assert rank.call("exists", good) is True
    assert rank.call("exists", ["00" * 32]) is False
    assert rank.call("batch_exists_v2", good) == [3, {}]
    assert rank.state()["counters"]["faults"] == 2


def test_single_pages_are_set_and_got_by_the_generic_calls(open_rank: Open) -> None:
    keys = [hashlib.sha256(bytes([number])).hexdigest() for number in range(3)]
    rank = open_rank(options={"interface_v1": 0}, layout="layer_first")
    assert rank.call("get", keys) is False
    assert rank.call("set", keys) is True
    assert rank.call("get", keys) is True
    assert rank.call("batch_get", keys) == [True, False, False]
    assert rank.call("batch_set", keys) is True
    assert rank.call("batch_get", keys) == [True] * 3
    buffers = open_rank(layout="layer_first")
    assert buffers.call("set", keys) is False, "flat copies have another order than the buffers of this layout"
    assert buffers.call("batch_get", keys) == [False] * 3


def test_detach_clear_and_attach_at_run_time(open_rank: Open, tokens: list[int]) -> None:
    rank = open_rank(storageMetrics=True)
    assert rank.backup(tokens) == 40
    assert rank.prefetch(tokens) == all_of(40)
    assert rank.state()["stats"] == [[40], [40]]
    assert rank.do("clear") == {"cleared": True}
    assert rank.prefetch(tokens) == MISS, "given up"
    assert rank.backup(tokens, weights=3) == 40
    assert rank.prefetch(tokens, weights=3) == all_of(40)
    assert rank.do("reset") == {}
    assert rank.prefetch(tokens, weights=3) == all_of(40)
    assert rank.do("detach") == {"after": 0}
    assert rank.do("attach") == {"poolUnchanged": True}
    assert rank.prefetch(tokens)["hit"] == 0, "the new backend is another life, which has to prove a page"
    assert rank.backup(tokens) == 40
    assert rank.prefetch(tokens) == all_of(40)


def test_an_option_out_of_range_is_told_at_the_start_and_an_unknown_one_only_mentioned(open_rank: Open) -> None:
    with pytest.raises(RankRefused, match="windowBytes"):
        open_rank(options={"windowBytes": 1}).state()
    rank = open_rank(options={"windowByte": 1})
    assert rank.state()["alive"]
    assert "options that are not known: windowByte" in rank.log()


def test_a_killed_rank_leaves_nothing_behind_in_the_daemon(node: Node, open_rank: Open, tokens: list[int]) -> None:
    rank = open_rank()
    assert rank.backup(tokens) == 40
    assert rank.prefetch(tokens) == all_of(40)
    eventually("metrics", (node.directory / "edge.sock").exists)
    assert node.gauge("cairn_leases") == 0, "a read gives its lease back"
    rank.kill()
    gauges = ("cairn_regions", "cairn_jobs", "cairn_leases", "cairn_connections")
    eventually("all is freed", lambda: all(node.gauge(name) == 0 for name in gauges), 5)
