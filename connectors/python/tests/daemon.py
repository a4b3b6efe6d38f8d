"""A real daemon in a child process with a directory of its own: started, killed, and started again on the same pool."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cairn_kv import NamespaceDescriptor, Session, Window

ROOT = Path(__file__).resolve().parents[3]
MIB = 1024 * 1024
START_SECONDS = 60.0
BLOCK_TOKENS = 16
ROW_BYTES = 4_096
KEY_BYTES = 32


def descriptor(**over: object) -> NamespaceDescriptor:
    """The namespace of the golden frames, and of the other client's tests."""
    fields: dict[str, object] = {
        "model": "test/model",
        "revision": "1",
        "kv_dtype": "bf16",
        "quant_scales": False,
        "layout": "opaque",
        "row_bytes": ROW_BYTES,
        "group_kinds": ("full",),
        "draft": False,
        "block_tokens": BLOCK_TOKENS,
        "hash_algorithm": "sha256",
        "hash_seed": "seed",
        "engine_build": "test",
        "key_bytes": KEY_BYTES,
        "shards": 1,
        "chained": True,
    }
    return NamespaceDescriptor(**{**fields, **over})  # type: ignore[arg-type]


def keys_of(family: int, blocks: int) -> list[bytes]:
    """Keys of a chain; chains of one family share nothing with another's."""
    keys: list[bytes] = []
    previous = hashlib.sha256(f"family {family}".encode()).digest()
    for _ in range(blocks):
        previous = hashlib.sha256(previous).digest()
        keys.append(previous)
    return keys


def payload_of(key: bytes, shard: int = 0) -> bytes:
    """The bytes a block must hold: made from its key and shard and nothing else."""
    seed = hashlib.sha256(key + bytes([shard])).digest()
    return b"".join(struct.pack("<I", at) + seed[4:] for at in range(ROW_BYTES // len(seed)))


def fill(window: Window, keys: list[bytes], rows: list[int], shard: int = 0) -> None:
    """Put each key's payload into its row."""
    for key, row in zip(keys, rows, strict=True):
        window.row(row)[:] = payload_of(key, shard)


def store(session: Session, window: Window, keys: list[bytes]) -> None:
    """Store a chain from the root and wait until it is visible."""
    rows = list(range(len(keys)))
    generation = window.generation
    fill(window, keys, rows)
    result = session.store(window, 0, None, keys, rows, generation=generation)
    assert result.done.ok, result.done.error
    assert result.done.failed == ()


def eventually(what: str, holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail with its name when it does not come."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise AssertionError(f"did not come: {what}")
        time.sleep(0.01)


class Daemon:
    """Starts, kills and removes one daemon."""

    def __init__(self, settings: dict[str, dict[str, object]] | None = None) -> None:
        self.directory = Path(
            tempfile.mkdtemp(prefix="cairn-py-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        self.socket = str(self.directory / "engine.sock")
        self._log = self.directory / "daemon.log"
        self._config = self.directory / "cairn.yaml"
        self._child: subprocess.Popen[bytes] | None = None
        self.configure(settings or {})

    def configure(self, settings: dict[str, dict[str, object]]) -> None:
        """Write the configuration of the next start."""
        base: dict[str, dict[str, object]] = {
            "engineApi": {"socket": self.socket, "proof": "off"},
            "ledger": {"blocksMax": 65_536},
            "dram": {
                "directory": str(self.directory / "pool"),
                "capacityBytes": 64 * MIB,
                "slabBytes": MIB,
                "copyThreads": 1,
                "populateThreads": 1,
            },
            "edge": {"listen": f"unix:{self.directory / 'edge.sock'}"},
            "log": {"level": "warn"},
        }
        merged = {name: {**base.get(name, {}), **settings.get(name, {})} for name in {*base, *settings}}
        self._config.write_text(json.dumps(merged))

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> Daemon:
        """Start the process and wait until it takes connections."""
        command = [
            "node",
            "--no-memory-reducer",
            "src/launch.mjs",
            "daemon",
            "--config",
            str(self._config),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
        environment["UV_THREADPOOL_SIZE"] = "16"
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._child.poll() is not None:
                raise AssertionError(f"the daemon ended at its start:\n{self.log()}")
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.socket)
                except OSError:
                    time.sleep(0.02)
                else:
                    return self
        raise AssertionError(f"the daemon did not start:\n{self.log()}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the daemon."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process as a crash would."""
        self.stop(signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal and wait for the end."""
        assert self._child is not None
        self._child.send_signal(number)
        self._child.wait(START_SECONDS)

    def log(self) -> str:
        """Everything the daemon has written, all starts."""
        return self._log.read_text() if self._log.exists() else ""

    def remove(self) -> None:
        """End the process whatever it does, and remove the directory."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait(START_SECONDS)
        shutil.rmtree(self.directory, ignore_errors=True)
