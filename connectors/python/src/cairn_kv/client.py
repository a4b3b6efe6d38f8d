"""`Session`: an engine process's view of the daemon of its node.

One session is one connection: a scheduler has one, and each worker rank has one; those with the same engine id are one
instance to the daemon and share leases. A session never fails to come about: it connects in the background, and until
it has, and whenever the daemon is away, each call is a miss at once. The asynchronous calls stand in submit.py,
the blocking ones in blocking.py; here are the session's life and its windows.

A session belongs to the process that made it. In a forked child it is closed, so that the child does not hold the
parent's connection open.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Final

import msgspec

from cairn_kv import limits
from cairn_kv.blocking import BlockingCalls, drop_completion
from cairn_kv.calls import ColdCall, Sink, unavailable
from cairn_kv.completions import ColdDone
from cairn_kv.errors import CairnError, ErrorCode, Failure, Unavailable
from cairn_kv.link import Identity, Live, Statistics
from cairn_kv.protocol import (
    DaemonLimits,
    Flag,
    NamespaceDescriptor,
    Nothing,
    Operation,
    RegisterReply,
    encode_cold,
    pack_header,
)
from cairn_kv.window import LayoutAdapter, Window, layout_pattern

_sessions: Final[weakref.WeakSet[Session]] = weakref.WeakSet()


def default_socket() -> str:
    """Return where the daemon listens unless it is configured otherwise."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(runtime, "cairn/engine.sock") if runtime else f"/tmp/cairn-{os.getuid()}/engine.sock"  # noqa: S108


class Session(BlockingCalls):
    """A connection to the daemon that comes back by itself. Safe to use from several threads.

    Args:
        socket: path of the daemon's socket; None: its default.
        engine_id: one engine life; all its processes use the same.
        namespaces: what the engine's blocks are; calls name them by position.
        role: "scheduler" or "worker".
        rank: of a worker.
        ranks: of how many.
        engine: name and version of the engine.
        seed: of the jitter between attempts to connect; None: by chance.

    """

    def __init__(
        self,
        socket: str | None,
        engine_id: str,
        namespaces: Sequence[NamespaceDescriptor],
        *,
        role: str = "scheduler",
        rank: int = 0,
        ranks: int = 1,
        engine: tuple[str, str] = ("python", "0"),
        seed: int | None = None,
    ) -> None:
        if not 1 <= len(namespaces) <= limits.NAMESPACES_MAX:
            raise ValueError(f"{len(namespaces)} namespaces: 1 to {limits.NAMESPACES_MAX}")
        for descriptor in namespaces:
            if descriptor.key_bytes % 4 or not limits.KEY_BYTES_MIN <= descriptor.key_bytes <= limits.KEY_BYTES_MAX:
                raise ValueError(f"key_bytes {descriptor.key_bytes}: a multiple of 4 from 8 to 32")
        if role not in {"scheduler", "worker"} or not 0 <= rank < ranks:
            raise ValueError(f"role {role!r}, rank {rank} of {ranks}")
        identity = Identity(
            socket=socket or default_socket(),
            engine_id=engine_id,
            role=role,
            rank=rank,
            ranks=ranks,
            engine_name=engine[0],
            engine_version=engine[1],
            namespaces=tuple(namespaces),
        )
        super().__init__(identity, seed)
        _sessions.add(self)
        self._link.start()

    # Life.

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, timeout_seconds: float = limits.CALL_SECONDS) -> None:
        """End the session: calls in flight end as misses, and the daemon frees what the session held."""
        self._link.close(timeout_seconds)
        with self._link.lock:
            windows = list(self._link.windows)
            self._link.windows.clear()
        for window in windows:
            window.release()

    def wait_connected(self, timeout_seconds: float) -> bool:
        """Wait until the session is joined to a daemon; False when time is up. `last_error` then says why."""
        with self._link.changed:
            return (
                self._link.changed.wait_for(lambda: self.connected or self.closed, timeout_seconds) and self.connected
            )

    @property
    def connected(self) -> bool:
        """Whether a daemon answers now."""
        return self._link.live is not None

    @property
    def closed(self) -> bool:
        """Whether the session was ended, or is a forked child's copy."""
        return self._link.closed

    @property
    def epoch(self) -> str | None:
        """Life of the daemon that the session is, or was last, joined to."""
        return self._link.epoch

    @property
    def node(self) -> str | None:
        """Name of the daemon's node; None without a connection."""
        live = self._link.live
        return None if live is None else live.hello.node

    @property
    def instance(self) -> int | None:
        """Number of this engine life at the daemon; None without a connection."""
        live = self._link.live
        return None if live is None else live.hello.instance

    @property
    def daemon_limits(self) -> DaemonLimits | None:
        """Bounds of the daemon; None without a connection."""
        live = self._link.live
        return None if live is None else live.hello.limits

    def namespace_digest(self, namespace: int = 0) -> bytes | None:
        """Return the 16 bytes that name a namespace in events and queries; None without a connection."""
        live = self._link.live
        return None if live is None else live.hello.namespaces[namespace].digest

    @property
    def last_error(self) -> Failure | None:
        """Why the session is not connected, or a window is not registered; None when all is well."""
        return self._link.last_error

    def statistics(self) -> Statistics:
        """Return the session's counters as they are now."""
        return msgspec.structs.replace(self._link.statistics)

    # Windows.

    def create_window(
        self,
        blocks: int,
        *,
        namespace: int = 0,
        stride_bytes: int | None = None,
        offset_bytes: int = 0,
        make: str = "client",
        adapter: LayoutAdapter | None = None,
        timeout_seconds: float = limits.REGISTER_SECONDS,
    ) -> Window:
        """Make a window of `blocks` rows and register it.

        Without a daemon the window is there all the same, and is registered when one comes; with an adapter, whose
        layout has still to be proven then, by `register_window`.

        Args:
            blocks: rows.
            namespace: position in the session's namespaces.
            stride_bytes: from row to row; None: the namespace's row_bytes.
            offset_bytes: of the first row.
            make: who makes the memory: "client", or "daemon", which needs one that answers now.
            adapter: the engine's gather and scatter, for the layout proof; None: rows are opaque bytes.
            timeout_seconds: bounds the whole call; the daemon touches every page of the window.

        Raises:
            CairnError: the daemon refuses the window, or its layout.
            OSError: the system refuses the memory.
            ValueError: the geometry makes no sense, or there are too many windows.

        """
        descriptor = self.namespace(namespace)
        stride = descriptor.row_bytes if stride_bytes is None else stride_bytes
        window = Window(namespace, descriptor, blocks, stride, offset_bytes, adapter)
        if make not in {"client", "daemon"}:
            raise ValueError(f"make {make!r}: client or daemon")
        if len(self._link.windows) >= limits.WINDOWS_MAX:
            raise ValueError(f"more than {limits.WINDOWS_MAX} windows")
        if make == "daemon":
            self._adopt_window(window, timeout_seconds)
        else:
            window.make()
        with self._link.lock:
            self._link.windows.append(window)
        try:
            self.register_window(window, timeout_seconds)
        except Unavailable:
            return window  # The daemon went away meanwhile; the reader thread registers it with the next.
        except CairnError:
            self.remove_window(window)
            raise
        return window

    def register_window(self, window: Window, timeout_seconds: float = limits.REGISTER_SECONDS) -> bool:
        """Register a window that is not registered on the present connection, proving its layout where that is due.

        Returns:
            Whether the window is registered now; False without a daemon.

        Raises:
            CairnError: the daemon refuses the window, or its layout.

        """
        live = self._link.live
        if live is None or window.broken:
            return False
        if window in live.regions:
            return True
        until = time.monotonic() + timeout_seconds
        proof = not window.proven
        body = window.registration(live.handles[window.namespace], proof=proof)
        reply = self._cold(
            live, Operation.REGISTER, body, RegisterReply, until, descriptor=window.descriptor_to_send()
        ).value
        if proof:
            self._prove_layout(live, window, reply, until)
        live.regions[window] = reply.region
        return True

    def register_memory(
        self,
        registration: dict[str, object],
        *,
        namespace: int = 0,
        descriptor: int = -1,
        timeout_seconds: float = limits.REGISTER_SECONDS,
    ) -> int:
        """Register memory that is no window, on the present connection alone (docs/protocol.md, REGISTER).

        Args:
            registration: the body, but for the namespace.
            namespace: position in the session's namespaces.
            descriptor: travels with the frame and stays the caller's; -1: none.
            timeout_seconds: bounds the call.

        Returns:
            The daemon's number of it.

        Raises:
            CairnError: the daemon refuses it, or is away.

        """
        self.namespace(namespace)
        live = self._link.live
        if live is None:
            raise CairnError.of(unavailable("memory is registered with a daemon that answers now"))
        body = {**registration, "namespace": live.handles[namespace]}
        until = time.monotonic() + timeout_seconds
        reply: RegisterReply = self._cold(
            live, Operation.REGISTER, body, RegisterReply, until, descriptor=descriptor
        ).value
        return reply.region

    def remove_window(self, window: Window, timeout_seconds: float = limits.CALL_SECONDS) -> bool:
        """Unregister a window once every copy has drained, and let its memory go; False when the daemon did not answer.

        Its views stay valid as long as somebody holds them.
        """
        with self._link.lock:
            if window in self._link.windows:
                self._link.windows.remove(window)
        live = self._link.live
        region = 0 if live is None else live.regions.pop(window, 0)
        drained = True
        if live is not None and region != 0:
            try:
                self._cold(live, Operation.UNREGISTER, None, None, time.monotonic() + timeout_seconds, region)
            except CairnError:
                drained = False
        window.release()
        return drained

    def registered(self, window: Window) -> bool:
        """Whether jobs may name the window now."""
        live = self._link.live
        return live is not None and window in live.regions

    def _adopt_window(self, window: Window, timeout_seconds: float) -> None:
        live = self._link.live
        if live is None:
            raise CairnError.of(unavailable("a window of the daemon's needs a daemon"))
        until = time.monotonic() + timeout_seconds
        proof = not window.proven
        body = window.registration(live.handles[window.namespace], proof=proof, make="daemon")
        answer = self._cold(live, Operation.REGISTER, body, RegisterReply, until, wants_descriptor=True)
        try:
            window.adopt(answer.descriptor)
        except ValueError as error:
            raise CairnError.of(Failure(ErrorCode.WINDOW_NOT_SEALED, str(error))) from error
        if proof:
            self._prove_layout(live, window, answer.value, until)
        live.regions[window] = answer.value.region

    def _prove_layout(self, live: Live, window: Window, registered: RegisterReply, until: float) -> None:
        """Run the pattern through the adapter both ways (docs/protocol.md, "Layout proof")."""
        adapter = window.adapter
        if adapter is None or registered.block >= window.blocks:
            raise CairnError.of(Failure(ErrorCode.LAYOUT_MISMATCH, "the daemon proves a row that is not there"))
        row = window.row(registered.block)
        saved = bytes(row)
        try:
            adapter.gather(memoryview(layout_pattern(registered.seed, window.row_bytes)), row)
            block = {"block": registered.block}
            self._cold(live, Operation.PROVE_LAYOUT, block, Nothing, until, registered.region, window=window)
            found = bytes(adapter.scatter(row))
        except CairnError:
            self._unregister(live, registered.region)
            raise
        finally:
            row[:] = saved
        if found != layout_pattern(registered.seed + 1, window.row_bytes):
            self._unregister(live, registered.region)
            raise CairnError.of(Failure(ErrorCode.LAYOUT_MISMATCH, "the scattered pattern differs"))
        window.note_proven()

    def _unregister(self, live: Live, region: int) -> None:
        call = ColdCall(
            self._tag(), drop_completion, time.monotonic() + limits.CALL_SECONDS, Operation.UNREGISTER, None
        )
        self._send_empty(live, call, Operation.UNREGISTER, region)

    def _cold(
        self,
        live: Live,
        operation: Operation,
        body: object,
        kind: type[object] | None,
        until: float,
        identity: int = 0,
        *,
        descriptor: int = -1,
        wants_descriptor: bool = False,
        window: Window | None = None,
    ) -> ColdDone:
        """Make a call of set-up and wait for its answer.

        Raises:
            CairnError: the daemon's error, or that it does not answer.

        """

        def submit(sink: Sink) -> int:
            tag = self._tag()
            call = ColdCall(tag, sink, until, operation, kind, wants_descriptor=wants_descriptor, window=window)
            packed = b"" if body is None else encode_cold(body)
            flags = 0 if descriptor == -1 else int(Flag.DESCRIPTOR)
            header = pack_header(operation, flags, len(packed), tag, identity)
            self._link.submit(live, call, [header, packed], descriptor)
            return tag

        done = self._wait(submit, ColdDone, max(0.0, until - time.monotonic()))
        done.raise_for_error()
        return done


def _after_fork() -> None:
    for session in list(_sessions):
        session._link.abandon()


os.register_at_fork(after_in_child=_after_fork)
