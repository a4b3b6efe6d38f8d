"""One connection: bytes in, bytes out, descriptors both ways. It decides nothing.

Writing never blocks the engine. A frame goes to the socket in the calling thread, as the caller's own buffers; when
the socket is full for longer than a millisecond, what is left is copied to a backlog, which the reader thread writes
out. The backlog is bounded in bytes and in time, so a daemon that stopped reading costs one refused call, and then the
connection, never a stall.

Reading happens in the reader thread alone. Everything that is read is held against limits.py before it is believed.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from cairn_kv import limits
from cairn_kv.errors import MalformedReplyError
from cairn_kv.keys import Buffer
from cairn_kv.protocol import HEADER, HEADER_BYTES, MAGIC, VERSION, Flag, Frame

_INT_BYTES: Final = array.array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(limits.DESCRIPTORS_WAITING_MAX * _INT_BYTES)
_SOCKET_BUFFER_BYTES: Final = 4 * limits.MIB
_READ: Final = select.POLLIN | select.POLLHUP | select.POLLERR
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class ConnectionLostError(Exception):
    """The connection is gone, or cannot be had."""


class BacklogFullError(Exception):
    """The daemon does not read, and no more frames can wait."""


def close_descriptor(descriptor: int) -> None:
    """Close a received descriptor; −1 is none."""
    if descriptor != -1:
        with contextlib.suppress(OSError):
            os.close(descriptor)


class Connection:
    """A connected socket. `send` may be called from any thread, everything else from the reader thread alone."""

    def __init__(self, stream: socket.socket, wake: int) -> None:
        stream.settimeout(0)
        with contextlib.suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        self._socket = stream
        self._wake = wake
        self._lock = threading.Lock()
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self._backlog_since = 0.0
        self._closed = False
        self._buffer = bytearray(limits.RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._descriptors: deque[int] = deque()
        self._poller = select.poll()
        self._poller.register(stream, _READ)
        self._poller.register(wake, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(stream, select.POLLOUT)

    @classmethod
    def open(cls, path: str, wake: int) -> Connection:
        """Connect to the daemon's socket at once or not at all.

        Raises:
            ConnectionLostError: nobody listens, or its queue is full.

        """
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            stream.settimeout(0)
            stream.connect(path)
        except (OSError, ValueError) as error:
            stream.close()
            raise ConnectionLostError(f"{path}: {error}") from error
        return cls(stream, wake)

    @property
    def closed(self) -> bool:
        """Whether the connection was given up."""
        return self._closed

    def send(self, parts: Sequence[Buffer], descriptor: int = -1) -> None:
        """Send one frame made of `parts`; a descriptor travels on its first byte.

        Raises:
            ConnectionLostError: the connection is gone.
            BacklogFullError: the daemon does not read.

        """
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor != -1 else []
        with self._lock:
            if self._closed:
                raise ConnectionLostError("the connection is closed")
            if not self._backlog:
                rest = self._send_now(parts, ancillary)
            elif ancillary:
                raise BacklogFullError("a descriptor cannot wait behind other frames")
            else:
                rest = memoryview(b"".join(parts))
            if rest.nbytes > 0:
                self._put_off(rest)

    def _send_now(self, parts: Sequence[Buffer], ancillary: list[tuple[int, int, array.array[int]]]) -> memoryview:
        """Send what the socket takes within a millisecond; the rest as a copy of its own."""
        sent = self._attempt(parts, ancillary)
        if sent == sum(map(len, parts)):
            return memoryview(b"")
        if sent == 0 and ancillary:
            raise BacklogFullError("the socket is full")
        rest = memoryview(b"".join(parts))[sent:]
        until = time.monotonic() + limits.SEND_WAIT_SECONDS
        while rest.nbytes > 0 and (left := until - time.monotonic()) > 0:
            if self._writable.poll(left * 1_000):
                rest = rest[self._attempt([rest], []) :]
        return rest

    def _attempt(self, parts: Sequence[Buffer], ancillary: list[tuple[int, int, array.array[int]]]) -> int:
        try:
            return self._socket.sendmsg(parts, ancillary, _SEND_FLAGS)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLostError(str(error)) from error

    def _put_off(self, rest: memoryview) -> None:
        if self._backlog_bytes + rest.nbytes > limits.SEND_BACKLOG_BYTES_MAX and self._backlog:
            raise BacklogFullError(f"{self._backlog_bytes} bytes wait for the daemon to read")
        if not self._backlog:
            self._backlog_since = time.monotonic()
        self._backlog.append(rest)
        self._backlog_bytes += rest.nbytes
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def flush(self) -> None:
        """Write out what waits, as far as the socket takes it.

        Raises:
            ConnectionLostError: the connection is gone, or the daemon has not read for too long.

        """
        with self._lock:
            while self._backlog:
                sent = self._attempt([self._backlog[0]], [])
                self._backlog_bytes -= sent
                if sent > 0:
                    self._backlog_since = time.monotonic()
                if sent < self._backlog[0].nbytes:
                    self._backlog[0] = self._backlog[0][sent:]
                    break
                self._backlog.popleft()
            if self._backlog and time.monotonic() - self._backlog_since > limits.SEND_BACKLOG_SECONDS_MAX:
                raise ConnectionLostError("the daemon does not read")

    def wait(self, seconds: float) -> bool:
        """Wait until something can be read; False when time is up or somebody woke the reader thread.

        Raises:
            ConnectionLostError: as `flush`.

        """
        if self._backlog:
            self.flush()
            if self._backlog:
                self._poller.modify(self._socket, _READ | select.POLLOUT)
        ready = self._poller.poll(max(0.0, seconds) * 1_000)
        if self._backlog:
            self.flush()
            self._poller.modify(self._socket, _READ)
        readable = False
        for descriptor, events in ready:
            if descriptor == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif events & _READ:
                readable = True
        return readable

    def receive(self) -> list[Frame]:
        """Read once and return the frames that are complete now.

        Raises:
            ConnectionLostError: the daemon ended the connection.
            MalformedReplyError: what came is no frame of this protocol, or is beyond a bound.

        """
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into(
                [self._view[self._filled :]], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return []
        except OSError as error:
            raise ConnectionLostError(str(error)) from error
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(data) - len(data) % _INT_BYTES
                self._descriptors.extend(array.array("i", data[:whole]))
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > limits.DESCRIPTORS_WAITING_MAX:
            raise MalformedReplyError("more descriptors than frames that announce one")
        if count == 0:
            raise ConnectionLostError("the daemon ended the connection")
        self._filled += count
        frames: list[Frame] = []
        try:
            self._cut(frames)
        except MalformedReplyError:
            for frame in frames:
                close_descriptor(frame.descriptor)
            raise
        return frames

    def _cut(self, frames: list[Frame]) -> None:
        """Cut complete frames off the front of the buffer."""
        at = 0
        while self._filled - at >= HEADER_BYTES:
            magic, version, operation, flags, body_bytes, tag, identity, count, namespace, zero = HEADER.unpack_from(
                self._buffer, at
            )
            if magic != MAGIC or version != VERSION or zero != 0:
                raise MalformedReplyError("no frame begins here")
            if body_bytes > limits.REPLY_BODY_BYTES_MAX or identity > limits.ID_MAX or not flags & Flag.REPLY:
                raise MalformedReplyError(f"a header with body {body_bytes}, id {identity}, flags {flags}")
            end = at + HEADER_BYTES + body_bytes
            if end > self._filled:
                self._make_room(at, HEADER_BYTES + body_bytes)
                return
            descriptor = self._take_descriptor() if flags & Flag.DESCRIPTOR else -1
            body = bytes(self._view[at + HEADER_BYTES : end])
            frames.append(Frame(operation, flags, tag, identity, count, namespace, body, descriptor))
            at = end
        self._make_room(at, HEADER_BYTES)

    def _take_descriptor(self) -> int:
        if not self._descriptors:
            raise MalformedReplyError("a frame announces a descriptor that did not come")
        return self._descriptors.popleft()

    def _make_room(self, at: int, frame_bytes: int) -> None:
        """Move what is left to the front, into a larger buffer where the frame needs one."""
        left = bytes(self._view[at : self._filled]) if at > 0 or frame_bytes > len(self._buffer) else None
        if frame_bytes > len(self._buffer):
            self._buffer = bytearray(HEADER_BYTES + limits.REPLY_BODY_BYTES_MAX)
            self._view = memoryview(self._buffer)
        if left is not None:
            self._view[: len(left)] = left
            self._filled = len(left)

    def close(self) -> None:
        """End the connection for every process that holds it, and close descriptors nobody took."""
        with self._lock:
            self._closed = True
            self._backlog.clear()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        while self._descriptors:
            close_descriptor(self._descriptors.popleft())

    def abandon(self) -> None:
        """Close this process's copy of the socket after a fork; the parent's connection stays."""
        self._lock = threading.Lock()
        self._closed = True
        self._socket.close()
