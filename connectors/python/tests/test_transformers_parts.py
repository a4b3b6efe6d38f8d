"""The adapter for transformers, as far as it needs neither torch nor transformers: keys, identity, transfers."""

from __future__ import annotations

import hashlib
import json
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest
from daemon import ROW_BYTES, Daemon, descriptor, eventually, keys_of, payload_of

from cairn_kv import FailedBlock, Session, StoreResult, StoreStatus
from cairn_kv.adapters.identity import NotServed
from cairn_kv.completions import LoadDone, LookupDone, StoreDone, StoreOffered
from cairn_kv.errors import ErrorCode
from cairn_kv.keys import chain_keys
from cairn_kv.transformers.identity import Facts, LayerShape, check_layers, check_model, describe
from cairn_kv.transformers.transfer import Loaded, PrefixTransfer

FAMILIES: Iterator[int] = count(5_000)
SECONDS = 30.0
FACTS = Facts(
    weights="w",
    dtype="float32",
    dtype_bytes=4,
    attention="sdpa",
    machine="cpu AVX2 torch 2",
    transformers="5",
    shapes=(LayerShape((2, 16), (2, 8)), LayerShape((2, 16), (2, 8))),
)


def test_keys_name_a_block_and_all_tokens_before_it() -> None:
    tokens = list(range(11))
    first = hashlib.sha256(struct.pack("<4I", 0, 1, 2, 3)).digest()
    second = hashlib.sha256(first + struct.pack("<4I", 4, 5, 6, 7)).digest()
    assert chain_keys(tokens, 4) == [first, second]
    assert chain_keys(tokens[:3], 4) == []
    assert chain_keys([9, *tokens[1:]], 4)[1] != second
    assert chain_keys([*tokens[:4], 9, *tokens[5:]], 4) == [first, chain_keys([0, 1, 2, 3, 9, 5, 6, 7], 4)[1]]


def test_tokens_that_are_no_tokens_are_refused() -> None:
    with pytest.raises(OverflowError):
        chain_keys([-1], 1)
    with pytest.raises(OverflowError):
        chain_keys([2**32], 1)
    with pytest.raises(ValueError, match="blocks of 0"):
        chain_keys([1], 0)


class Config(SimpleNamespace):
    """A configuration as transformers has them."""

    def get_text_config(self, *, decoder: bool) -> Any:
        return getattr(self, "text_config", self)

    def to_json_string(self, *, use_diff: bool) -> str:
        return json.dumps({"fields": str(sorted(vars(self)))} | {"_name_or_path": getattr(self, "place", "")})


def model_of(name: str = "some/model", **config: Any) -> Any:
    return SimpleNamespace(config=Config(**config), name_or_path=name)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (model_of(is_encoder_decoder=True), "encoder"),
        (model_of(text_config=Config()), "inputs other than tokens"),
        (model_of(rope_scaling={"type": "dynamic"}), "dynamic"),
        (model_of(rope_parameters={"rope_type": "longrope"}), "longrope"),
        (model_of(rope_parameters={"full_attention": {"rope_type": "dynamic"}}), "dynamic"),
        (SimpleNamespace(config=Config(), peft_config={"default": 1}), "adapters"),
        (SimpleNamespace(config=Config(), _tp_size=2), "ranks"),
        (model_of(distributed_config={"fsdp_size": 2}), "ranks"),
    ],
)
def test_a_model_whose_blocks_depend_on_more_than_their_tokens_is_not_served(model: Any, why: str) -> None:
    with pytest.raises(NotServed, match=why):
        check_model(model)


def test_a_model_of_plain_attention_is_served() -> None:
    check_model(model_of(rope_parameters={"rope_type": "llama3"}, is_encoder_decoder=False))
    check_layers(["DynamicLayer", "DynamicLayer"])


@pytest.mark.parametrize("kinds", [["DynamicLayer", "DynamicSlidingWindowLayer"], ["QuantoQuantizedLayer"], []])
def test_layers_that_do_not_keep_every_token_are_not_served(kinds: list[str]) -> None:
    with pytest.raises(NotServed):
        check_layers(kinds)


def test_whatever_changes_a_blocks_bytes_is_another_namespace() -> None:
    model = model_of(place="/one")
    declared = describe(model, FACTS, 16, "")
    assert declared.row_bytes == 16 * 4 * 2 * (2 * 16 + 2 * 8)
    others = [
        describe(model_of(place="/one", more=1), FACTS, 16, ""),
        describe(model, FACTS, 32, ""),
        describe(model, FACTS, 16, "salt"),
        describe(model, replace(FACTS, weights="v"), 16, ""),
        describe(model, replace(FACTS, dtype="float64", dtype_bytes=8), 16, ""),
        describe(model, replace(FACTS, dtype="int32"), 16, ""),
        describe(model, replace(FACTS, attention="eager"), 16, ""),
        describe(model, replace(FACTS, machine="cpu AVX512 torch 2"), 16, ""),
        describe(model, replace(FACTS, transformers="6"), 16, ""),
        describe(model, replace(FACTS, shapes=(LayerShape((2, 8), (2, 16)),) * 2), 16, ""),
    ]
    assert len({repr(one) for one in [declared, *others]}) == 1 + len(others)
    assert describe(model_of(place="/two"), FACTS, 16, "") == declared
    assert declared.model == "some/model"


def test_the_same_model_in_another_directory_is_the_same_namespace() -> None:
    assert describe(model_of("/a/tiny"), FACTS, 16, "") == describe(model_of("/b/c/tiny"), FACTS, 16, "")


def test_a_block_that_is_longer_than_the_daemons_longest_row_is_not_served() -> None:
    with pytest.raises(NotServed, match="bytes"):
        describe(model_of(), replace(FACTS, shapes=(LayerShape((2**20, 64), (1, 1)),)), 16, "")


class Blocks:
    """Blocks of a chain as a model would hold them."""

    def __init__(self, keys: list[bytes]) -> None:
        self.keys = keys
        self.at: dict[int, bytes] = {}

    def gather(self, block: int, row: memoryview) -> None:
        row[:] = payload_of(self.keys[block])

    def begin(self, blocks: int) -> Callable[[memoryview, int], None]:
        def scatter(row: memoryview, block: int) -> None:
            assert block < blocks
            self.at[block] = bytes(row)

        return scatter

    def whole(self, blocks: int) -> bool:
        return self.at == {block: payload_of(self.keys[block]) for block in range(blocks)}


def transfer_of(session: Session, rows: int = 4, seconds: float = SECONDS) -> PrefixTransfer:
    return PrefixTransfer(session, session.create_window(rows), seconds, SECONDS)


def equal(stored: bytes, computed: bytes) -> bool:
    return stored == computed


def test_a_chain_longer_than_the_window_comes_back_byte_for_byte(session: Session) -> None:
    transfer = transfer_of(session)
    keys = keys_of(next(FAMILIES), 11)
    assert transfer.load(keys, Blocks(keys).begin) == Loaded(0)
    assert transfer.save(keys[:9], 0, Blocks(keys).gather) == 9
    found = Blocks(keys)
    assert transfer.load(keys, found.begin) == Loaded(9)
    assert found.whole(9)
    assert transfer.save(keys, 9, found.gather) == 11
    assert transfer.load(keys[:10], found.begin) == Loaded(10)
    counted = transfer.counters.as_dict()
    assert (counted["lookups"], counted["loaded_blocks"], counted["stored_blocks"]) == (3, 19, 11)


def test_what_the_daemon_lost_since_it_acknowledged_it_is_stored_again(session: Session) -> None:
    transfer = transfer_of(session)
    keys = keys_of(next(FAMILIES), 6)
    assert transfer.save(keys[:2], 0, Blocks(keys).gather) == 2
    assert transfer.save(keys, 5, Blocks(keys).gather) == 6
    found = Blocks(keys)
    assert transfer.load(keys, found.begin) == Loaded(6)
    assert found.whole(6)


def test_time_that_is_up_is_a_miss(session: Session) -> None:
    keys = keys_of(next(FAMILIES), 3)
    assert transfer_of(session).save(keys, 0, Blocks(keys).gather) == 3
    late = transfer_of(session, seconds=0.0)
    assert late.load(keys, Blocks(keys).begin) == Loaded(0)
    assert late.save(keys, 0, Blocks(keys).gather) == 0
    assert late.prove(keys, Blocks(keys).gather, equal) is None
    assert late.counters.failed_load_blocks == 3
    assert late.counters.stored_blocks_short == 3


def test_a_daemon_that_hangs_is_a_miss_until_it_goes_on(own_daemon: Daemon) -> None:
    keys = keys_of(1, 3)
    with Session(own_daemon.socket, "hung", [descriptor()]) as session:
        assert session.wait_connected(SECONDS)
        window = session.create_window(4)
        transfer = PrefixTransfer(session, window, SECONDS, 0.2)
        assert transfer.save(keys, 0, Blocks(keys).gather) == 3
        own_daemon.send(signal.SIGSTOP)
        found = Blocks(keys)
        assert transfer.load(keys, found.begin) == Loaded(0)
        assert transfer.prove(keys, found.gather, equal) is None
        assert transfer.counters.failed_lookups == 2
        own_daemon.send(signal.SIGCONT)
        eventually("hits are back", lambda: transfer.load(keys, found.begin) == Loaded(3))
        assert found.whole(3)


def test_without_a_daemon_everything_is_a_miss() -> None:
    keys = keys_of(1, 3)
    with Session("/nonexistent/engine.sock", "nobody", [descriptor()]) as session:
        transfer = transfer_of(session)
        assert transfer.load(keys, Blocks(keys).begin) == Loaded(0)
        assert transfer.prove(keys, Blocks(keys).gather, equal) is None
        assert transfer.save(keys, 0, Blocks(keys).gather) == 0
        assert transfer.counters.failed_lookups == 2
    assert transfer.load(keys, Blocks(keys).begin) == Loaded(0)
    assert transfer.save(keys, 0, Blocks(keys).gather) == 0


def test_blocks_of_another_process_are_given_after_a_proof_and_hidden_after_one_that_fails() -> None:
    daemon = Daemon({"engineApi": {"proof": "required"}})
    keys = keys_of(1, 5)
    try:
        daemon.start()
        with Session(daemon.socket, "first", [descriptor()]) as first:
            assert first.wait_connected(SECONDS)
            assert transfer_of(first).save(keys, 0, Blocks(keys).gather) == 5
        with Session(daemon.socket, "second", [descriptor()]) as second:
            assert second.wait_connected(SECONDS)
            transfer = transfer_of(second)
            found = Blocks(keys)
            assert transfer.load(keys, found.begin) == Loaded(0, proof_wanted=True)
            assert transfer.prove(keys, found.gather, equal) is True
            assert transfer.prove(keys, found.gather, equal) is None
            assert transfer.load(keys, found.begin) == Loaded(5)
            assert found.whole(5)
            assert transfer.counters.proofs == 1
        with Session(daemon.socket, "third", [descriptor()]) as third:
            assert third.wait_connected(SECONDS)
            transfer = transfer_of(third)
            own = Blocks(keys_of(2, 5))
            assert transfer.load(keys, own.begin) == Loaded(0, proof_wanted=True)
            assert transfer.prove(keys, own.gather, equal) is False
            assert transfer.load(keys, own.begin) == Loaded(0)
            assert transfer.save(keys, 0, own.gather) == 5
            assert transfer.load(keys, own.begin) == Loaded(5)
            assert own.at[4] == payload_of(own.keys[4])
            assert transfer.counters.proofs_failed == 1
    finally:
        daemon.remove()


class Scripted:
    """A session that answers as the test says."""

    def __init__(self) -> None:
        self.failed: dict[int, int] = {}
        """Start depth of a LOAD: its first block that fails."""
        self.full_from = 2
        self.ended: list[int] = []

    def lookup(self, request_id: int, keys: list[bytes], *, timeout_seconds: float) -> LookupDone:
        return LookupDone(tag=1, request_id=request_id, hit=len(keys), lease=9)

    def load(
        self, window: Any, lease: int, start: int, keys: list[bytes], rows: range, *, deadline_ms: int
    ) -> LoadDone:
        first = self.failed.get(start)
        failed = () if first is None else (FailedBlock(first, ErrorCode.CHECKSUM_MISMATCH),)
        return LoadDone(tag=2, landed=len(keys) - len(failed), failed=failed)

    def store(
        self, window: Any, start: int, parent: bytes | None, keys: list[bytes], rows: range, **_: Any
    ) -> StoreResult:
        statuses = bytes(StoreStatus.WANTED if at < self.full_from else StoreStatus.FULL for at in range(len(keys)))
        wanted = statuses.count(StoreStatus.WANTED)
        offered = StoreOffered(
            tag=3, statuses=statuses, wanted=wanted, pending=0, resident_depth=0, parent_absent=False, final=False
        )
        return StoreResult(offered, StoreDone(tag=3, landed=wanted))

    def end_request(self, request_id: int) -> None:
        self.ended.append(request_id)


def scripted() -> tuple[Scripted, PrefixTransfer]:
    session = Scripted()
    window = SimpleNamespace(blocks=4, row=lambda _block: memoryview(bytearray(ROW_BYTES)))
    return session, PrefixTransfer(cast("Session", session), cast("Any", window), SECONDS, SECONDS)


def test_the_first_block_that_fails_ends_the_prefix() -> None:
    session, transfer = scripted()
    session.failed[4] = 1
    blocks = Blocks(keys_of(1, 12))
    assert transfer.load(blocks.keys, blocks.begin) == Loaded(5)
    assert sorted(blocks.at) == [0, 1, 2, 3, 4]
    assert transfer.counters.failed_load_blocks == 7


def test_what_a_full_daemon_refuses_is_not_acknowledged_and_nothing_after_it_is_offered() -> None:
    session, transfer = scripted()
    session.full_from = 3
    blocks = Blocks(keys_of(1, 12))
    assert transfer.save(blocks.keys, 0, blocks.gather) == 3
    assert transfer.counters.stored_blocks_short == 9


def test_a_request_ends_even_when_the_engine_fails_under_it() -> None:
    session, transfer = scripted()

    def broken(_blocks: int) -> Callable[[memoryview, int], None]:
        raise MemoryError

    with pytest.raises(MemoryError):
        transfer.load(keys_of(1, 2), broken)
    assert session.ended == [1]
