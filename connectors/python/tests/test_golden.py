"""The golden frames of the protocol, from the client's side: byte for byte what the daemon expects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from daemon import ROOT, descriptor

from cairn_kv import Completion, ErrorCode, FailedBlock, LoadDone, LookupDone, StoreDone, StoreOffered, Window
from cairn_kv.calls import CancelCall, ColdCall, LoadCall, LookupCall, ProveCall, StoreCall
from cairn_kv.errors import MalformedReplyError
from cairn_kv.keys import pack_numbers, pack_pairs, slice_keys
from cairn_kv.link import Identity
from cairn_kv.protocol import (
    HEADER,
    HEADER_BYTES,
    MAGIC,
    VERSION,
    Flag,
    Frame,
    HelloReply,
    Operation,
    RegisterReply,
    decode_cold,
    encode_cold,
    pack_header,
    pack_load,
    pack_lookup,
    pack_store,
)

FRAMES: list[dict[str, str]] = json.loads((ROOT / "test/golden/protocol/frames.json").read_text())
KEYS = [bytes([number]) * 32 for number in range(1, 5)]


def golden(name: str, occurrence: int = 0) -> bytes:
    """The bytes of the frame whose name begins so."""
    found = [bytes.fromhex(frame["hex"]) for frame in FRAMES if frame["name"].startswith(name)]
    return found[occurrence]


def frame_of(data: bytes) -> Frame:
    """A reply as the transport cuts it."""
    _, _, operation, flags, body_bytes, tag, identity, count, namespace, _ = HEADER.unpack_from(data)
    assert len(data) == HEADER_BYTES + body_bytes
    return Frame(operation, flags, tag, identity, count, namespace, data[HEADER_BYTES:])


def joined(operation: Operation, flags: int, tag: int, identity: int, count: int, namespace: int, *body: Any) -> bytes:
    """A whole frame out of its parts."""
    data = b"".join(bytes(part) for part in body)
    return pack_header(operation, flags, len(data), tag, identity, count, namespace) + data


def window() -> Window:
    """The golden session's window."""
    return Window(0, descriptor(), 8, 4_096, 0, None)


def test_every_golden_frame_has_the_header_that_the_client_knows() -> None:
    assert len(FRAMES) > 30
    for frame in FRAMES:
        data = bytes.fromhex(frame["hex"])
        magic, version, _, _, body_bytes, _, _, _, _, zero = HEADER.unpack_from(data)
        assert (magic, version, body_bytes, zero) == (MAGIC, VERSION, len(data) - HEADER_BYTES, 0)


def test_hello_is_sent_as_the_page_says() -> None:
    identity = Identity(
        socket="",
        engine_id="golden",
        role="scheduler",
        rank=0,
        ranks=1,
        engine_name="test",
        engine_version="1",
        namespaces=(descriptor(),),
    )
    assert joined(Operation.HELLO, 0, 1, 0, 0, 0, identity.hello()) == golden("HELLO")


def test_the_reply_to_hello_is_read() -> None:
    reply = decode_cold(golden("HELLO reply")[HEADER_BYTES:], HelloReply)
    assert (reply.epoch, reply.node, reply.heartbeat_ms) == ("00112233-4455-4677-8899-aabbccddeeff", "node-1", 2_000)
    assert reply.namespaces[0].digest.hex() == "8d875831fbabc3541ae10d31c9085e41"
    assert reply.limits.keys_per_frame_max == 65_536


def test_register_is_sent_and_its_reply_read() -> None:
    body = encode_cold(window().registration(1, proof=False))
    assert joined(Operation.REGISTER, Flag.DESCRIPTOR, 2, 0, 0, 0, body) == golden("REGISTER (")
    reply = decode_cold(golden("REGISTER reply")[HEADER_BYTES:], RegisterReply)
    assert (reply.region, reply.seed, reply.block, reply.proof) == (1, 7, 0, False)


def test_look_ups_are_sent_and_a_miss_is_read() -> None:
    for keys in (KEYS[:2], b"".join(KEYS[:2])):
        body = slice_keys(keys, 32, 0, 2)
        assert joined(Operation.LOOKUP, 0, 3, 5, 2, 1, pack_lookup(0, 0), body) == golden("LOOKUP of two")
    seen: list[Completion] = []
    call = LookupCall(3, seen.append, 0.0, 5, 2, 32)
    assert call.handle(frame_of(golden("LOOKUP reply")))
    assert seen == [LookupDone(tag=3, request_id=5, lease_ms=6_000)]


def test_a_store_is_sent_and_its_two_answers_are_read() -> None:
    fixed = pack_store(0, 1, 0, 0, 32, bytes(32))
    rows = pack_numbers([0, 1], 2)
    sent = joined(Operation.STORE, Flag.DATA_READY, 4, 0, 2, 1, fixed, b"".join(KEYS[:2]), rows)
    assert sent == golden("STORE of two blocks")
    seen: list[Completion] = []
    call = StoreCall(4, seen.append, 0.0, window(), 2)
    assert not call.handle(frame_of(golden("STORE reply: both")))
    assert call.handle(frame_of(golden("STORE completion: both")))
    offered, done = seen
    assert isinstance(offered, StoreOffered)
    assert (offered.wanted_indices(), offered.final, call.job) == ([0, 1], False, 2**32 + 1)
    assert done == StoreDone(tag=4, landed=2, bytes=8_192, microseconds=250)


def test_a_load_is_sent_and_its_completion_read() -> None:
    lease = HEADER.unpack_from(golden("LOAD of both"))[6]
    fixed, rows = pack_load(0, 1, 0, 0), pack_numbers([2, 3], 2)
    assert joined(Operation.LOAD, 0, 6, lease, 2, 1, fixed, b"".join(KEYS[:2]), rows) == golden("LOAD of both")
    seen: list[Completion] = []
    assert LoadCall(6, seen.append, 0.0, window(), 2).handle(frame_of(golden("LOAD completion")))
    assert seen == [LoadDone(tag=6, landed=2, bytes=8_192, microseconds=250)]


def test_a_load_under_an_unknown_lease_fails_every_block() -> None:
    fixed, rows = pack_load(0, 1, 0, 0), pack_numbers([2], 1)
    assert joined(Operation.LOAD, 0, 15, 77, 1, 1, fixed, KEYS[0], rows) == golden("LOAD under lease 77")
    seen: list[Completion] = []
    error = frame_of(golden("its error: no job"))
    assert LoadCall(15, seen.append, 0.0, window(), 1).handle(error)
    (done,) = seen
    assert isinstance(done, LoadDone)
    assert done.error is not None
    assert (done.error.code, done.error.retryable) == (ErrorCode.UNKNOWN_LEASE, True)
    assert done.failed == (FailedBlock(0, ErrorCode.UNKNOWN_LEASE),)


def test_the_other_calls_are_sent_as_the_page_says() -> None:
    below = pack_store(2, 1, 0, 0, 16, KEYS[1])
    assert joined(Operation.STORE, 0, 7, 0, 1, 1, below, KEYS[2]) == golden("STORE without dataReady below")
    assert joined(Operation.FILL, 0, 8, 2**32 + 2, 1, 0, pack_pairs([0], [4])) == golden("FILL")
    assert joined(Operation.CANCEL, 0, 9, 99, 0, 0) == golden("CANCEL of job 99")
    assert joined(Operation.FLUSH, 0, 10, 0, 0, 0) == golden("FLUSH")
    assert joined(Operation.TOUCH, 0, 11, 0, 1, 1, KEYS[1]) == golden("TOUCH of one")
    proof = encode_cold({"namespace": 1, "key": KEYS[1], "ok": True})
    assert joined(Operation.PROVE, 0, 12, 0, 0, 0, proof) == golden("PROVE")
    assert joined(Operation.END_REQUEST, 0, 13, 5, 0, 0) == golden("END_REQUEST 5")
    assert joined(Operation.HEARTBEAT, Flag.NO_REPLY, 0, 0, 0, 0) == golden("HEARTBEAT")


def test_a_cancelled_store_names_its_block_and_then_the_cancel_is_answered() -> None:
    seen: list[Completion] = []
    call = StoreCall(16, seen.append, 0.0, window(), 1)
    call.handle(frame_of(golden("STORE reply: wanted")))
    assert call.handle(frame_of(golden("STORE completion: none")))
    assert CancelCall(17, seen.append, 0.0).handle(frame_of(golden("CANCEL reply: it was")))
    done = seen[1]
    assert isinstance(done, StoreDone)
    assert done.failed == (FailedBlock(0, ErrorCode.CANCELLED),)
    assert getattr(seen[2], "was_in_flight") is True  # noqa: B009


def test_a_proof_is_answered() -> None:
    seen: list[Completion] = []
    assert ProveCall(12, seen.append, 0.0).handle(frame_of(golden("PROVE reply")))
    assert getattr(seen[0], "proven") is False  # noqa: B009


def test_an_answer_to_another_operation_is_malformed() -> None:
    call = ColdCall(3, lambda _done: None, 0.0, Operation.HELLO, None)
    with pytest.raises(MalformedReplyError):
        call.handle(frame_of(golden("LOOKUP reply")))
