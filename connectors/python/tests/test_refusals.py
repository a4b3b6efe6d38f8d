"""What a session says in the log when a daemon will not have it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon import ROW_BYTES, Daemon, descriptor, eventually
from fake import FakeDaemon, Peer, idle, reply_frame

from cairn_kv import ErrorCode, Session, limits
from cairn_kv.adapters.identity import Identity
from cairn_kv.protocol import Flag, Frame, Operation, encode_cold
from cairn_kv.vllm.links import WorkerSession


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Lines of this level that sessions wrote."""
    return [one.getMessage() for one in caplog.records if one.name == "cairn_kv" and one.levelno == level]


def refused_body(code: ErrorCode, message: str) -> dict[str, object]:
    """Body of a refusal."""
    return {
        "code": int(code),
        "name": code.wire_name,
        "retryable": False,
        "message": message,
        "action": "",
        "detail": 0,
    }


def refusal(code: ErrorCode, message: str) -> Callable[[Frame], bytes]:
    """A daemon's answer to HELLO: this error."""
    body = refused_body(code, message)
    return lambda frame: reply_frame(Operation.HELLO, frame.tag, encode_cold(body), flags=int(Flag.ERROR))


def test_an_engine_id_of_another_engine_is_said_once_by_the_session_and_by_the_daemon(
    own_daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    with Session(own_daemon.socket, "twin", [descriptor()]) as first:
        assert first.wait_connected(30.0)
        with Session(own_daemon.socket, "twin", [descriptor(kv_dtype="f16")]) as second:
            eventually("the second is refused again and again", lambda: second.statistics().connect_failures >= 3)
            assert not second.connected
    (line,) = said(caplog, logging.WARNING)
    assert own_daemon.socket in line
    assert "instanceMismatch" in line
    assert "twin" in line
    refused = [line for line in own_daemon.log().splitlines() if "HELLO" in line]
    assert len(refused) == 1, refused
    assert all(word in refused[0] for word in ("twin", "instanceMismatch", "uid"))


def test_a_window_that_a_later_daemon_refuses_is_said_once_and_known_until_one_takes_it(
    own_daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    own_daemon.stop()
    with Session(own_daemon.socket, "early", [descriptor()], role="worker") as session:
        window = session.create_window(32)
        link = WorkerSession(session, window, Identity(descriptor(), ("a",), ROW_BYTES, world=1), 0)
        assert (link.epoch, link.served) == (None, None)
        own_daemon.configure({"engineApi": {"windowBytesMax": 65_536}})
        for connections in (1, 2):
            own_daemon.start()
            eventually("a connection", lambda wanted=connections: session.statistics().connections == wanted)  # type: ignore[misc]
            assert (link.epoch, link.served) == (None, False)
            own_daemon.stop()
        (line,) = said(caplog, logging.WARNING)
        assert "windowBudget" in line
        assert "windowBytesMax" in line
        own_daemon.configure({})
        own_daemon.start()
        eventually("the window is there", lambda: link.served is True)
        assert link.epoch == session.epoch


def test_a_window_that_the_daemon_cannot_map_is_not_served_while_it_is_tried_again(
    fake: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refuse = refusal(ErrorCode.SHUTTING_DOWN, "not yet")
    told: list[int] = []

    def no_memory(peer: Peer) -> None:
        frame = peer.read()
        told.append(len(told))
        body = {**refused_body(ErrorCode.WINDOW_MAP, f"{told[-1]} bytes are free"), "retryable": True}
        peer.send(reply_frame(Operation.REGISTER, frame.tag, encode_cold(body), flags=int(Flag.ERROR)))

    with Session(fake.socket, "tight", [descriptor()], role="worker") as session:
        window = session.create_window(4)
        link = WorkerSession(session, window, Identity(descriptor(), ("a",), ROW_BYTES, world=1), 0)
        eventually("it is not there yet", lambda: session.statistics().connect_failures >= 1)
        assert [link.served] == [None]
        fake.script, fake.refuse = no_memory, None
        eventually("it is refused three times", lambda: len(told) > 3)
        assert [link.served] == [False]
        fake.script = idle
        eventually("the window is there", lambda: link.served is True)
    (line,) = said(caplog, logging.WARNING)
    assert "windowMap" in line


def test_another_refusal_is_said_anew_and_so_is_the_same_one_after_a_connection(
    fake: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refuse = refusal(ErrorCode.BAD_DESCRIPTOR, "model: at most 256 characters")
    with Session(fake.socket, "wrong", [descriptor()], seed=1) as session:
        eventually("it is refused twice", lambda: session.statistics().connect_failures >= 2)
        fake.refuse = refusal(ErrorCode.INSTANCE_MISMATCH, "namespace 0 differs")
        eventually("another refusal", lambda: len(said(caplog, logging.WARNING)) == 2)
        fake.refuse = None
        fake.script = idle
        assert session.wait_connected(30.0)
        fake.refuse = refusal(ErrorCode.INSTANCE_MISMATCH, "namespace 0 differs")
        fake.drop()
        eventually("the same after a connection", lambda: len(said(caplog, logging.WARNING)) == 3)
    first, second, third = said(caplog, logging.WARNING)
    assert "badDescriptor: model: at most 256 characters" in first
    assert "instanceMismatch: namespace 0 differs" in second
    assert third == second


def test_a_socket_without_access_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(_self: object, _path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cairn_kv.transport.socket.socket.connect", denied)
    with Session("/run/cairn/engine.sock", "stranger", [descriptor()]) as session:
        eventually("it is refused twice", lambda: session.statistics().connect_failures >= 2)
    (line,) = said(caplog, logging.WARNING)
    assert "/run/cairn/engine.sock" in line
    assert "Permission denied" in line


def test_an_absent_daemon_is_said_once_and_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cairn_kv")
    with Session(str(tmp_path / "absent.sock"), "alone", [descriptor()]) as session:
        eventually("it tries three times", lambda: session.statistics().connect_failures >= 3)
    assert said(caplog, logging.WARNING) == []
    (line,) = said(caplog, logging.INFO)
    assert "absent.sock" in line


def test_what_a_daemon_says_is_cut_to_a_line(fake: FakeDaemon, caplog: pytest.LogCaptureFixture) -> None:
    fake.refuse = refusal(ErrorCode.INTERNAL, "a\nb" * 10_000)
    with Session(fake.socket, "long", [descriptor()]):
        eventually("it is said", lambda: said(caplog, logging.WARNING) != [])
    (line,) = said(caplog, logging.WARNING)
    assert "\n" not in line
    assert len(line) < 2 * limits.TEXT_CHARACTERS_MAX


def test_the_digest_of_the_namespace_is_said_once_and_is_the_daemon_s(
    own_daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cairn_kv")
    with Session(own_daemon.socket, "named", [descriptor()]) as session:
        assert session.wait_connected(30.0)
        own_daemon.stop()
        own_daemon.start()
        eventually("a second connection", lambda: session.statistics().connections == 2)
        digest = session.namespace_digest()
        assert digest is not None
    lines = [line for line in said(caplog, logging.INFO) if "connected to" in line]
    assert len(lines) == 1
    assert digest.hex() in lines[0]
