"""A hundred thousand fuzzed replies: whatever the daemon says, the client neither crashes nor hangs nor leaks.

Each round is one connection to a fake daemon: the client has a call of every kind in flight, the daemon answers with
frames that are right, nearly right, or noise, in random pieces, and then ends the connection. Every call must have
ended exactly once, the reader thread must live, and no fault of the client's own may have been counted. A reply counts
as fuzzed when the client has read it, or has ended the connection because of it.

CAIRN_TEST_SEED repeats a run, CAIRN_TEST_REPLIES makes it shorter or longer.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon import descriptor, eventually
from fake import EPOCH_NUMBER, FakeDaemon, Peer, hello_reply, register_reply, reply_frame

from cairn_kv import Completion, PrefetchOffered, Session, StoreOffered, Window, limits
from cairn_kv.completions import Connected, Disconnected, FillRefused
from cairn_kv.protocol import HEADER_BYTES, Flag, Frame, Operation, encode_cold

REPLIES = int(os.environ.get("CAIRN_TEST_REPLIES") or 100_000)
KEYS = [bytes([number]) * 32 for number in range(4)]
CALLS = 11
"""Calls of one round, and so frames that the fake daemon reads before it answers."""
EDGES = (0, 1, 2, 3, 4, 5, 255, 256, 2**31, 2**32 - 1)


class Fuzzer:
    """Makes replies to the frames of one round."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.sent = 0

    def batch(self, asked: list[Frame]) -> list[bytes]:
        """Replies of one connection, most of them to what was asked."""
        order = list(asked)
        self.chance.shuffle(order)
        return [self._one(self.chance.choice(order)) for _ in range(self.chance.randrange(1, 24))]

    def _one(self, frame: Frame) -> bytes:
        makers: list[Callable[[], bytes]] = [
            lambda: self._right(frame),
            lambda: self._edge(self._right(frame)),
            lambda: self._flip(self._right(frame)),
            lambda: self._error(frame),
            lambda: self._cold(frame),
            lambda: self._torn(self._right(frame)),
            lambda: self.chance.randbytes(self.chance.randrange(1, 256)),
        ]
        return self.chance.choices(makers, [45, 15, 15, 10, 8, 4, 3])[0]()

    def _torn(self, data: bytes) -> bytes:
        """The front of a frame and then noise."""
        return data[: self.chance.randrange(len(data))] + self.chance.randbytes(self.chance.randrange(64))

    def _right(self, frame: Frame) -> bytes:
        """What a daemon in order might answer, reply or completion."""
        chance, count = self.chance, frame.count
        if frame.operation == Operation.LOOKUP:
            hit = chance.randrange(count + 1)
            body = struct.pack("<IIIIIIII", hit, 0, 0, 6_000, 10, hit, 0, 0) + bytes(32)
            return reply_frame(Operation.LOOKUP, frame.tag, body, identity=9, count=hit)
        if frame.operation in {Operation.LOAD, Operation.STORE} and (
            frame.operation == Operation.LOAD or chance.random() < 0.3
        ):
            failed = chance.sample(range(count), chance.randrange(count + 1))
            body = struct.pack("<IIQ", len(failed), 5, 4_096) + b"".join(struct.pack("<II", at, 404) for at in failed)
            done = int(Flag.COMPLETION)
            return reply_frame(frame.operation, frame.tag, body, flags=done, identity=7, count=count - len(failed))
        if frame.operation == Operation.STORE:
            statuses = bytes(chance.randrange(5) for _ in range(count))
            wanted, pending = statuses.count(2), statuses.count(1)
            body = struct.pack("<IIII", wanted, pending, 0, 0) + statuses
            job = 2**32 + 1 if wanted + pending else 0
            return reply_frame(Operation.STORE, frame.tag, body, identity=job, count=count)
        if frame.operation == Operation.PREFETCH and chance.random() < 0.5:
            body = struct.pack("<IIQ", chance.randrange(6), 5, 4_096)
            return reply_frame(Operation.PREFETCH, frame.tag, body, flags=int(Flag.COMPLETION), count=2)
        bodies: dict[int, object] = {
            Operation.PREFETCH: {"verdict": "accepted", "blocks": 4},
            Operation.HINT: {"verdict": "clipped", "reason": "ttl"},
            Operation.PROVE: {"proven": True},
            Operation.STATS: {"instance": 1, "node": {"tier": "dram"}},
        }
        body = encode_cold(bodies[frame.operation]) if frame.operation in bodies else b""
        return reply_frame(frame.operation, frame.tag, body, identity=frame.id, count=1)

    def _edge(self, data: bytes) -> bytes:
        """One number of the frame at an edge of its range, body length included."""
        at = self.chance.randrange(max(1, len(data) // 4)) * 4
        return data[:at] + struct.pack("<I", self.chance.choice(EDGES)) + data[at + 4 :]

    def hello(self, frame: Frame) -> bytes:
        """A reply to HELLO that is nearly right."""
        right = reply_frame(Operation.HELLO, frame.tag, encode_cold(hello_reply()))
        return self.chance.choice([self._flip, self._edge])(right)

    def _flip(self, data: bytes) -> bytes:
        """Some bits turned over."""
        out = bytearray(data)
        for _ in range(self.chance.randrange(1, 4)):
            at = self.chance.randrange(len(out))
            out[at] ^= 1 << self.chance.randrange(8)
        return bytes(out)

    def _error(self, frame: Frame) -> bytes:
        body: dict[str, object] = {"code": self.chance.choice([103, 404, 409, 599, 7, -1, 2**40, "x"]), "message": "m"}
        if self.chance.random() < 0.3:
            body["detail"] = self.chance.choice([1, -1, 2**60, 1.5, float("nan"), float("inf"), None, "d"])
        tag = frame.tag if self.chance.random() < 0.8 else self.chance.choice([0, 1, 2**32 - 1])
        return reply_frame(frame.operation, tag, encode_cold(body), flags=int(Flag.ERROR), identity=frame.id)

    def _cold(self, frame: Frame) -> bytes:
        """A cold body of any shape, deep nesting and extension types included."""
        shapes: list[bytes] = [
            b"\x91" * self.chance.randrange(1, 4_096),
            b"\xc7\x04\x05abcd",
            b"\xdf\xff\xff\xff\xff",
            b"\x81\xa7verdict\xa6\xff\xfe\xfd\xfc\xfb\xfa",
            encode_cold({"verdict": self.chance.choice(["accepted", "", "no", 4, None]), "blocks": -1}),
            encode_cold([1, 2, 3]),
            bytes(limits.COLD_BODY_BYTES_MAX + 1),
            self.chance.randbytes(40),
        ]
        return reply_frame(frame.operation, frame.tag, self.chance.choice(shapes), identity=frame.id)

    def serve(self, peer: Peer) -> None:
        """One connection: the window, one round of calls, fuzz, the end."""
        asked: list[Frame] = []
        while len(asked) < CALLS:
            frame = peer.read()
            if frame.operation == Operation.REGISTER:
                os.close(frame.descriptor)
                peer.send(register_reply(frame.tag, 1))
            elif frame.operation == Operation.HEARTBEAT:
                peer.send(reply_frame(Operation.HEARTBEAT, frame.tag, identity=EPOCH_NUMBER))
            else:
                asked.append(frame)
        data = self.batch(asked)
        self.sent += len(data)
        stream, at = b"".join(data), 0
        while at < len(stream):
            end = len(stream) if self.chance.random() < 0.7 else at + self.chance.randrange(1, 2 * HEADER_BYTES)
            descriptors = [0] * self.chance.randrange(1, 3) if self.chance.random() < 0.05 else None
            peer.send(stream[at:end], descriptors)
            at = end


def submit_round(session: Session, window: Window) -> list[int]:
    """A call of every kind; their tags."""
    generation = window.generation
    return [
        session.submit_lookup(1, KEYS),
        session.submit_lookup(2, KEYS, keep_chain=True),
        session.submit_load(window, 9, 0, KEYS, [0, 1, 2, 3]),
        session.submit_store(window, 0, None, KEYS, rows=[0, 1, 2, 3], generation=generation),
        session.submit_store(window, 0, None, KEYS),
        session.submit_prefetch(request_id=1),
        session.submit_flush(),
        session.submit_prove(KEYS[0], ok=True),
        session.submit_hint(KEYS[0], "retain"),
        session.submit_stats(),
        session.submit_end_request(1),
    ]


def ended(done: list[Completion]) -> list[int]:
    """Tags of calls that these completions end."""
    passing = (StoreOffered, PrefetchOffered)
    return [
        one.tag
        for one in done
        if not isinstance(one, (Connected, Disconnected, FillRefused))
        and not (isinstance(one, passing) and not one.final)
    ]


def one_round(session: Session, window: Window) -> int:
    """Make a call of every kind and wait until each has ended once, and the connection; the replies looked at."""
    start = session.statistics()
    tags = submit_round(session, window)
    seen: Counter[int] = Counter()

    def all_ended() -> bool:
        seen.update(ended(session.poll()))
        return len(seen) >= len(tags)

    settle("every call ends", all_ended)
    settle("the connection ends", lambda: session.statistics().connections_lost > start.connections_lost)
    assert seen == Counter(tags)
    now = session.statistics()
    assert now.internal_faults == 0, session.last_error
    return now.frames_received - start.frames_received + now.malformed_replies - start.malformed_replies


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def settle(what: str, holds: Callable[[], bool]) -> None:
    """As `eventually`, without a pause: a round takes a millisecond."""
    until = time.monotonic() + 60.0
    while not holds():
        if time.monotonic() > until:
            raise AssertionError(f"did not come: {what}")
        time.sleep(0)


def test_fuzzed_replies_neither_crash_nor_hang_the_client(
    fake: FakeDaemon, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECONNECT_SECONDS_MIN", 0.0)
    monkeypatch.setattr(limits, "RECONNECT_SECONDS_MAX", 0.0)
    fuzzer = Fuzzer(chance)
    fake.script = fuzzer.serve
    with Session(fake.socket, "fuzzed", [descriptor()], seed=chance.randrange(2**32)) as session:
        window = session.create_window(4)
        settle("the session is joined", lambda: session.connected)
        gc.collect()
        before = descriptors()
        looked_at = 0
        while looked_at < REPLIES:
            settle("the session is joined", lambda: session.connected and session.registered(window))
            looked_at += one_round(session, window)
        assert fuzzer.sent >= looked_at // 2
        # A connection that stands already is one more of the fuzzer's.
        settle("the session is joined", lambda: session.connected)
        lost = session.statistics().connections_lost
        fake.script = healthy
        fake.drop()
        settle("the connection ends", lambda: session.statistics().connections_lost > lost)
        settle("the session is joined", lambda: session.connected and session.registered(window))
        with contextlib.suppress(AssertionError):
            eventually("nothing is left open", lambda: descriptors() <= before, 5.0)
        assert descriptors() <= before + 2
        eventually("a healthy daemon is understood", lambda: session.lookup(1, KEYS).hit == 2)
        assert session.statistics().malformed_replies > 0


def healthy(peer: Peer) -> None:
    """Answer what a window and a look-up need."""
    while True:
        frame = peer.read()
        if frame.operation == Operation.REGISTER:
            os.close(frame.descriptor)
            peer.send(register_reply(frame.tag, 1))
        elif frame.operation == Operation.LOOKUP:
            body = struct.pack("<IIIIIIII", 2, 0, 0, 6_000, 10, 2, 0, 0) + bytes(32)
            peer.send(reply_frame(Operation.LOOKUP, frame.tag, body, identity=3, count=2))


def test_fuzzed_replies_to_hello_and_register_neither_crash_nor_hang_the_client(
    fake: FakeDaemon, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RECONNECT_SECONDS_MIN", 0.0)
    monkeypatch.setattr(limits, "RECONNECT_SECONDS_MAX", 0.0)
    monkeypatch.setattr(limits, "HELLO_SECONDS", 0.05)
    monkeypatch.setattr(limits, "REGISTER_SECONDS", 0.05)
    fuzzer = Fuzzer(chance)

    def half_right(peer: Peer) -> None:
        frame = peer.read()
        os.close(frame.descriptor)
        peer.send(fuzzer._flip(register_reply(frame.tag, 1)))

    def whole(peer: Peer) -> None:
        frame = peer.read()
        os.close(frame.descriptor)
        peer.send(register_reply(frame.tag, 1))

    fake.script = whole
    with Session(fake.socket, "shaken", [descriptor()], seed=chance.randrange(2**32)) as session:
        window = session.create_window(4)
        for round_number in range(400):
            before = fake.connections
            fake.script = half_right
            fake.refuse = None if round_number % 2 else fuzzer.hello
            settle("another attempt is made", lambda: fake.connections > before)  # noqa: B023 (called at once)
        fake.refuse, fake.script = None, healthy
        eventually("a healthy daemon is understood", lambda: session.lookup(1, KEYS).hit == 2)
        assert session.registered(window)
        assert session.statistics().internal_faults == 0
