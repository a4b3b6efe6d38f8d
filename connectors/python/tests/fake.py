"""A daemon that says what a test wants, over a real Unix socket in this process."""

from __future__ import annotations

import array
import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from cairn_kv.protocol import HEADER, HEADER_BYTES, Flag, Frame, Operation, encode_cold, pack_header

EPOCH = "00112233-4455-6677-8899-aabbccddeeff"
EPOCH_NUMBER = int(EPOCH.replace("-", "")[:13], 16)


def hello_reply(**over: object) -> dict[str, object]:
    """A reply to HELLO as the daemon gives it."""
    bounds = {
        "keysPerFrameMax": 65_536,
        "frameBodyBytesMax": 65_536 * 36 + 4_096,
        "inFlightJobsMax": 256,
        "windowBytesMax": 2**36,
        "loadDeadlineMsMax": 60_000,
        "storeFillMs": 10_000,
    }
    reply: dict[str, object] = {
        "protocol": 1,
        "instance": 1,
        "epoch": EPOCH,
        "node": "fake",
        "namespaces": [{"handle": 1, "digest": bytes(16)}],
        "heartbeatMs": 2_000,
        "leaseMs": 6_000,
        "limits": bounds,
    }
    return {**reply, **over}


def reply_frame(
    operation: int, tag: int, body: bytes = b"", *, flags: int = 0, identity: int = 0, count: int = 0
) -> bytes:
    """A whole reply."""
    return pack_header(operation, int(Flag.REPLY) | flags, len(body), tag, identity, count) + body


class Peer:
    """The daemon's end of one connection."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream

    def read(self) -> Frame:
        """Read one frame of the client's; OSError when the client is gone."""
        data, ancillary, _, _ = self.stream.recvmsg(HEADER_BYTES, socket.CMSG_SPACE(16))
        descriptors = [array.array("i", payload)[0] for _, _, payload in ancillary]
        while len(data) < HEADER_BYTES:
            data += self._some(HEADER_BYTES - len(data))
        _, _, operation, flags, body_bytes, tag, identity, count, namespace, _ = HEADER.unpack(data)
        body = b""
        while len(body) < body_bytes:
            body += self._some(body_bytes - len(body))
        return Frame(operation, flags, tag, identity, count, namespace, body, descriptors[0] if descriptors else -1)

    def _some(self, size_bytes: int) -> bytes:
        data = self.stream.recv(size_bytes)
        if not data:
            raise OSError("the client is gone")
        return data

    def send(self, data: bytes, descriptors: list[int] | None = None) -> None:
        """Send bytes, whatever they are."""
        if descriptors:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            sent = self.stream.sendmsg([data], rights)
            data = data[sent:]
        self.stream.sendall(data)


Script = Callable[[Peer], None]


class FakeDaemon:
    """Listens, answers HELLO and REGISTER, and hands each connection to `script`, which may do anything."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cairn-fake-"))
        self.socket = str(self.directory / "engine.sock")
        self.script: Script = idle
        self.hello: dict[str, object] = hello_reply()
        self.refuse: Callable[[Frame], bytes] | None = None
        """Gives what is sent in place of the reply to HELLO."""
        self.connections = 0
        self.frames: list[Frame] = []
        """Frames of HELLO and REGISTER that were answered."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.socket)
        self._listener.listen(64)
        self._closing = False
        self._peers: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._run, name="fake-daemon", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            self._peers.add(stream)
            self.connections += 1
            with stream, contextlib.suppress(OSError):
                self._serve(Peer(stream))
            self._peers.discard(stream)

    def _serve(self, peer: Peer) -> None:
        frame = peer.read()
        self.frames.append(frame)
        if self.refuse is not None:
            peer.send(self.refuse(frame))
            return
        peer.send(reply_frame(Operation.HELLO, frame.tag, encode_cold(self.hello)))
        self.script(peer)

    def drop(self) -> None:
        """End the connections that stand."""
        for stream in list(self._peers):
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening, end connections, remove the socket."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()
        self._thread.join(10.0)
        shutil.rmtree(self.directory, ignore_errors=True)


def register_reply(tag: int, region: int, *, proof: bool = False, seed: int = 7) -> bytes:
    """A reply to REGISTER."""
    body = {"region": region, "sizeBytes": 4_096, "proof": proof, "seed": seed, "block": 0}
    return reply_frame(Operation.REGISTER, tag, encode_cold(body), identity=region)


def idle(peer: Peer) -> None:
    """Answer REGISTER and HEARTBEAT, and nothing else."""
    while True:
        frame = peer.read()
        if frame.operation == Operation.REGISTER:
            peer.send(register_reply(frame.tag, 1))
        elif frame.operation == Operation.HEARTBEAT:
            peer.send(reply_frame(Operation.HEARTBEAT, frame.tag, identity=EPOCH_NUMBER))
