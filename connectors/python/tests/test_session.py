"""The client against a real daemon that stays up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import pytest
from daemon import KEY_BYTES, ROW_BYTES, Daemon, descriptor, eventually, fill, keys_of, payload_of, store

from cairn_kv import (
    CancelDone,
    Completion,
    Connected,
    ErrorCode,
    LayoutAdapter,
    LoadDone,
    LookupDone,
    Session,
    StoreDone,
    StoreOffered,
    StoreStatus,
    Window,
    WindowError,
)

FAMILIES: Iterator[int] = count(1_000)


def chain(blocks: int) -> list[bytes]:
    """A chain that no other test uses."""
    return keys_of(next(FAMILIES), blocks)


def polled(session: Session, kinds: tuple[type[Completion], ...], wanted: int = 1) -> list[Completion]:
    """Poll as an engine's step does until enough completions of these kinds have come."""
    found: list[Completion] = []

    def enough() -> bool:
        found.extend(done for done in session.poll() if isinstance(done, kinds))
        return len(found) >= wanted

    eventually(f"{wanted} of {[kind.__name__ for kind in kinds]}", enough)
    return found


def test_what_is_stored_is_found_and_comes_back_byte_for_byte(session: Session) -> None:
    window = session.create_window(24)
    keys = chain(8)
    store(session, window, keys)
    found = session.lookup(1, keys)
    assert (found.hit, found.error, found.dram_blocks) == (8, None, 8)
    loaded = session.load(window, found.lease, 0, keys, range(8, 16))
    assert (loaded.landed, loaded.failed, loaded.bytes) == (8, (), 8 * ROW_BYTES)
    for index, key in enumerate(keys):
        assert bytes(window.row(8 + index)) == payload_of(key)


def test_a_miss_has_no_lease(session: Session) -> None:
    found = session.lookup(1, chain(3))
    assert (found.hit, found.lease, found.error) == (0, 0, None)


def test_a_longer_chain_hits_as_far_as_it_is_stored(session: Session) -> None:
    window = session.create_window(8)
    keys = chain(8)
    store(session, window, keys[:5])
    assert session.lookup(1, keys).hit == 5
    assert session.lookup(2, b"".join(keys)).hit == 5


def test_the_asynchronous_calls_answer_by_poll_under_their_tags(session: Session) -> None:
    window = session.create_window(8)
    keys = chain(4)
    generation = window.generation
    fill(window, keys, [0, 1, 2, 3])
    tag = session.submit_store(window, 0, None, keys, rows=[0, 1, 2, 3], generation=generation)
    offered, done = polled(session, (StoreOffered, StoreDone), 2)
    assert isinstance(offered, StoreOffered)
    assert isinstance(done, StoreDone)
    assert (offered.tag, done.tag, offered.wanted, done.landed, offered.final) == (tag, tag, 4, 4, False)
    tag = session.submit_lookup(7, keys)
    (found,) = polled(session, (LookupDone,))
    assert isinstance(found, LookupDone)
    assert (found.tag, found.request_id, found.hit) == (tag, 7, 4)
    tag = session.submit_load(window, found.lease, 0, keys, [4, 5, 6, 7])
    (loaded,) = polled(session, (LoadDone,))
    assert isinstance(loaded, LoadDone)
    assert (loaded.tag, loaded.landed) == (tag, 4)
    assert session.poll() == []


def test_poll_tells_of_the_connection_first(daemon: Daemon) -> None:
    with Session(daemon.socket, "poll-events", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        (connected,) = session.poll()
        assert isinstance(connected, Connected)
        assert (connected.epoch, connected.new_epoch) == (session.epoch, False)


def test_a_sink_takes_completions_in_place_of_poll(session: Session) -> None:
    session.poll()
    taken: list[Completion] = []
    tag = session.submit_lookup(1, chain(2), sink=taken.append)
    eventually("the sink is called", lambda: bool(taken))
    assert taken[0].tag == tag
    assert session.poll() == []


def test_only_wanted_blocks_are_gathered(session: Session) -> None:
    window = session.create_window(8)
    keys = chain(6)
    store(session, window, keys[:2])
    gathered: list[int] = []

    def gather(index: int, row: memoryview) -> None:
        gathered.append(index)
        row[:] = payload_of(keys[index])

    result = session.store(window, 0, None, keys, list(range(6)), gather=gather)
    assert gathered == [2, 3, 4, 5]
    assert result.offered is not None
    assert list(result.offered.statuses) == [StoreStatus.PRESENT] * 2 + [StoreStatus.WANTED] * 4
    assert (result.done.landed, result.done.failed) == (4, ())
    again = session.store(window, 0, None, keys, list(range(6)), gather=gather)
    assert again.offered is not None
    assert again.offered.final
    assert session.lookup(1, keys).hit == 6


def test_a_gather_that_raises_cancels_the_store_and_tells_the_caller(session: Session) -> None:
    window = session.create_window(4)

    def gather(_index: int, _row: memoryview) -> None:
        raise LookupError("the block is gone")

    with pytest.raises(LookupError):
        session.store(window, 0, None, chain(2), [0, 1], gather=gather)
    assert session.flush().ok


def test_a_store_below_an_absent_parent_says_from_where_to_offer_again(session: Session) -> None:
    window = session.create_window(8)
    keys = chain(6)
    store(session, window, keys[:2])
    generation = window.generation
    fill(window, keys[4:], [0, 1])
    result = session.store(window, 4, keys[3], keys[4:], [0, 1], generation=generation)
    assert result.offered is not None
    assert (result.offered.parent_absent, result.offered.final) == (True, True)
    assert result.done.landed == 0


def test_a_store_of_gathered_rows_names_the_generation_it_was_gathered_in(session: Session) -> None:
    window = session.create_window(4)
    keys = chain(1)
    stale = session.store(window, 0, None, keys, [0], generation=window.generation - 1)
    assert stale.offered is None
    assert stale.done.error is not None
    assert stale.done.error.code == ErrorCode.UNAVAILABLE
    assert session.lookup(1, keys).hit == 0


def test_a_kept_chain_is_extended_and_sent_whole_again_when_it_was_forgotten(session: Session) -> None:
    window = session.create_window(16)
    keys = chain(12)
    store(session, window, keys)
    assert session.lookup(9, keys[:4], keep_chain=True).hit == 4
    live = session._link.live
    assert live is not None
    assert live.kept[9] == 4
    assert session.lookup(9, keys[:10], keep_chain=True).hit == 10
    assert session.lookup(9, b"".join(keys), keep_chain=True).hit == 12
    # Another process of the instance ends the request: the daemon holds nothing of the chain any more.
    assert session.end_request_and_wait(9).was_known
    live.keep(9, 12)
    found = session.lookup(9, keys, keep_chain=True)
    assert (found.hit, found.error) == (12, None)


def test_a_chain_longer_than_a_frame_is_looked_up_in_parts(session: Session) -> None:
    window = session.create_window(8)
    keys = chain(6)
    store(session, window, keys)
    live = session._link.live
    assert live is not None
    live.keys_per_frame_max = 4
    assert session.lookup(3, keys).hit == 6
    assert session.lookup(4, b"".join(keys), keep_chain=True).hit == 6
    live.keys_per_frame_max = 65_536
    assert session.lookup(5, b"".join(keys) + os.urandom(KEY_BYTES * 70_000)).hit == 6


def test_a_store_can_be_cancelled_before_its_reply_was_read(session: Session) -> None:
    window = session.create_window(4)
    session.poll()
    store_tag = session.submit_store(window, 0, None, chain(2))
    cancel_tag = session.submit_cancel(store_tag)
    done, cancelled = polled(session, (StoreDone, CancelDone), 2)
    assert isinstance(done, StoreDone)
    assert isinstance(cancelled, CancelDone)
    assert (done.tag, cancelled.tag) == (store_tag, cancel_tag)
    assert [block.code for block in done.failed] == [ErrorCode.CANCELLED] * 2
    assert cancelled.was_in_flight
    assert not session.cancel(store_tag).was_in_flight


def test_a_store_whose_reply_was_read_can_be_cancelled(session: Session) -> None:
    window = session.create_window(4)
    session.poll()
    store_tag = session.submit_store(window, 0, None, chain(2))
    polled(session, (StoreOffered,))
    assert session.cancel(store_tag).was_in_flight
    (done,) = polled(session, (StoreDone,))
    assert done.tag == store_tag


def test_a_fill_by_hand_completes_a_store(session: Session) -> None:
    window = session.create_window(8)
    keys = chain(3)
    session.poll()
    tag = session.submit_store(window, 0, None, keys)
    (offered,) = polled(session, (StoreOffered,))
    assert isinstance(offered, StoreOffered)
    fill(window, keys, [5, 6, 7])
    session.submit_fill(tag, offered.wanted_indices()[:1], [5])
    session.submit_fill(tag, offered.wanted_indices()[1:], [6, 7])
    (done,) = polled(session, (StoreDone,))
    assert isinstance(done, StoreDone)
    assert (done.tag, done.landed) == (tag, 3)
    assert session._link.pending.keys() & {tag} == set()


def test_two_sessions_of_one_engine_share_its_leases(daemon: Daemon) -> None:
    with (
        Session(daemon.socket, "shared", [descriptor()]) as scheduler,
        Session(daemon.socket, "shared", [descriptor()], role="worker", rank=0, ranks=1) as worker,
    ):
        assert scheduler.wait_connected(30.0)
        assert worker.wait_connected(30.0)
        assert scheduler.instance == worker.instance
        window = worker.create_window(8)
        keys = chain(3)
        store(worker, window, keys)
        found = scheduler.lookup(1, keys)
        assert worker.load(window, found.lease, 0, keys, [4, 5, 6]).landed == 3
        assert scheduler.end_request_and_wait(1).was_known
        ended = worker.load(window, found.lease, 0, keys, [4, 5, 6])
        assert ended.error is not None
        assert ended.error.code == ErrorCode.UNKNOWN_LEASE
        assert [block.index for block in ended.failed] == [0, 1, 2]


def test_each_rank_stores_its_shard_and_a_block_is_found_when_all_have(daemon: Daemon) -> None:
    sharded = [descriptor(shards=2, model="test/sharded")]
    with (
        Session(daemon.socket, "ranks", sharded, role="worker", rank=0, ranks=2) as first,
        Session(daemon.socket, "ranks", sharded, role="worker", rank=1, ranks=2) as second,
    ):
        assert first.wait_connected(30.0)
        assert second.wait_connected(30.0)
        keys = chain(2)
        first.poll()
        windows = first.create_window(4), second.create_window(4)
        fill(windows[0], keys, [0, 1], shard=0)
        first.submit_store(windows[0], 0, None, keys, rows=[0, 1], generation=0)
        polled(first, (StoreOffered,))
        assert first.lookup(1, keys).hit == 0
        fill(windows[1], keys, [0, 1], shard=1)
        result = second.store(windows[1], 0, None, keys, [0, 1], generation=0, shard=1)
        assert result.done.landed == 2
        found = first.lookup(1, keys)
        assert found.hit == 2
        assert second.load(windows[1], found.lease, 0, keys, [2, 3], shard=1).landed == 2
        assert bytes(windows[1].row(2)) == payload_of(keys[0], 1)


class Transposing(LayoutAdapter):
    """An engine that keeps the two halves of a block the other way round; `broken`: and forgets it on the way back."""

    def __init__(self, broken: bool = False) -> None:
        self.engine_block = bytearray(ROW_BYTES)
        self.broken = broken

    def gather(self, pattern: memoryview, row: memoryview) -> None:
        half = ROW_BYTES // 2
        self.engine_block[:half], self.engine_block[half:] = pattern[half:], pattern[:half]
        row[:half], row[half:] = self.engine_block[half:], self.engine_block[:half]

    def scatter(self, row: memoryview) -> bytes:
        half = ROW_BYTES // 2
        return bytes(row[half:]) + bytes(row[:half]) if self.broken else bytes(row)


def test_a_layout_is_proven_by_the_adapter_s_own_gather_and_scatter(session: Session) -> None:
    window = session.create_window(4, adapter=Transposing())
    assert window.proven
    assert session.registered(window)
    keys = chain(2)
    store(session, window, keys)
    assert session.lookup(1, keys).hit == 2


def test_a_layout_that_comes_back_otherwise_is_refused(session: Session) -> None:
    with pytest.raises(WindowError) as refused:
        session.create_window(4, adapter=Transposing(broken=True))
    assert refused.value.code == ErrorCode.LAYOUT_MISMATCH
    assert session._link.windows == []
    assert session.lookup(1, chain(1)).ok


class Lying(Transposing):
    """An engine whose gather does not bring what was put in."""

    def gather(self, pattern: memoryview, row: memoryview) -> None:
        row[:] = bytes(len(pattern))


def test_a_gather_that_brings_other_bytes_is_refused_by_the_daemon(session: Session) -> None:
    with pytest.raises(WindowError) as refused:
        session.create_window(4, adapter=Lying())
    assert refused.value.code == ErrorCode.LAYOUT_MISMATCH


def test_the_daemon_can_make_the_window(session: Session) -> None:
    window = session.create_window(8, make="daemon")
    keys = chain(3)
    store(session, window, keys)
    found = session.lookup(1, keys)
    assert session.load(window, found.lease, 0, keys, [5, 6, 7]).landed == 3
    assert bytes(window.row(7)) == payload_of(keys[2])


def test_a_window_is_taken_away_and_its_views_stay_valid(session: Session) -> None:
    window = session.create_window(4)
    row = window.row(0)
    row[:4] = b"mine"
    assert session.remove_window(window)
    assert not session.registered(window)
    assert bytes(row[:4]) == b"mine"
    gone = session.load(window, 1, 0, chain(1), [0])
    assert gone.error is not None
    assert gone.error.code == ErrorCode.UNAVAILABLE


def test_a_window_beyond_the_daemon_s_budget_is_refused_with_its_own_words() -> None:
    small = Daemon({"engineApi": {"windowBytesMax": 65_536}}).start()
    try:
        with Session(small.socket, "budget", [descriptor()]) as session:
            assert session.wait_connected(30.0)
            with pytest.raises(WindowError) as refused:
                session.create_window(32)
            assert refused.value.code == ErrorCode.WINDOW_BUDGET
            assert "windowBytesMax" in refused.value.failure.action
            assert session.registered(session.create_window(16))
    finally:
        small.remove()


def test_arguments_that_make_no_sense_raise_before_anything_is_sent(session: Session) -> None:
    window: Window = session.create_window(4)
    sent = session.statistics().frames_sent
    keys = chain(2)
    calls: list[Callable[[], object]] = [
        partial(session.submit_lookup, -1, keys),
        partial(session.submit_lookup, 1, keys, namespace=1),
        partial(session.submit_lookup, 1, bytes(31)),
        partial(session.submit_lookup, 1, keys, timeout_seconds=-1),
        partial(session.submit_load, window, 1, 0, keys, [1]),
        partial(session.submit_load, window, 1, -1, keys, [1, 2]),
        partial(session.submit_load, window, 1, 0, [], []),
        partial(session.submit_store, window, 1, None, keys),
        partial(session.submit_store, window, 0, None, keys, rows=[0, 1]),
        session.submit_prefetch,
        partial(session.submit_fill, 1, [1], []),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r".+"):
            call()
    assert session.statistics().frames_sent == sent


def test_a_prefetch_without_a_lower_tier_is_refused_in_words(session: Session) -> None:
    keys = chain(2)
    session.lookup(11, keys, keep_chain=True)
    done = session.prefetch(request_id=11)
    assert done.error is not None
    assert done.error.code == ErrorCode.TIER_UNAVAILABLE
    assert done.error.message != ""


def test_advice_statistics_and_touch_are_answered(session: Session) -> None:
    window = session.create_window(4)
    keys = chain(2)
    store(session, window, keys)
    assert session.hint(keys[1], "sessionEnd").verdict in {"accepted", "clipped", "refused"}
    session.touch([keys[1]])
    stats = session.stats()
    assert stats.stats["instance"] == session.instance
    assert stats.stats["regions"] == 1
    assert session.prove(keys[1], ok=True).proven is False
    assert session.flush().ok
    assert session.namespace_digest() is not None


def test_heartbeats_keep_a_lease_for_longer_than_its_term() -> None:
    quick = Daemon({"engineApi": {"heartbeatMs": 200}}).start()
    try:
        with Session(quick.socket, "beats", [descriptor()]) as session:
            assert session.wait_connected(30.0)
            window = session.create_window(4)
            keys = chain(2)
            store(session, window, keys)
            found = session.lookup(1, keys)
            assert found.lease_ms == 600
            time.sleep(2.0)
            assert session.load(window, found.lease, 0, keys, [2, 3]).landed == 2
    finally:
        quick.remove()


def test_an_instance_is_asked_to_prove_a_block_of_another_life_before_it_is_given_hits() -> None:
    proving = Daemon({"engineApi": {"proof": "required"}}).start()
    try:
        keys = chain(4)
        with Session(proving.socket, "older", [descriptor()]) as older:
            assert older.wait_connected(30.0)
            store(older, older.create_window(4), keys)
            assert older.lookup(1, keys).hit == 4
        with Session(proving.socket, "younger", [descriptor()]) as younger:
            assert younger.wait_connected(30.0)
            window = younger.create_window(4)
            asked = younger.lookup(1, keys)
            assert asked.hit == 0
            assert asked.proof is not None
            proof = asked.proof
            assert keys[proof.depth - 1] == proof.key
            assert younger.load(window, asked.lease, proof.depth - 1, [proof.key], [0]).landed == 1
            assert bytes(window.row(0)) == payload_of(proof.key)
            assert younger.prove(proof.key, ok=True).proven
            assert younger.lookup(1, keys).hit == 4
    finally:
        proving.remove()
