"""Calls in flight: what is expected under a tag, and how an answer to it is read.

Each kind of call checks its answer against what was asked before anything is believed: a hit is no longer than the
chain, a completion names each block of its job once, statuses add up. An answer that does not fit raises
`MalformedReplyError`, which ends the connection; then `fail` gives the miss that the call stands for. A call ends
exactly once, for whoever takes it out of the table of pending calls ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from cairn_kv import limits
from cairn_kv.completions import (
    CancelDone,
    ColdDone,
    Completion,
    EndRequestDone,
    FailedBlock,
    FillRefused,
    FlushDone,
    HintDone,
    LoadDone,
    LookupDone,
    PrefetchDone,
    PrefetchOffered,
    PrefetchOutcome,
    Proof,
    ProveDone,
    StatsDone,
    StoreDone,
    StoreOffered,
)
from cairn_kv.errors import ErrorCode, Failure, MalformedReplyError
from cairn_kv.protocol import (
    COMPLETION,
    FAILED_BLOCK,
    LOOKUP_KEY_AT,
    LOOKUP_REPLY,
    LOOKUP_REPLY_BYTES,
    STORE_REPLY,
    Flag,
    Frame,
    LookupBit,
    Operation,
    ProofVerdict,
    StoreStatus,
    Verdict,
    decode_cold,
    read_failure,
)
from cairn_kv.transport import close_descriptor
from cairn_kv.window import Window

Sink = Callable[[Completion], None]
"""Takes a completion. Called in the reader thread, or in the caller's when the call fails at once."""


class Call:
    """Base: one answer ends it. `deadline` is a time of the monotonic clock; `window`: whose rows a job owns."""

    operation: ClassVar[Operation]
    takes_descriptor: ClassVar[bool] = False

    def __init__(self, tag: int, sink: Sink, deadline: float, window: Window | None = None) -> None:
        self.tag = tag
        self.sink = sink
        self.deadline = deadline
        self.window = window

    def handle(self, frame: Frame) -> bool:
        """Take a frame of this tag; True when it was the last.

        Raises:
            MalformedReplyError: the frame does not answer this call.

        """
        if frame.operation != self.operation:
            raise MalformedReplyError(f"operation {frame.operation} answers {self.operation.name}")
        if frame.descriptor != -1 and not self.takes_descriptor:
            raise MalformedReplyError("a descriptor that nobody asked for")
        if frame.is_error:
            return self.refused(read_failure(frame.body))
        return self.answer(frame)

    def refused(self, failure: Failure) -> bool:
        """Take the daemon's error; True when the call has ended."""
        self.fail(failure)
        return True

    def answer(self, frame: Frame) -> bool:
        """Take a frame without error; True when it was the last."""
        raise NotImplementedError

    def fail(self, failure: Failure) -> None:
        """End the call with an error."""
        raise NotImplementedError


class LookupCall(Call):
    """LOOKUP of `count` keys in all, held ones included."""

    operation = Operation.LOOKUP

    def __init__(self, tag: int, sink: Sink, deadline: float, request_id: int, count: int, key_bytes: int) -> None:
        super().__init__(tag, sink, deadline)
        self.request_id = request_id
        self.count = count
        self.key_bytes = key_bytes
        self.leased = True
        self.resend: Callable[[], None] | None = None
        """Sends the whole chain under the same tag, for a daemon that has forgotten what it held."""
        self.keep: Callable[[], None] | None = None
        """Remembers that the daemon holds the chain."""

    def refused(self, failure: Failure) -> bool:
        """Send the chain whole if the daemon has forgotten it; else as any call."""
        resend, self.resend = self.resend, None
        if failure.code != ErrorCode.MALFORMED_FRAME or resend is None:
            return super().refused(failure)
        resend()
        return False

    def answer(self, frame: Frame) -> bool:
        """Read the hit."""
        body = frame.body
        if len(body) < LOOKUP_REPLY_BYTES or frame.is_completion:
            raise MalformedReplyError(f"a LOOKUP's reply of {len(body)} bytes")
        dram, nvme, remote, lease_ms, microseconds, worth, bits, proof_depth = LOOKUP_REPLY.unpack_from(body)
        proof = None
        if bits & LookupBit.PROOF_WANTED:
            if not 1 <= proof_depth <= self.count or frame.count != 0:
                raise MalformedReplyError(f"a proof of depth {proof_depth} of {self.count}")
            proof = Proof(proof_depth, body[LOOKUP_KEY_AT : LOOKUP_KEY_AT + self.key_bytes])
        if frame.count > self.count or max(dram, nvme, worth) > frame.count:
            raise MalformedReplyError(f"{frame.count} blocks hit of {self.count}")
        if self.leased and frame.count > 0 and frame.id == 0:
            raise MalformedReplyError("a hit without a lease")
        if self.keep is not None:
            self.keep()
        self.sink(
            LookupDone(
                tag=self.tag,
                request_id=self.request_id,
                hit=frame.count,
                lease=frame.id,
                dram_blocks=dram,
                nvme_blocks=nvme,
                remote_prefix_blocks=remote,
                estimated_load_microseconds=microseconds,
                worth_loading_blocks=worth,
                lease_ms=lease_ms,
                sampled=bits & LookupBit.SPLIT_SAMPLED != 0,
                clipped=bits & LookupBit.CLIPPED != 0,
                remote_asking=bits & LookupBit.REMOTE_ASKING != 0,
                proof=proof,
            )
        )
        return True

    def fail(self, failure: Failure) -> None:
        """Answer a miss."""
        self.sink(LookupDone(tag=self.tag, error=failure, request_id=self.request_id))


class HeadCall(Call):
    """The first part of a chain too long for one LOOKUP: what becomes of it shows in the last part's answer."""

    operation = Operation.LOOKUP

    def answer(self, frame: Frame) -> bool:
        """Ignore the answer."""
        return True

    def fail(self, failure: Failure) -> None:
        """Ignore the error."""


def _read_completion(frame: Frame, count: int) -> tuple[int, int, tuple[FailedBlock, ...]]:
    """Return microseconds, bytes and failed blocks of a job of `count` blocks."""
    body = frame.body
    if len(body) < COMPLETION.size:
        raise MalformedReplyError(f"a completion of {len(body)} bytes")
    failed_count, microseconds, size_bytes = COMPLETION.unpack_from(body)
    if len(body) != COMPLETION.size + failed_count * FAILED_BLOCK.size or frame.count + failed_count > count:
        raise MalformedReplyError(f"{failed_count} failed and {frame.count} landed of {count} blocks")
    if failed_count == 0:
        return microseconds, size_bytes, ()
    pairs = FAILED_BLOCK.iter_unpack(memoryview(body)[COMPLETION.size :])
    failed = tuple(FailedBlock(index, ErrorCode.read(code)) for index, code in pairs)
    if max(block.index for block in failed) >= count or len({block.index for block in failed}) != failed_count:
        raise MalformedReplyError("a block that is not in the job failed, or one twice")
    return microseconds, size_bytes, failed


def _all_failed(count: int, code: ErrorCode) -> tuple[FailedBlock, ...]:
    return tuple(FailedBlock(index, code) for index in range(count))


class LoadCall(Call):
    """LOAD of `count` blocks into rows of `window`."""

    operation = Operation.LOAD

    def __init__(self, tag: int, sink: Sink, deadline: float, window: Window, count: int) -> None:
        super().__init__(tag, sink, deadline, window)
        self.count = count

    def answer(self, frame: Frame) -> bool:
        """Read the completion: every block has landed or is named."""
        if not frame.is_completion:
            raise MalformedReplyError("a LOAD has no reply but its completion")
        microseconds, size_bytes, failed = _read_completion(frame, self.count)
        if frame.count + len(failed) != self.count:
            raise MalformedReplyError(f"{frame.count} landed and {len(failed)} failed of {self.count} blocks")
        self.sink(
            LoadDone(tag=self.tag, landed=frame.count, failed=failed, bytes=size_bytes, microseconds=microseconds)
        )
        return True

    def fail(self, failure: Failure) -> None:
        """Answer that every block failed."""
        self.sink(LoadDone(tag=self.tag, error=failure, failed=_all_failed(self.count, failure.code)))


class StoreCall(Call):
    """STORE of `count` blocks out of rows of `window`: a reply, and a completion unless nothing is to do."""

    operation = Operation.STORE

    def __init__(self, tag: int, sink: Sink, deadline: float, window: Window, count: int) -> None:
        super().__init__(tag, sink, deadline, window)
        self.count = count
        self.offered: StoreOffered | None = None
        self.job = 0
        """The daemon's number of the job, once it has replied."""
        self.fill_tags: list[int] = []
        """Tags under which a refusal of a FILL would come."""
        self.on_job: list[Callable[[int], None]] = []
        """Called with the job's number, for CANCELs that came before the reply."""
        self.on_end: Callable[[StoreCall], None] | None = None

    def answer(self, frame: Frame) -> bool:
        """Read the reply, then the completion."""
        if frame.is_completion:
            self._complete(frame)
            return True
        if self.offered is not None:
            raise MalformedReplyError("a second reply to a STORE")
        body = frame.body
        if frame.count != self.count or len(body) != STORE_REPLY.size + self.count:
            raise MalformedReplyError(f"a STORE's reply with {frame.count} keys of {self.count}")
        wanted, pending, resident_depth, bits = STORE_REPLY.unpack_from(body)
        statuses = body[STORE_REPLY.size :]
        counted = statuses.count(StoreStatus.WANTED), statuses.count(StoreStatus.PENDING)
        if (wanted, pending) != counted or max(statuses, default=0) > StoreStatus.PARENT_ABSENT:
            raise MalformedReplyError("statuses that do not add up")
        if (frame.id != 0) != (wanted + pending > 0):
            raise MalformedReplyError("a job for nothing, or none for something")
        self.job = frame.id
        self.offered = StoreOffered(
            tag=self.tag,
            statuses=statuses,
            wanted=wanted,
            pending=pending,
            resident_depth=resident_depth,
            parent_absent=bits & 1 != 0,
            final=frame.id == 0,
        )
        waiting, self.on_job = self.on_job, []
        if self.offered.final and self.on_end is not None:
            self.on_end(self)
        self.sink(self.offered)
        for act in waiting:
            act(self.job)
        return self.offered.final

    def _complete(self, frame: Frame) -> None:
        if self.offered is None:
            raise MalformedReplyError("a STORE's completion before its reply")
        microseconds, size_bytes, failed = _read_completion(frame, self.count)
        if frame.count > self.offered.wanted + self.offered.pending:
            raise MalformedReplyError("more blocks became visible than were wanted or pending")
        if self.on_end is not None:
            self.on_end(self)
        self.sink(
            StoreDone(tag=self.tag, landed=frame.count, failed=failed, bytes=size_bytes, microseconds=microseconds)
        )

    def fail(self, failure: Failure) -> None:
        """Answer that nothing was stored."""
        if self.on_end is not None:
            self.on_end(self)
        waiting, self.on_job = self.on_job, []
        self.sink(StoreDone(tag=self.tag, error=failure, failed=_all_failed(self.count, failure.code)))
        for act in waiting:
            act(0)


class FillCall(Call):
    """FILL: nothing comes back unless it is refused. Forgotten when its STORE ends."""

    operation = Operation.FILL

    def __init__(self, tag: int, sink: Sink, deadline: float, store_tag: int) -> None:
        super().__init__(tag, sink, deadline)
        self.store_tag = store_tag

    def answer(self, frame: Frame) -> bool:
        """Refuse an answer: there is none."""
        raise MalformedReplyError("a FILL is answered by its STORE's completion")

    def fail(self, failure: Failure) -> None:
        """Answer that the FILL was refused."""
        self.sink(FillRefused(tag=self.tag, error=failure, store_tag=self.store_tag))


class PrefetchCall(Call):
    """PREFETCH: a reply, then one completion unless it was refused."""

    operation = Operation.PREFETCH

    def __init__(self, tag: int, sink: Sink, deadline: float) -> None:
        super().__init__(tag, sink, deadline)
        self.offered = False

    def answer(self, frame: Frame) -> bool:
        """Read the verdict, then the outcome."""
        if not frame.is_completion:
            if self.offered:
                raise MalformedReplyError("a second reply to a PREFETCH")
            self.offered = True
            said = decode_cold(frame.body, Verdict)
            final = said.verdict == "refused"
            self.sink(
                PrefetchOffered(tag=self.tag, verdict=said.verdict, reason=said.reason, blocks=said.blocks, final=final)
            )
            return final
        if not self.offered or len(frame.body) < COMPLETION.size:
            raise MalformedReplyError("a PREFETCH's completion before its reply, or cut short")
        outcome, microseconds, size_bytes = COMPLETION.unpack_from(frame.body)
        try:
            known = PrefetchOutcome(outcome)
        except ValueError as error:
            raise MalformedReplyError(f"a PREFETCH's outcome {outcome}") from error
        self.sink(
            PrefetchDone(
                tag=self.tag,
                resident_blocks=frame.count,
                outcome=known,
                bytes=size_bytes,
                microseconds=microseconds,
            )
        )
        return True

    def fail(self, failure: Failure) -> None:
        """Answer that nothing was brought."""
        self.sink(PrefetchDone(tag=self.tag, error=failure))


class PlainCall(Call):
    """One reply ends it; `done` is made of it, or of the error."""

    done: ClassVar[type[Completion]]

    def answer(self, frame: Frame) -> bool:
        """Read the reply."""
        self.sink(self.done(tag=self.tag, **self.read(frame)))
        return True

    def read(self, frame: Frame) -> dict[str, Any]:
        """Return the reply as fields of `done`."""
        return {}

    def fail(self, failure: Failure) -> None:
        """Answer the error."""
        self.sink(self.done(tag=self.tag, error=failure))


class CancelCall(PlainCall):
    """CANCEL of a job. If it fails, the job still ends by itself."""

    operation = Operation.CANCEL
    done = CancelDone

    def read(self, frame: Frame) -> dict[str, Any]:
        """Whether the job was in flight."""
        return {"was_in_flight": frame.count > 0}


class FlushCall(PlainCall):
    """FLUSH: with the reply no job is in flight any more."""

    operation = Operation.FLUSH
    done = FlushDone


class EndRequestCall(PlainCall):
    """END_REQUEST that wants an answer."""

    operation = Operation.END_REQUEST
    done = EndRequestDone

    def read(self, frame: Frame) -> dict[str, Any]:
        """Whether the request was known."""
        return {"was_known": frame.count > 0}


class ProveCall(PlainCall):
    """PROVE."""

    operation = Operation.PROVE
    done = ProveDone

    def read(self, frame: Frame) -> dict[str, Any]:
        """The daemon's verdict."""
        return {"proven": decode_cold(frame.body, ProofVerdict).proven}


class HintCall(PlainCall):
    """HINT."""

    operation = Operation.HINT
    done = HintDone

    def read(self, frame: Frame) -> dict[str, Any]:
        """The daemon's verdict."""
        said = decode_cold(frame.body, Verdict)
        return {"verdict": said.verdict, "reason": said.reason}


class StatsCall(PlainCall):
    """STATS."""

    operation = Operation.STATS
    done = StatsDone

    def read(self, frame: Frame) -> dict[str, Any]:
        """The map."""
        return {"stats": decode_cold(frame.body, dict[str, Any])}


class ColdCall(Call):
    """A call of set-up (HELLO, REGISTER, PROVE_LAYOUT, UNREGISTER), whose reply is decoded as `kind`."""

    takes_descriptor = True

    def __init__(
        self,
        tag: int,
        sink: Sink,
        deadline: float,
        operation: Operation,
        kind: type[Any] | None,
        *,
        wants_descriptor: bool = False,
        window: Window | None = None,
    ) -> None:
        super().__init__(tag, sink, deadline, window)
        self.operation = operation  # type: ignore[misc]  # of the call, where others have it of their class
        self.kind = kind
        self.wants_descriptor = wants_descriptor

    def answer(self, frame: Frame) -> bool:
        """Decode the reply."""
        if (frame.flags & Flag.DESCRIPTOR != 0) != self.wants_descriptor:
            raise MalformedReplyError("a descriptor too many, or none")
        value = None if self.kind is None else decode_cold(frame.body, self.kind)
        self.sink(ColdDone(tag=self.tag, value=value, descriptor=frame.descriptor))
        return True

    def fail(self, failure: Failure) -> None:
        """Answer the error."""
        self.sink(ColdDone(tag=self.tag, error=failure))


class HeartbeatCall(Call):
    """HEARTBEAT: the answer shows that the same daemon is alive."""

    operation = Operation.HEARTBEAT

    def __init__(self, tag: int, deadline: float, epoch_number: int) -> None:
        super().__init__(tag, _ignore, deadline)
        self.epoch_number = epoch_number

    def answer(self, frame: Frame) -> bool:
        """Hold the epoch against HELLO's."""
        if frame.id != self.epoch_number:
            raise MalformedReplyError("a heartbeat of another daemon's life")
        return True

    def fail(self, failure: Failure) -> None:
        """Ignore the error: silence is what counts."""


def _ignore(_completion: Completion) -> None:
    pass


def drop_frame(frame: Frame) -> None:
    """Let go of a frame that nobody waits for."""
    close_descriptor(frame.descriptor)


def unavailable(message: str) -> Failure:
    """Return the failure of every call that finds no daemon."""
    return Failure(
        ErrorCode.UNAVAILABLE, message[: limits.TEXT_CHARACTERS_MAX], "Start the daemon, or name its socket."
    )
