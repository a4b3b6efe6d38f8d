"""The daemon's absence, death, silence and return; forks; and a daemon that breaks the protocol."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time

import pytest
from daemon import Daemon, descriptor, eventually, fill, keys_of, payload_of, store
from fake import EPOCH_NUMBER, FakeDaemon, Peer, hello_reply, idle, register_reply, reply_frame

from cairn_kv import (
    CairnError,
    Completion,
    Connected,
    Disconnected,
    ErrorCode,
    LoadDone,
    LookupDone,
    Session,
    StoreDone,
    blocking,
    limits,
)
from cairn_kv.protocol import Flag, Operation, encode_cold


def await_tag(session: Session, tag: int) -> Completion:
    """Poll until the call of this tag has ended."""
    found: list[Completion] = []

    def came() -> bool:
        found.extend(one for one in session.poll() if one.tag == tag)
        return bool(found)

    eventually(f"the call of tag {tag} ends", came)
    return found[0]


def test_without_a_daemon_every_call_is_a_miss_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    absent = str(tmp_path_factory.mktemp("absent") / "engine.sock")
    with Session(absent, "alone", [descriptor()]) as session:
        window = session.create_window(4)
        keys = keys_of(1, 2)
        assert session.lookup(1, keys).error is not None
        tags = [
            session.submit_lookup(2, keys),
            session.submit_load(window, 5, 0, keys, [0, 1]),
            session.submit_store(window, 0, None, keys, rows=[0, 1], generation=window.generation),
        ]
        session.end_request(1)
        session.touch(keys)
        done = session.poll()
        assert [one.tag for one in done] == tags
        assert [type(one) for one in done] == [LookupDone, LoadDone, StoreDone]
        assert all(one.error is not None and one.error.code == ErrorCode.UNAVAILABLE for one in done)
        assert not session.connected
        eventually("a reason is given", lambda: session.last_error is not None)
        with pytest.raises(CairnError):
            session.create_window(4, make="daemon")


def test_an_engine_that_never_polls_is_told_so(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMPLETIONS_WAITING_MAX", 3)
    absent = str(tmp_path_factory.mktemp("absent") / "engine.sock")
    with Session(absent, "deaf", [descriptor()]) as session:
        for request in range(4):
            session.submit_lookup(request, keys_of(1, 1))
        with pytest.raises(CairnError, match="poll"):
            session.submit_lookup(4, keys_of(1, 1))
        assert len(session.poll()) == 4
        session.submit_lookup(5, keys_of(1, 1))
        assert len(session.poll()) == 1


def test_a_sink_that_raises_costs_the_connection_and_nothing_else(daemon: Daemon) -> None:
    def fault(_done: Completion) -> None:
        raise RuntimeError("a fault of the adapter's")

    with Session(daemon.socket, "faulty-sink", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        session.submit_lookup(1, keys_of(9, 1), sink=fault)
        eventually("the fault is counted", lambda: session.statistics().internal_faults > 0)
        eventually("the session is joined again", lambda: session.lookup(2, keys_of(9, 1)).ok)


def test_a_session_joins_a_daemon_that_comes_later_and_registers_its_windows() -> None:
    late = Daemon()
    try:
        with Session(late.socket, "early", [descriptor()]) as session:
            window = session.create_window(8)
            assert not session.registered(window)
            late.start()
            assert session.wait_connected(60.0)
            assert session.registered(window)
            keys = keys_of(2, 3)
            store(session, window, keys)
            assert session.lookup(1, keys).hit == 3
    finally:
        late.remove()


def test_the_daemon_s_death_ends_what_is_in_flight_and_its_return_brings_hits_back(own_daemon: Daemon) -> None:
    with Session(own_daemon.socket, "survivor", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        window = session.create_window(16)
        keys = keys_of(3, 4)
        store(session, window, keys)
        first_epoch = session.epoch
        generation = window.generation
        window.row(12)[:4] = b"kept"
        session.poll()
        # Frozen, so that the calls are in flight for certain when it dies.
        own_daemon.send(signal.SIGSTOP)
        store_tag = session.submit_store(window, 4, keys[3], keys_of(4, 1))
        load_tag = session.submit_load(window, 77, 0, keys, [4, 5, 6, 7])
        lookup_tag = session.submit_lookup(5, keys)
        own_daemon.kill()
        ended: dict[int, Completion] = {}
        eventually("every call ends", lambda: ended.update({one.tag: one for one in session.poll()}) or len(ended) >= 4)
        assert {type(ended[store_tag]), type(ended[load_tag]), type(ended[lookup_tag])} == {
            StoreDone,
            LoadDone,
            LookupDone,
        }
        assert isinstance(ended[0], Disconnected)
        assert all(ended[tag].error is not None for tag in (store_tag, load_tag, lookup_tag))
        # Attempts to come back that fail meanwhile count on.
        assert window.generation > generation
        assert session.statistics().windows_renewed == 1
        own_daemon.start()
        assert session.wait_connected(60.0)
        assert session.registered(window)
        assert session.epoch != first_epoch
        assert any(isinstance(one, Connected) and one.new_epoch for one in session.poll())
        found = session.lookup(6, keys)
        assert found.hit == 4
        assert session.load(window, found.lease, 0, keys, [8, 9, 10, 11]).landed == 4
        assert bytes(window.row(11)) == payload_of(keys[3])
        assert bytes(window.row(12)[:4]) == b"kept"


def test_a_frozen_daemon_is_given_up_and_what_it_writes_later_is_not_seen() -> None:
    frozen = Daemon({"engineApi": {"heartbeatMs": 300}}).start()
    try:
        with Session(frozen.socket, "patient", [descriptor()]) as session:
            assert session.wait_connected(30.0)
            window = session.create_window(8)
            keys = keys_of(5, 2)
            store(session, window, keys)
            found = session.lookup(1, keys)
            row = window.row(4)
            frozen.send(signal.SIGSTOP)
            tag = session.submit_load(window, found.lease, 0, keys, [4, 5], deadline_ms=60_000)
            await_tag(session, tag)
            assert not session.connected
            assert session.lookup(1, keys).error is not None
            row[:] = b"m" * len(row)
            frozen.send(signal.SIGCONT)
            assert session.wait_connected(60.0)
            assert bytes(row) == b"m" * len(row)
            keys_again = keys_of(6, 1)
            fill(window, keys_again, [4])
            result = session.store(window, 0, None, keys_again, [4], generation=window.generation)
            assert result.done.landed == 1
    finally:
        frozen.remove()


def test_closing_a_session_frees_its_leases_at_the_daemon(daemon: Daemon) -> None:
    keys = keys_of(7, 2)
    with Session(daemon.socket, "keeper", [descriptor()]) as keeper:
        assert keeper.wait_connected(30.0)
        store(keeper, keeper.create_window(2), keys)
        with Session(daemon.socket, "keeper", [descriptor()]) as other:
            assert other.wait_connected(30.0)
            assert other.lookup(1, keys).hit == 2
            assert keeper.stats().stats["leases"] == 1
        eventually("the lease is freed", lambda: keeper.stats().stats["leases"] == 0)
    assert keeper.closed
    assert keeper.lookup(1, keys).error is not None


def test_a_forked_child_does_not_keep_the_connection_open(daemon: Daemon) -> None:
    keys = keys_of(8, 1)
    with Session(daemon.socket, "watcher", [descriptor()]) as watcher:
        assert watcher.wait_connected(30.0)
        parent = Session(daemon.socket, "watcher", [descriptor()])
        assert parent.wait_connected(30.0)
        store(parent, parent.create_window(1), keys)
        assert parent.lookup(1, keys).hit == 1
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write_end)
            missed = parent.closed and parent.lookup(1, keys).error is not None
            os.read(read_end, 1)
            os._exit(0 if missed else 1)
        os.close(read_end)
        parent.close()
        eventually("the lease is freed", lambda: watcher.stats().stats["leases"] == 0)
        os.close(write_end)
        assert os.waitpid(child, 0)[1] == 0


def test_calls_of_several_threads_each_get_their_own_answer(daemon: Daemon) -> None:
    with Session(daemon.socket, "threads", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        window = session.create_window(64)
        chains = {length: keys_of(100 + length, length) for length in (1, 2, 3, 4)}
        for keys in chains.values():
            store(session, window, keys)
        wrong: list[object] = []

        def ask(length: int) -> None:
            wrong.extend(found for _ in range(100) if (found := session.lookup(length, chains[length])).hit != length)

        threads = [threading.Thread(target=ask, args=(length,)) for length in chains]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert wrong == []
        assert session.statistics().late_replies == 0


def test_a_look_up_that_is_not_answered_in_time_is_a_miss_and_its_late_answer_is_dropped(fake: FakeDaemon) -> None:
    answer_now = threading.Event()

    def script(peer: Peer) -> None:
        asked = peer.read()
        answer_now.wait(30.0)
        peer.send(reply_frame(Operation.LOOKUP, asked.tag, bytes(64)))
        idle(peer)

    fake.script = script
    with Session(fake.socket, "late", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        missed = session.lookup(1, keys_of(1, 1), timeout_seconds=0.01)
        assert missed.error is not None
        assert missed.error.code == ErrorCode.DEADLINE_EXCEEDED
        tag = session.submit_lookup(2, keys_of(1, 1), timeout_seconds=0.05)
        await_tag(session, tag)
        answer_now.set()
        eventually("the late answer is counted", lambda: session.statistics().late_replies == 1)
        assert session.connected


def test_a_job_that_is_given_up_waiting_for_ends_the_connection_and_what_is_written_later_is_not_seen(
    fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMPLETION_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(blocking, "_GUARD_SECONDS", 0.0)
    memories: list[int] = []

    def script(peer: Peer) -> None:
        while True:
            frame = peer.read()
            if frame.operation == Operation.REGISTER:
                memories.append(frame.descriptor)
                peer.send(register_reply(frame.tag, 1))

    fake.script = script
    with Session(fake.socket, "impatient", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        window = session.create_window(4)
        inbox: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        tag = session.submit_load(window, 5, 0, keys_of(1, 1), [0], deadline_ms=60_000, sink=inbox.put)
        done = session.take(inbox, tag, 0.01)
        assert isinstance(done, LoadDone)
        assert done.error is not None
        assert done.error.code == ErrorCode.DEADLINE_EXCEEDED
        assert session.statistics().windows_renewed == 1
        assert session.statistics().deadlines_exceeded == 1
        os.pwrite(memories[0], b"late", window.offset_bytes)
        assert bytes(window.row(0)[:4]) == bytes(4)
        assert inbox.empty(), "the call ended once"
    for memory in memories:
        os.close(memory)


def test_replies_that_come_byte_by_byte_are_put_together(fake: FakeDaemon) -> None:
    def script(peer: Peer) -> None:
        for _ in range(3):
            asked = peer.read()
            for byte in reply_frame(Operation.LOOKUP, asked.tag, bytes(64)):
                peer.send(bytes([byte]))
        idle(peer)

    fake.script = script
    with Session(fake.socket, "slow", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        for _ in range(3):
            assert session.lookup(1, keys_of(1, 1)).ok


def test_a_completion_that_names_every_block_of_the_largest_job_is_read(fake: FakeDaemon) -> None:
    count = limits.KEYS_PER_FRAME_MAX

    def script(peer: Peer) -> None:
        while (asked := peer.read()).operation != Operation.LOAD:
            if asked.operation == Operation.REGISTER:
                peer.send(register_reply(asked.tag, 1))
        failed = b"".join(index.to_bytes(4, "little") + (404).to_bytes(4, "little") for index in range(count))
        body = count.to_bytes(4, "little") + bytes(12) + failed
        peer.send(reply_frame(Operation.LOAD, asked.tag, body, flags=int(Flag.COMPLETION)))
        idle(peer)

    fake.script = script
    with Session(fake.socket, "largest", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        window = session.create_window(1)
        done = session.load(window, 1, 0, bytes(32 * count), [0] * count)
        assert done.error is None
        assert len(done.failed) == count
        assert done.failed[-1].code == ErrorCode.BLOCK_NOT_READABLE


@pytest.mark.parametrize(
    "over",
    [
        {"protocol": 2},
        {"epoch": "not hexadecimal"},
        {"epoch": 7},
        {"namespaces": []},
        {"namespaces": [{"handle": 0, "digest": bytes(16)}]},
        {"heartbeatMs": 0},
        {"heartbeatMs": "2000"},
        {"limits": {}},
        {"limits": None},
    ],
)
def test_a_reply_to_hello_that_breaks_a_bound_is_counted_and_tried_again(
    fake: FakeDaemon, over: dict[str, object]
) -> None:
    fake.hello = hello_reply(**over)
    with Session(fake.socket, "bounds", [descriptor()]) as session:
        eventually("it is counted", lambda: session.statistics().malformed_replies > 0)
        assert not session.connected
        fake.hello = hello_reply()
        fake.script = idle
        assert session.wait_connected(30.0)


def test_a_daemon_that_does_not_read_costs_a_refused_call_and_not_a_stall(
    fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEND_BACKLOG_BYTES_MAX", 4 * limits.MIB)
    done_reading = threading.Event()

    def script(_peer: Peer) -> None:
        done_reading.wait(60.0)

    fake.script = script
    with Session(fake.socket, "unread", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        session.poll()
        keys = bytes(32 * 32_768)
        for request in range(16):
            session.submit_lookup(request, keys)
        refused = [one for one in session.poll() if one.error is not None]
        assert refused
        assert {one.error.code for one in refused if one.error} == {ErrorCode.OVERLOADED}
        assert session.statistics().calls_overloaded == len(refused)
        done_reading.set()


def test_a_large_frame_goes_out_whole_through_a_full_socket(fake: FakeDaemon) -> None:
    received: list[bytes] = []

    def script(peer: Peer) -> None:
        for _ in range(4):
            time.sleep(0.05)
            asked = peer.read()
            received.append(asked.body[8:])
            peer.send(reply_frame(Operation.LOOKUP, asked.tag, bytes(64)))
        idle(peer)

    fake.script = script
    with Session(fake.socket, "large", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        bodies = [bytearray(os.urandom(32 * 65_536)) for _ in range(4)]
        wanted = [bytes(body) for body in bodies]
        for request, body in enumerate(bodies):
            session.submit_lookup(request, body)
            body[:] = bytes(len(body))  # What was submitted is the caller's again.
        eventually("all frames arrive", lambda: len(received) == 4)
        assert received == wanted


def test_a_heartbeat_of_another_life_ends_the_connection(fake: FakeDaemon) -> None:
    def script(peer: Peer) -> None:
        asked = peer.read()
        peer.send(reply_frame(Operation.HEARTBEAT, asked.tag, identity=EPOCH_NUMBER + 1))
        idle(peer)

    fake.hello = hello_reply(heartbeatMs=20, leaseMs=60)
    fake.script = script
    with Session(fake.socket, "twin", [descriptor()]) as session:
        eventually("it is counted", lambda: session.statistics().malformed_replies > 0)


def test_a_daemon_that_says_it_is_full_is_asked_again_later(fake: FakeDaemon) -> None:
    body = encode_cold({"code": 107, "name": "tooManyConnections", "message": "full", "action": "wait"})
    fake.refuse = lambda _hello: reply_frame(0, 0, body, flags=int(Flag.ERROR))
    with Session(fake.socket, "crowd", [descriptor()]) as session:
        eventually(
            "the error is told",
            lambda: session.last_error is not None and session.last_error.code == ErrorCode.TOO_MANY_CONNECTIONS,
        )
        fake.refuse = None
        fake.script = idle
        assert session.wait_connected(30.0)
        assert session.last_error is None
