"""The session's one thread: it connects, reads, keeps time, and connects again.

Life of a connection: open, HELLO, REGISTER every window, publish it (`live`), then read frames until it ends. Whoever
submits a call takes `live` once and uses that connection, its region numbers and its kept chains, or none: so nothing
of one connection is ever sent on the next. At the end of a connection, in this order: `live` is taken back, the socket
is closed (a submit that comes too late finds it closed and fails by itself), windows learn that their generation is
over, look-ups end as misses, windows that a job owned get other memory, and only then end the jobs: so whoever hears
that a job ended may use its rows. Then attempts to connect follow, each wait twice the last and partly drawn by lot.

Nothing that the daemon sends can end this thread: what is malformed ends the connection, and a fault of our own does
the same and is counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Sequence

import msgspec

from cairn_kv import limits
from cairn_kv.calls import Call, HeartbeatCall, StoreCall, drop_frame, unavailable
from cairn_kv.completions import Connected, Disconnected
from cairn_kv.errors import CairnError, ErrorCode, Failure, MalformedReplyError
from cairn_kv.keys import Buffer
from cairn_kv.protocol import (
    TAG_MAX,
    VERSION,
    Flag,
    Frame,
    HelloReply,
    NamespaceDescriptor,
    Operation,
    RegisterReply,
    decode_cold,
    encode_cold,
    pack_header,
    read_failure,
)
from cairn_kv.transport import BacklogFullError, Connection, ConnectionLostError, close_descriptor
from cairn_kv.window import Window

log = logging.getLogger("cairn_kv")

#: Ends of a connection that are no refusal: nobody listens, or no longer.
_ABSENCES = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.SHUTTING_DOWN})


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who the session is: what HELLO says."""

    socket: str
    engine_id: str
    role: str
    rank: int
    ranks: int
    engine_name: str
    engine_version: str
    namespaces: tuple[NamespaceDescriptor, ...]

    def hello(self) -> bytes:
        """Body of HELLO."""
        return encode_cold(
            {
                "protocol": [VERSION],
                "engineId": self.engine_id,
                "role": self.role,
                "rank": self.rank,
                "ranks": self.ranks,
                "engine": {"name": self.engine_name, "version": self.engine_version},
                "namespaces": [msgspec.to_builtins(descriptor) for descriptor in self.namespaces],
            }
        )


class Statistics(msgspec.Struct):
    """Counters of one session since it was made."""

    frames_sent: int = 0
    frames_received: int = 0
    connections: int = 0
    connections_lost: int = 0
    connect_failures: int = 0
    malformed_replies: int = 0
    late_replies: int = 0
    deadlines_exceeded: int = 0
    calls_unavailable: int = 0
    calls_overloaded: int = 0
    windows_renewed: int = 0
    internal_faults: int = 0


class Live:
    """One connection that stands, and what is true only of it."""

    def __init__(self, connection: Connection, hello: HelloReply) -> None:
        self.connection = connection
        self.hello = hello
        self.handles = [given.handle for given in hello.namespaces]
        self.regions: dict[Window, int] = {}
        self.kept: dict[int, int] = {}
        """Request id to the keys of its chain that the daemon holds."""
        self.epoch_number = _epoch_number(hello.epoch)
        self.keys_per_frame_max = min(hello.limits.keys_per_frame_max, limits.KEYS_PER_FRAME_MAX)
        self.frame_body_bytes_max = min(hello.limits.frame_body_bytes_max, limits.FRAME_BODY_BYTES_MAX)

    def keep(self, request_id: int, count: int) -> None:
        """Remember that the daemon holds `count` keys of a request's chain."""
        self.kept.pop(request_id, None)
        self.kept[request_id] = count
        if len(self.kept) > limits.KEPT_CHAINS_MAX:
            self.kept.pop(next(iter(self.kept)), None)


def _epoch_number(epoch: str) -> int:
    try:
        return int(epoch.replace("-", "")[:13], 16)
    except ValueError as error:
        raise MalformedReplyError(f"epoch {epoch!r}") from error


class Link:
    """Owns the thread, the pending calls and the connection."""

    def __init__(self, identity: Identity, events: deque[Connected | Disconnected], seed: int | None) -> None:
        self.identity = identity
        self.statistics = Statistics()
        self.last_error: Failure | None = None
        self._said_digests: list[bytes] = []
        self._said: Failure | None = None
        self._said_absent = False
        self.windows: list[Window] = []
        self.lock = threading.Lock()
        """Guards `pending`, `windows` and the publication of `live`."""
        self.pending: dict[int, Call] = {}
        self.live: Live | None = None
        self.epoch: str | None = None
        self.changed = threading.Condition()
        """Notified when a connection stands, ends or cannot be had."""
        self._events = events
        self._random = random.Random(seed)  # noqa: S311 (spreads reconnects, keeps no secret)
        self._last_tag = 0
        self._horizon = 0.0
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="cairn-kv", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""
        return self._closing

    def on_thread(self) -> bool:
        """Whether the caller is the reader thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def tag(self) -> int:
        """Return a tag that nobody waits under."""
        with self.lock:
            while True:
                self._last_tag = 1 if self._last_tag >= TAG_MAX else self._last_tag + 1
                if self._last_tag not in self.pending:
                    return self._last_tag

    def submit(self, live: Live | None, call: Call, parts: Sequence[Buffer], descriptor: int = -1) -> None:
        """Expect an answer to `call` and send its frame. Whatever goes wrong ends the call, through its sink."""
        if live is None:
            self.statistics.calls_unavailable += 1
            call.fail(unavailable("no daemon is connected"))
            return
        with self.lock:
            self.pending[call.tag] = call
        try:
            live.connection.send(parts, descriptor)
            self.statistics.frames_sent += 1
        except ConnectionLostError as error:
            self._give_up(call, unavailable(str(error)))
        except BacklogFullError as error:
            self._give_up(call, Failure(ErrorCode.OVERLOADED, str(error)))
        if call.deadline < self._horizon:
            self.wake()

    def _give_up(self, call: Call, failure: Failure) -> None:
        if self.forget(call.tag) is None:
            return  # The reader thread has ended it.
        if failure.code == ErrorCode.OVERLOADED:
            self.statistics.calls_overloaded += 1
        else:
            self.statistics.calls_unavailable += 1
        call.fail(failure)

    def tell(self, live: Live | None, parts: Sequence[Buffer]) -> bool:
        """Send a frame that has no answer; False when it could not be sent."""
        if live is None:
            return False
        try:
            live.connection.send(parts)
        except (ConnectionLostError, BacklogFullError):
            return False
        self.statistics.frames_sent += 1
        return True

    def forget(self, tag: int) -> Call | None:
        """Expect nothing more under a tag; the call that waited, which the caller must end."""
        with self.lock:
            return self.pending.pop(tag, None)

    def time_out(self, tag: int) -> Call | None:
        """End the time of a call; the one that waited, which the caller must end.

        A call that owns rows is not forgotten: its time is over now, so that the thread ends the connection, and then
        the call, once its rows are safe.
        """
        with self.lock:
            call = self.pending.get(tag)
            if call is None or call.window is None:
                return self.pending.pop(tag, None)
            call.deadline = min(call.deadline, time.monotonic())
        self.wake()
        return None

    def wake(self) -> None:
        """Make the thread look at its deadlines now."""
        with self.lock, contextlib.suppress(OSError):
            if self._wake != -1:
                os.eventfd_write(self._wake, 1)

    def close(self, seconds: float) -> None:
        """End the thread, and with it the connection."""
        self._closing = True
        self.wake()
        if self._thread.is_alive() and not self.on_thread():
            self._thread.join(seconds)

    def abandon(self) -> None:
        """In a forked child: the thread did not come along, and the connection is the parent's."""
        self._closing = True
        self.lock = threading.Lock()
        self.changed = threading.Condition()
        live, self.live = self.live, None
        self.pending = {}
        if live is not None:
            live.connection.abandon()

    # The thread.

    def _run(self) -> None:
        wait_seconds = limits.RECONNECT_SECONDS_MIN
        while not self._closing:
            connection: Connection | None = None
            reason = "closed by the client"
            try:
                connection = Connection.open(self.identity.socket, self._wake)
                live = self._establish(connection)
                wait_seconds = limits.RECONNECT_SECONDS_MIN
                self._serve(live)
            except (ConnectionLostError, BacklogFullError) as error:
                reason = str(error)
                denied = isinstance(error.__cause__, PermissionError)
                self._note(Failure(ErrorCode.NOT_PERMITTED, reason) if denied else unavailable(reason))
            except MalformedReplyError as error:
                reason = f"malformed: {error}"
                self.statistics.malformed_replies += 1
                self._note(Failure(ErrorCode.MALFORMED_FRAME, str(error)))
            except CairnError as error:
                reason = str(error)
                self._note(error.failure)
            except Exception as error:  # noqa: BLE001 (the thread must live on; the fault is counted and told)
                reason = f"internal: {error!r}"
                self.statistics.internal_faults += 1
                self._note(Failure(ErrorCode.INTERNAL, repr(error)))
            self._end(connection, reason)
            if not self._closing:
                self._pause(wait_seconds * (0.5 + 0.5 * self._random.random()))
                wait_seconds = min(limits.RECONNECT_SECONDS_MAX, wait_seconds * 2)
        with self.lock:
            os.close(self._wake)
            self._wake = -1

    def _note(self, failure: Failure) -> None:
        """Keep why the session is not served. A refusal is logged when it is another than the last, not each time."""
        self.last_error = failure
        identity = self.identity
        absent = failure.code in _ABSENCES
        # What may pass is told in other words each time (how much memory is free): its code is enough.
        said = self._said
        same = failure == said or (failure.retryable and said is not None and failure.code == said.code)
        if self._closing or (self._said_absent if absent else same):
            return
        if absent:
            self._said_absent = True
        else:
            self._said = failure
        log.log(
            logging.INFO if absent else logging.WARNING,
            "cairn: engine id %s (%s): %s at %s: %s",
            identity.engine_id,
            identity.role,
            "no daemon" if absent else "not served",
            identity.socket,
            " ".join(f"{failure}. {failure.action}".split())[: limits.TEXT_CHARACTERS_MAX],
        )

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._closing and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, limits.TICK_SECONDS))

    def _exchange(
        self, connection: Connection, tag: int, parts: Sequence[Buffer], seconds: float, descriptor: int = -1
    ) -> Frame:
        """Send a frame and wait for its answer, before anybody else uses the connection."""
        connection.send(parts, descriptor)
        self.statistics.frames_sent += 1
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._closing:
            if not connection.wait(min(left, limits.TICK_SECONDS)):
                continue
            answers = connection.receive()
            self.statistics.frames_received += len(answers)
            for frame in answers:
                close_descriptor(frame.descriptor)
            if not answers:
                continue
            if len(answers) > 1 or answers[0].tag not in (tag, 0):
                raise MalformedReplyError("an answer that nobody asked for")
            if answers[0].is_error:
                raise CairnError.of(read_failure(answers[0].body))
            if answers[0].tag != tag:
                raise MalformedReplyError("an answer that nobody asked for")
            return answers[0]
        raise ConnectionLostError("the daemon does not answer")

    def _establish(self, connection: Connection) -> Live:
        """Say HELLO, register windows, publish the connection."""
        tag = self.tag()
        body = self.identity.hello()
        parts = [pack_header(Operation.HELLO, 0, len(body), tag), body]
        answer = self._exchange(connection, tag, parts, limits.HELLO_SECONDS)
        if answer.operation != Operation.HELLO:
            raise MalformedReplyError("HELLO is answered by something else")
        hello = decode_cold(answer.body, HelloReply)
        if len(hello.namespaces) != len(self.identity.namespaces):
            raise MalformedReplyError("HELLO names other namespaces")
        live = Live(connection, hello)
        refused: set[Window] = set()
        while True:
            with self.lock:
                missing = [window for window in self.windows if self._registers(window, live, refused)]
                if not missing:
                    new_epoch = self.epoch is not None and self.epoch != hello.epoch
                    self.epoch = hello.epoch
                    if not refused:
                        self.last_error = self._said = None
                    # Who sees the session connected finds all the rest in place.
                    self._events.append(Connected(tag=0, epoch=hello.epoch, new_epoch=new_epoch))
                    self.statistics.connections += 1
                    self.live = live
                    break
            for window in missing:
                if not self._register(live, window):
                    refused.add(window)
        self._note_digests(hello)
        with self.changed:
            self.changed.notify_all()
        return live

    def _note_digests(self, hello: HelloReply) -> None:
        """Log what the namespaces are called at the daemon, when first connected and when that has changed."""
        digests = [given.digest for given in hello.namespaces]
        if digests == self._said_digests:
            return
        self._said_digests = digests
        identity = self.identity
        names = ", ".join(digest.hex() for digest in digests)
        log.info(
            "cairn: engine id %s (%s): connected to %s, namespace %s",
            identity.engine_id,
            identity.role,
            identity.socket,
            names,
        )

    @staticmethod
    def _registers(window: Window, live: Live, refused: set[Window]) -> bool:
        """Whether the thread itself registers a window: one whose layout is proven, or needs no proof."""
        return window.proven and not window.broken and window not in live.regions and window not in refused

    def _register(self, live: Live, window: Window) -> bool:
        """Register a window again; False when the daemon will not have it, now or later."""
        tag = self.tag()
        body = encode_cold(window.registration(live.handles[window.namespace], proof=False))
        header = pack_header(Operation.REGISTER, Flag.DESCRIPTOR, len(body), tag)
        try:
            answer = self._exchange(
                live.connection, tag, [header, body], limits.REGISTER_SECONDS, window.descriptor_to_send()
            )
        except CairnError as error:
            if error.retryable:
                raise
            self._note(error.failure)
            return False
        if answer.operation != Operation.REGISTER:
            raise MalformedReplyError("REGISTER is answered by something else")
        live.regions[window] = decode_cold(answer.body, RegisterReply).region
        return True

    def _serve(self, live: Live) -> None:
        """Read frames and keep time until the connection ends."""
        connection = live.connection
        beat_seconds = live.hello.heartbeat_ms / 1_000
        next_beat = time.monotonic() + beat_seconds
        next_tick = 0.0
        while not self._closing:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + beat_seconds
                self._beat(live, now)
            if now >= next_tick:
                next_tick = now + limits.TICK_SECONDS
                self._expire(now)
            until = min(next_tick, next_beat) if self.pending else next_beat
            self._horizon = until
            if connection.wait(until - now):
                for frame in self._received(connection):
                    self._dispatch(frame)
            elif self.pending:
                next_tick = 0.0

    def _received(self, connection: Connection) -> list[Frame]:
        frames = connection.receive()
        self.statistics.frames_received += len(frames)
        return frames

    def _dispatch(self, frame: Frame) -> None:
        if frame.tag == 0:
            drop_frame(frame)
            if frame.is_error:
                raise CairnError.of(read_failure(frame.body))
            raise MalformedReplyError("a reply without a tag")
        with self.lock:
            call = self.pending.get(frame.tag)
        if call is None:
            self.statistics.late_replies += 1
            drop_frame(frame)
            return
        try:
            final = call.handle(frame)
        except BaseException:
            drop_frame(frame)
            raise
        if final:
            self.forget(frame.tag)

    def _beat(self, live: Live, now: float) -> None:
        silence = max(limits.SILENCE_SECONDS_MIN, live.hello.lease_ms / 1_000)
        call = HeartbeatCall(self.tag(), now + silence, live.epoch_number)
        self.submit(live, call, [pack_header(Operation.HEARTBEAT, 0, 0, call.tag)])

    def _expire(self, now: float) -> None:
        """End calls whose time is over. Without its completion a job may still own rows: that ends the connection."""
        with self.lock:
            late = [call for call in self.pending.values() if call.deadline <= now]
        for call in late:
            if isinstance(call, HeartbeatCall):
                raise ConnectionLostError("the daemon does not answer heartbeats")
            if call.window is not None:
                raise ConnectionLostError("a job was not completed in time")
        for call in late:
            if self.forget(call.tag) is not None:
                self.statistics.deadlines_exceeded += 1
                call.fail(Failure(ErrorCode.DEADLINE_EXCEEDED, "the daemon did not answer in time"))

    def _end(self, connection: Connection | None, reason: str) -> None:
        """End a connection and every call on it; see the module's essay for the order."""
        with self.lock:
            live, self.live = self.live, None
        if connection is not None:
            connection.close()
        with self.lock:
            calls = list(self.pending.values())
            self.pending.clear()
            windows = list(self.windows)
        owners = {call.window for call in calls if call.window is not None}
        for window in windows:
            window.invalidate(unsettled=window in owners)
        now = time.monotonic()
        for call in calls:
            if call.window is None:
                self._finish(call, reason, now)
        for window in windows:
            if window in owners:
                self.statistics.windows_renewed += 1
                window.settle()
        for call in calls:
            if call.window is not None:
                self._finish(call, reason, now)
        if live is not None:
            self.statistics.connections_lost += 1
            self._events.append(Disconnected(tag=0, reason=reason))
        elif not self._closing:
            self.statistics.connect_failures += 1
        with self.changed:
            self.changed.notify_all()

    def _finish(self, call: Call, reason: str, now: float) -> None:
        late = call.deadline <= now
        if late:
            self.statistics.deadlines_exceeded += 1
        else:
            self.statistics.calls_unavailable += 1
        failure = Failure(ErrorCode.DEADLINE_EXCEEDED, reason) if late else unavailable(reason)
        try:
            call.fail(failure)
        except Exception as error:  # noqa: BLE001 (a sink of the caller's must not keep other calls from ending)
            self.statistics.internal_faults += 1
            self.last_error = Failure(ErrorCode.INTERNAL, repr(error))

    def forget_fills(self, call: StoreCall) -> None:
        """Expect no refusal any more of the FILLs of a STORE that has ended."""
        for tag in call.fill_tags:
            self.forget(tag)
