"""The asynchronous half of a session: each call sends one frame and returns a tag, and `poll()` gives what came back.

Nothing here waits for the daemon, and nothing here raises because of it: without a daemon the completion that stands
for a miss is there at the next `poll()`. What is raised is a fault in the caller's arguments (ValueError), before
anything is sent.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Sequence

from cairn_kv import limits
from cairn_kv.calls import (
    Call,
    CancelCall,
    EndRequestCall,
    FillCall,
    FlushCall,
    HeadCall,
    HintCall,
    LoadCall,
    LookupCall,
    PrefetchCall,
    ProveCall,
    Sink,
    StatsCall,
    StoreCall,
)
from cairn_kv.completions import CancelDone, Completion, Connected, Disconnected
from cairn_kv.errors import CairnError, ErrorCode, Failure
from cairn_kv.keys import Buffer, Keys, Rows, count_keys, pack_numbers, pack_pairs, slice_keys
from cairn_kv.link import Identity, Link, Live
from cairn_kv.protocol import (
    U32_MAX,
    Flag,
    NamespaceDescriptor,
    Operation,
    encode_cold,
    pack_header,
    pack_load,
    pack_lookup,
    pack_store,
)
from cairn_kv.window import Window


class SubmitCalls:
    """Calls that return a tag. `Session` is this and the blocking calls."""

    def __init__(self, identity: Identity, seed: int | None) -> None:
        self._done: deque[Completion] = deque()
        self._events: deque[Connected | Disconnected] = deque(maxlen=limits.EVENTS_WAITING_MAX)
        self._link = Link(identity, self._events, seed)
        self._namespaces = identity.namespaces

    def poll(self) -> list[Completion]:
        """Return everything that ended since the last call: events of the connection first, then in order of arrival.

        Without a system call and without a lock: a queue that the reader thread fills. Call it once per engine step.
        """
        done, events = self._done, self._events
        if not done and not events:
            return []
        out: list[Completion] = [events.popleft() for _ in range(len(events))]
        out.extend([done.popleft() for _ in range(len(done))])
        return out

    def submit_lookup(
        self,
        request_id: int,
        keys: Keys,
        *,
        namespace: int = 0,
        keep_chain: bool = False,
        lease: bool = True,
        prefill_tokens_per_second: int = 0,
        timeout_seconds: float = limits.CALL_SECONDS,
        sink: Sink | None = None,
    ) -> int:
        """Ask for the longest readable prefix of a chain; ends in a `LookupDone`.

        Args:
            request_id: names the lease; the same one replaces it. Unique among all sessions of the engine id.
            keys: all keys of the chain from depth 1 on.
            namespace: position in the session's namespaces.
            keep_chain: the daemon keeps the chain, and the next call of this request sends only what is new.
            lease: make what is found readable until the request ends.
            prefill_tokens_per_second: what the engine computes; lets the daemon say what is worth loading. 0: unknown.
            timeout_seconds: later the answer is a miss.
            sink: takes the completion in place of `poll()`, in the reader thread.

        Raises:
            ValueError: keys do not fit the namespace, or a number is out of range.

        """
        key_bytes = self.namespace(namespace).key_bytes
        count = count_keys(keys, key_bytes)
        _within("request_id", request_id, 0, limits.REQUEST_ID_MAX)
        _within("prefill_tokens_per_second", prefill_tokens_per_second, 0, U32_MAX)
        live = self._link.live
        call = LookupCall(self._tag(), self._sink(sink), _deadline(timeout_seconds), request_id, count, key_bytes)
        call.leased = lease
        flags = (Flag.KEEP_CHAIN if keep_chain else 0) | (0 if lease else Flag.NO_LEASE)
        held = 0
        if live is not None and keep_chain:
            held = min(live.kept.get(request_id, 0), count)
            call.keep = lambda: live.keep(request_id, count)

        def send(standing: Live | None, first: int) -> None:
            self._send_lookup(standing, call, keys, first, int(flags), namespace, prefill_tokens_per_second)

        if held > 0:
            call.resend = lambda: send(live, 0)
        send(live, held)
        return call.tag

    def _send_lookup(
        self, live: Live | None, call: LookupCall, keys: Keys, held: int, flags: int, namespace: int, rate: int
    ) -> None:
        """Send the keys beyond `held`, in as many frames as they take; the last one has the answer."""
        if live is None:
            self._link.submit(None, call, [])
            return
        handle, key_bytes = live.handles[namespace], call.key_bytes
        step = min(live.keys_per_frame_max, (live.frame_body_bytes_max - 8) // key_bytes)
        while call.count - held > step:
            head = HeadCall(self._tag(), call.sink, call.deadline)
            parts = self._lookup_parts(head, call, keys, held, held + step, Flag.KEEP_CHAIN | Flag.NO_LEASE, handle, 0)
            self._link.submit(live, head, parts)
            held += step
            flags |= Flag.KEEP_CHAIN
        parts = self._lookup_parts(call, call, keys, held, call.count, flags, handle, rate)
        self._link.submit(live, call, parts)

    @staticmethod
    def _lookup_parts(
        framed: Call, call: LookupCall, keys: Keys, start: int, stop: int, flags: int, handle: int, rate: int
    ) -> list[Buffer]:
        data = slice_keys(keys, call.key_bytes, start, stop)
        fixed = pack_lookup(start, rate)
        body_bytes = len(fixed) + len(data)
        header = pack_header(
            Operation.LOOKUP, int(flags), body_bytes, framed.tag, call.request_id, stop - start, handle
        )
        return [header + fixed, data]

    def submit_load(
        self,
        window: Window,
        lease: int,
        start_depth: int,
        keys: Keys,
        rows: Rows,
        *,
        shard: int = 0,
        deadline_ms: int = 0,
        sink: Sink | None = None,
    ) -> int:
        """Copy leased blocks into rows of a window; ends in a `LoadDone`.

        Args:
            window: where to; its rows are the daemon's until the completion.
            lease: out of a look-up of any session of this engine id.
            start_depth: blocks of the chain before the first key.
            keys: of depth start_depth + 1 on, at most keys_per_frame_max.
            rows: the row of each key.
            shard: which shard of the blocks; a worker's is its own.
            deadline_ms: later the job fails; 0: 5,000.
            sink: takes the completion in place of `poll()`, in the reader thread.

        Raises:
            ValueError: keys or rows do not fit, or a number is out of range.

        """
        key_bytes = window.descriptor.key_bytes
        count = self._count(keys, key_bytes)
        data = slice_keys(keys, key_bytes, 0, count)
        numbers = pack_numbers(rows, count)
        wait_ms = deadline_ms or limits.LOAD_DEADLINE_MS
        live, region = self._standing(window)
        fixed = pack_load(start_depth, region, deadline_ms, shard)
        deadline = _deadline(wait_ms / 1_000) + limits.COMPLETION_GRACE_SECONDS
        call = LoadCall(self._tag(), self._sink(sink), deadline, window, count)
        handle = 0 if live is None else live.handles[window.namespace]
        body_bytes = len(fixed) + len(data) + len(numbers)
        header = pack_header(Operation.LOAD, 0, body_bytes, call.tag, lease, count, handle)
        self._link.submit(live, call, [header + fixed, data, numbers])
        return call.tag

    def submit_store(
        self,
        window: Window,
        start_depth: int,
        parent_key: Buffer | None,
        keys: Keys,
        *,
        rows: Rows | None = None,
        generation: int | None = None,
        lease: int = 0,
        shard: int = 0,
        deadline_ms: int = 0,
        sink: Sink | None = None,
    ) -> int:
        """Offer blocks; ends in a `StoreOffered` and, unless that is final, a `StoreDone`.

        With `rows` the bytes lie in the window already and the daemon copies what it wants. Without, gather the blocks
        of `StoreOffered.wanted_indices()` and call `submit_fill` within the daemon's store_fill_ms.

        Args:
            window: where from; rows named here are the daemon's until the end.
            start_depth: blocks of the chain before the first key.
            parent_key: key of depth start_depth; None at the root.
            keys: of depth start_depth + 1 on, full blocks only, at most keys_per_frame_max.
            rows: the row of each key.
            generation: with `rows`: `window.generation` as it was before the first byte was gathered.
            lease: moves to the deepest stored block; 0: none.
            shard: which shard of the blocks; a worker's is its own.
            deadline_ms: bounds the whole job; 0: store_fill_ms.
            sink: takes the completions in place of `poll()`, in the reader thread.

        Raises:
            ValueError: keys, rows or parent do not fit, or a number is out of range.

        """
        descriptor = window.descriptor
        count = self._count(keys, descriptor.key_bytes)
        if (start_depth == 0) != (parent_key is None) or (rows is None) != (generation is None):
            raise ValueError("parent_key belongs to start_depth > 0, generation to rows")
        parent = bytes(descriptor.key_bytes) if parent_key is None else bytes(parent_key)
        if len(parent) != descriptor.key_bytes:
            raise ValueError(f"parent_key has {descriptor.key_bytes} bytes")
        data = slice_keys(keys, descriptor.key_bytes, 0, count)
        numbers = b"" if rows is None else pack_numbers(rows, count)
        live, region = self._standing(window)
        if generation is not None and generation != window.generation:
            live = None
        fixed = pack_store(start_depth, region, deadline_ms, shard, count * descriptor.block_tokens, parent)
        fill_ms = limits.LOAD_DEADLINE_MS if live is None else live.hello.limits.store_fill_ms
        seconds = min(max(fill_ms, deadline_ms) / 1_000, limits.CALL_SECONDS_MAX)
        deadline = _deadline(seconds) + limits.COMPLETION_GRACE_SECONDS
        call = StoreCall(self._tag(), self._sink(sink), deadline, window, count)
        call.on_end = self._link.forget_fills
        handle = 0 if live is None else live.handles[window.namespace]
        flags = 0 if rows is None else int(Flag.DATA_READY)
        body_bytes = len(fixed) + len(data) + len(numbers)
        header = pack_header(Operation.STORE, flags, body_bytes, call.tag, lease, count, handle)
        self._link.submit(live, call, [header + fixed, data, numbers])
        return call.tag

    def submit_fill(
        self, store_tag: int, indices: Sequence[int], rows: Sequence[int], *, sink: Sink | None = None
    ) -> int:
        """Say that wanted blocks of a STORE lie gathered in rows. Answered only by a `FillRefused`.

        Several calls may share out the wanted blocks. Without the STORE in flight nothing is sent: its completion
        tells what became of it.

        Args:
            store_tag: what `submit_store` returned.
            indices: positions in the STORE.
            rows: the row of each.
            sink: takes a `FillRefused` in place of `poll()`, in the reader thread.

        Raises:
            ValueError: indices and rows differ in length.

        """
        body = pack_pairs(indices, rows)
        live = self._link.live
        store = self._link.pending.get(store_tag)
        call = FillCall(self._tag(), self._sink(sink), time.monotonic() + limits.CALL_SECONDS_MAX, store_tag)
        if not isinstance(store, StoreCall) or store.job == 0:
            return call.tag
        store.fill_tags.append(call.tag)
        header = pack_header(Operation.FILL, 0, len(body), call.tag, store.job, len(indices))
        self._link.submit(live, call, [header, body])
        if self._link.pending.get(store_tag) is not store:
            self._link.forget(call.tag)
        return call.tag

    def submit_prefetch(
        self,
        *,
        request_id: int | None = None,
        lease: int = 0,
        keys: Keys | None = None,
        namespace: int = 0,
        deadline_ms: int = 0,
        priority: int = 1,
        sink: Sink | None = None,
    ) -> int:
        """Bring a chain into DRAM; ends in a `PrefetchOffered` and, unless that is final, a `PrefetchDone`.

        Args:
            request_id: of a look-up; also where it hit nothing. Either this or `lease`.
            lease: of a look-up.
            keys: the whole chain; None: what the daemon keeps, or what the lease stands on.
            namespace: position in the session's namespaces.
            deadline_ms: 0: 5,000.
            priority: 0 as urgent as a LOAD, 1 behind LOADs, 2 behind everything.
            sink: takes the completions in place of `poll()`, in the reader thread.

        Raises:
            ValueError: both or neither of request_id and lease, or keys that do not fit.

        """
        if (request_id is None) == (lease == 0):
            raise ValueError("either request_id or lease")
        key_bytes = self.namespace(namespace).key_bytes
        body: dict[str, object] = {"priority": priority, "deadlineMs": deadline_ms}
        if keys is not None:
            body["keys"] = slice_keys(keys, key_bytes, 0, count_keys(keys, key_bytes))
        packed = encode_cold(body)
        if len(packed) > limits.COLD_BODY_BYTES_MAX:
            raise ValueError("a chain this long is kept by a look-up (keep_chain), not sent with the prefetch")
        live = self._link.live
        seconds = (deadline_ms or limits.LOAD_DEADLINE_MS) / 1_000
        call = PrefetchCall(self._tag(), self._sink(sink), _deadline(seconds) + limits.COMPLETION_GRACE_SECONDS)
        flags = 0 if request_id is None else int(Flag.BY_REQUEST)
        identity = lease if request_id is None else request_id
        handle = 0 if live is None else live.handles[namespace]
        header = pack_header(Operation.PREFETCH, flags, len(packed), call.tag, identity, 0, handle)
        self._link.submit(live, call, [header, packed])
        return call.tag

    def submit_cancel(self, tag: int, *, sink: Sink | None = None) -> int:
        """Cancel the job of a tag (LOAD, STORE, PREFETCH); its own completion comes before this `CancelDone`."""
        live = self._link.live
        job = self._link.pending.get(tag)
        call = CancelCall(self._tag(), self._sink(sink), _deadline(limits.CALL_SECONDS))
        if isinstance(job, StoreCall) and job.job == 0:

            def cancel(number: int) -> None:
                if number == 0:
                    call.sink(CancelDone(tag=call.tag))
                else:
                    self._send_empty(live, call, Operation.CANCEL, number)

            job.on_job.append(cancel)
            if job.job != 0 or self._link.pending.get(tag) is not job:
                # The reply overtook this call; whoever takes the entry out of the list acts on it.
                with contextlib.suppress(ValueError):
                    job.on_job.remove(cancel)
                    cancel(job.job)
            return call.tag
        if not isinstance(job, (LoadCall, StoreCall, PrefetchCall)):
            call.sink(CancelDone(tag=call.tag))
            return call.tag
        self._send_empty(live, call, Operation.CANCEL, job.job if isinstance(job, StoreCall) else tag)
        return call.tag

    def submit_flush(self, *, timeout_seconds: float = limits.CALL_SECONDS, sink: Sink | None = None) -> int:
        """Wait for all jobs of this session; ends in a `FlushDone`."""
        call = FlushCall(self._tag(), self._sink(sink), _deadline(timeout_seconds))
        self._send_empty(self._link.live, call, Operation.FLUSH, 0)
        return call.tag

    def submit_prove(self, key: Buffer, *, ok: bool, namespace: int = 0, sink: Sink | None = None) -> int:
        """Give the verdict on a look-up's proof; ends in a `ProveDone`."""
        live = self._link.live
        call = ProveCall(self._tag(), self._sink(sink), _deadline(limits.CALL_SECONDS))
        handle = 0 if live is None else live.handles[namespace]
        self._send_cold(live, call, {"namespace": handle, "key": bytes(key), "ok": ok})
        return call.tag

    def submit_hint(
        self,
        key: Buffer,
        kind: str,
        *,
        ttl_ms: int | None = None,
        value: float | None = None,
        namespace: int = 0,
        sink: Sink | None = None,
    ) -> int:
        """Advise on a chain (`retain`, `drop`, `priority`, `sessionEnd`, `nextUse`); ends in a `HintDone`."""
        live = self._link.live
        call = HintCall(self._tag(), self._sink(sink), _deadline(limits.CALL_SECONDS))
        body: dict[str, object] = {
            "namespace": 0 if live is None else live.handles[namespace],
            "key": bytes(key),
            "kind": kind,
        }
        if ttl_ms is not None:
            body["ttlMs"] = ttl_ms
        if value is not None:
            body["value"] = value
        self._send_cold(live, call, body)
        return call.tag

    def submit_stats(self, *, sink: Sink | None = None) -> int:
        """Ask what the daemon knows of this instance and the node; ends in a `StatsDone`."""
        call = StatsCall(self._tag(), self._sink(sink), _deadline(limits.CALL_SECONDS))
        self._send_empty(self._link.live, call, Operation.STATS, 0)
        return call.tag

    def submit_end_request(self, request_id: int, *, sink: Sink | None = None) -> int:
        """End a request as `end_request` does, with an `EndRequestDone` once the daemon has done so."""
        live = self._link.live
        if live is not None:
            live.kept.pop(request_id, None)
        call = EndRequestCall(self._tag(), self._sink(sink), _deadline(limits.CALL_SECONDS))
        self._send_empty(live, call, Operation.END_REQUEST, request_id)
        return call.tag

    def end_request(self, request_id: int) -> None:
        """End a request: its lease and kept chain. Nothing comes back."""
        _within("request_id", request_id, 0, limits.REQUEST_ID_MAX)
        live = self._link.live
        if live is not None:
            live.kept.pop(request_id, None)
        self._link.tell(live, [pack_header(Operation.END_REQUEST, int(Flag.NO_REPLY), 0, 0, request_id)])

    def touch(self, keys: Keys, *, namespace: int = 0) -> None:
        """Say that chains were used, each by the key of its deepest block. Nothing comes back.

        Raises:
            ValueError: keys do not fit the namespace.

        """
        key_bytes = self.namespace(namespace).key_bytes
        count = self._count(keys, key_bytes)
        data = slice_keys(keys, key_bytes, 0, count)
        live = self._link.live
        if live is not None:
            header = pack_header(Operation.TOUCH, int(Flag.NO_REPLY), len(data), 0, 0, count, live.handles[namespace])
            self._link.tell(live, [header, data])

    def namespace(self, position: int) -> NamespaceDescriptor:
        """Return what was declared at a position.

        Raises:
            ValueError: there is none.

        """
        if not 0 <= position < len(self._namespaces):
            raise ValueError(f"namespace {position} of {len(self._namespaces)}")
        return self._namespaces[position]

    def _send_empty(self, live: Live | None, call: Call, operation: Operation, identity: int) -> None:
        self._link.submit(live, call, [pack_header(operation, 0, 0, call.tag, identity)])

    def _send_cold(self, live: Live | None, call: Call, body: object, identity: int = 0) -> None:
        packed = encode_cold(body)
        self._link.submit(live, call, [pack_header(call.operation, 0, len(packed), call.tag, identity), packed])

    def _standing(self, window: Window) -> tuple[Live | None, int]:
        """Return the connection on which the window is registered, and its region there."""
        live = self._link.live
        region = 0 if live is None else live.regions.get(window, 0)
        return (None, 0) if region == 0 else (live, region)

    def _count(self, keys: Keys, key_bytes: int) -> int:
        count = count_keys(keys, key_bytes)
        if not 1 <= count <= limits.KEYS_PER_FRAME_MAX:
            raise ValueError(f"{count} keys: 1 to {limits.KEYS_PER_FRAME_MAX} in one call")
        return count

    def _tag(self) -> int:
        if len(self._done) + len(self._link.pending) > limits.COMPLETIONS_WAITING_MAX:
            raise CairnError.of(Failure(ErrorCode.OVERLOADED, "poll() is not called"))
        return self._link.tag()

    def _sink(self, sink: Sink | None) -> Sink:
        return self._done.append if sink is None else sink


def _deadline(seconds: float) -> float:
    if not 0 <= seconds <= limits.CALL_SECONDS_MAX:
        raise ValueError(f"a deadline of {seconds} s: 0 to {limits.CALL_SECONDS_MAX}")
    return time.monotonic() + seconds


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} {value}: {least} to {most}")
