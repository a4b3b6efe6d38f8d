"""Frames of the engine protocol, version 1, as bytes (docs/protocol.md is the description).

A frame is a header of 32 bytes and a body. Hot bodies are packed here as a short fixed part, which the transport sends
together with the caller's own buffers of keys and rows, so that nothing is copied per key. Cold bodies are one msgpack
map; what comes back is decoded into a typed structure with the bounds of limits.py, and anything else is a
`MalformedReplyError`, which ends the connection.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Annotated, Final, TypeVar

import msgspec

from cairn_kv import limits
from cairn_kv.errors import ErrorCode, Failure, MalformedReplyError

MAGIC: Final = 0x314E5243
VERSION: Final = 1
HEADER: Final = struct.Struct("<IBBHIIQIHH")
HEADER_BYTES: Final = HEADER.size
TAG_MAX: Final = 2**32 - 1
HANDLE_MAX: Final = 2**16 - 1
U32_MAX: Final = 2**32 - 1

LOOKUP_REPLY: Final = struct.Struct("<IIIIIIII")
LOOKUP_KEY_AT: Final = 32
LOOKUP_REPLY_BYTES: Final = 64
STORE_REPLY: Final = struct.Struct("<IIII")
COMPLETION: Final = struct.Struct("<IIQ")
FAILED_BLOCK: Final = struct.Struct("<II")
_LOOKUP: Final = struct.Struct("<II")
_LOAD: Final = struct.Struct("<IIIHH")
_STORE: Final = struct.Struct("<IIIHHII")


class Operation(IntEnum):
    """What a frame asks for, or answers."""

    HELLO = 1
    REGISTER = 2
    PROVE_LAYOUT = 3
    UNREGISTER = 4
    LOOKUP = 5
    LOAD = 6
    STORE = 7
    FILL = 8
    CANCEL = 9
    FLUSH = 10
    END_REQUEST = 11
    TOUCH = 12
    HINT = 13
    PREFETCH = 14
    PROVE = 15
    HEARTBEAT = 16
    STATS = 17


class Flag(IntFlag):
    """Flags of a header; those from 256 on belong to the operation."""

    REPLY = 1
    ERROR = 2
    COMPLETION = 4
    DESCRIPTOR = 8
    NO_REPLY = 16
    KEEP_CHAIN = 256
    NO_LEASE = 512
    DATA_READY = 256
    BY_REQUEST = 256


class LookupBit(IntFlag):
    """Bits of a LOOKUP's reply."""

    PROOF_WANTED = 1
    SPLIT_SAMPLED = 2
    CLIPPED = 4
    NVME_SLOW = 8
    SLOW = 16
    REMOTE_ASKING = 32


class StoreStatus(IntEnum):
    """What the daemon says to each key of a STORE."""

    PRESENT = 0
    PENDING = 1
    WANTED = 2
    FULL = 3
    PARENT_ABSENT = 4


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame that came in. `descriptor` is −1, or a file descriptor that whoever handles the frame must close."""

    operation: int
    flags: int
    tag: int
    id: int
    count: int
    namespace: int
    body: bytes
    descriptor: int = -1

    @property
    def is_error(self) -> bool:
        """Whether the frame refuses what its tag asked for."""
        return self.flags & Flag.ERROR != 0

    @property
    def is_completion(self) -> bool:
        """Whether the frame ends a job whose reply came before."""
        return self.flags & Flag.COMPLETION != 0


class NamespaceDescriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What an engine declares about its blocks: two descriptors that differ anywhere never share a block.

    `row_bytes` is the canonical length of one shard of one block, `key_bytes` a multiple of 4 from 8 to 32, and
    `block_tokens` the tokens of one block. Everything that changes the bytes of a block for the same tokens must stand
    in one of the fields: `engine_build` takes what has no field of its own (instruction set, kernel choice).
    """

    model: str
    revision: str
    kv_dtype: str
    quant_scales: bool
    layout: str
    row_bytes: int
    group_kinds: tuple[str, ...]
    draft: bool
    block_tokens: int
    hash_algorithm: str
    hash_seed: str
    engine_build: str
    key_bytes: int
    shards: int
    chained: bool
    chunk_blocks: int | msgspec.UnsetType = msgspec.UNSET


Count32 = Annotated[int, msgspec.Meta(ge=0, le=U32_MAX)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=limits.ID_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=limits.TEXT_CHARACTERS_MAX)]


class GivenNamespace(msgspec.Struct, frozen=True, rename="camel"):
    """A namespace as HELLO's reply names it."""

    handle: Annotated[int, msgspec.Meta(ge=1, le=HANDLE_MAX)]
    digest: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class DaemonLimits(msgspec.Struct, frozen=True, rename="camel"):
    """Bounds of the daemon that this connection lives under."""

    keys_per_frame_max: Positive
    frame_body_bytes_max: Positive
    in_flight_jobs_max: Positive
    window_bytes_max: Positive
    load_deadline_ms_max: Annotated[int, msgspec.Meta(ge=1, le=U32_MAX)]
    store_fill_ms: Annotated[int, msgspec.Meta(ge=1, le=U32_MAX)]


class HelloReply(msgspec.Struct, frozen=True, rename="camel"):
    """The daemon's answer to HELLO."""

    protocol: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    instance: Annotated[int, msgspec.Meta(ge=0, le=limits.ID_MAX)]
    epoch: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    node: Text
    namespaces: Annotated[list[GivenNamespace], msgspec.Meta(max_length=limits.NAMESPACES_MAX)]
    heartbeat_ms: Annotated[int, msgspec.Meta(ge=limits.HEARTBEAT_MS_MIN, le=limits.HEARTBEAT_MS_MAX)]
    lease_ms: Annotated[int, msgspec.Meta(ge=1, le=U32_MAX)]
    limits: DaemonLimits


class RegisterReply(msgspec.Struct, frozen=True, rename="camel"):
    """The daemon's answer to REGISTER. `seed` and `block` say what the layout proof must show, and where."""

    region: Annotated[int, msgspec.Meta(ge=1, le=U32_MAX)]
    size_bytes: Positive
    proof: bool
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    block: Annotated[int, msgspec.Meta(ge=0, le=limits.WINDOW_BLOCKS_MAX)]


class ErrorReply(msgspec.Struct, frozen=True):
    """Body of an error."""

    code: Count32
    message: str = ""
    action: str = ""
    detail: int | float = 0


class Verdict(msgspec.Struct, frozen=True):
    """The daemon's answer to HINT and PREFETCH."""

    verdict: Annotated[str, msgspec.Meta(pattern="^(accepted|clipped|refused)$")]
    reason: Text = ""
    blocks: Count32 = 0


class ProofVerdict(msgspec.Struct, frozen=True):
    """The daemon's answer to PROVE."""

    proven: bool


class Nothing(msgspec.Struct, frozen=True):
    """A reply whose fields do not matter."""


ColdBody = TypeVar("ColdBody")
_encoder: Final = msgspec.msgpack.Encoder()


def encode_cold(value: object) -> bytes:
    """Encode a cold body: a dictionary or structure as one msgpack map."""
    return _encoder.encode(value)


def decode_cold(body: bytes, kind: type[ColdBody]) -> ColdBody:
    """Decode a cold body into `kind`.

    Raises:
        MalformedReplyError: the body is too long, is no msgpack, or breaks a bound of `kind`.

    """
    if len(body) > limits.COLD_BODY_BYTES_MAX:
        raise MalformedReplyError(f"a cold body of {len(body)} bytes")
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MalformedReplyError(f"{kind.__name__}: {error}") from error


def read_failure(body: bytes) -> Failure:
    """Return the error of an error frame.

    Raises:
        MalformedReplyError: the body is no error.

    """
    reply = decode_cold(body, ErrorReply)
    cut = limits.TEXT_CHARACTERS_MAX
    detail = int(reply.detail) if abs(reply.detail) <= limits.ID_MAX else 0
    return Failure(ErrorCode.read(reply.code), reply.message[:cut], reply.action[:cut], detail)


def _pack(layout: struct.Struct, *fields: int) -> bytes:
    try:
        return layout.pack(*fields)
    except struct.error as error:
        raise ValueError(f"a number of the frame is out of range: {error}") from error


def pack_header(
    operation: int, flags: int, body_bytes: int, tag: int, identity: int = 0, count: int = 0, namespace: int = 0
) -> bytes:
    """Return the 32 bytes in front of a body; `identity` is the request, lease, job or region."""
    return _pack(HEADER, MAGIC, VERSION, operation, flags, body_bytes, tag, identity, count, namespace, 0)


def pack_lookup(held_keys: int, prefill_tokens_per_second: int) -> bytes:
    """Fixed part of a LOOKUP; the keys beyond `held_keys` follow."""
    return _pack(_LOOKUP, held_keys, prefill_tokens_per_second)


def pack_load(start_depth: int, region: int, deadline_ms: int, shard: int) -> bytes:
    """Fixed part of a LOAD; keys and rows follow."""
    return _pack(_LOAD, start_depth, region, deadline_ms, shard, 0)


def pack_store(
    start_depth: int, region: int, deadline_ms: int, shard: int, tokens: int, parent_key: bytes | memoryview
) -> bytes:
    """Fixed part of a STORE, parent key included; keys follow, and with DATA_READY rows."""
    return _pack(_STORE, start_depth, region, deadline_ms, shard, 0, tokens, 0) + bytes(parent_key)
