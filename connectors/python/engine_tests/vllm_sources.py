"""Source files of the released minors of vLLM, out of the wheels of the package index.

A wheel is some 300 MB and a test needs a few of its files. So uv, which is installed beside the engine, resolves a
version to its wheel's address on the index that the machine is configured for, and zipfile reads the wheel through
ranged requests: its table of contents, then single files, together below 1 MB. What was read is kept in the cache of
the checks; which versions there are is asked anew once a day.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import tomllib

from engines import engine_python

REQUEST_SECONDS = 60.0
#: Bytes of one ranged request: a wheel's table of contents takes a few of them.
RANGE_BYTES = 256 * 1024
RELEASES_SECONDS = 24 * 3_600.0


@dataclass(frozen=True)
class Release:
    """The newest version of one minor, and its wheel on the index."""

    version: str
    wheel: str
    size_bytes: int

    @property
    def minor(self) -> int:
        """The number after the first dot."""
        return int(self.version.split(".")[1])

    def has(self, path: str) -> bool:
        """Whether the wheel holds a file."""
        return path in self._names

    def text(self, path: str) -> str:
        """A file of the wheel."""
        return _kept(self._directory / path, lambda: self._archive.read(path).decode())

    @cached_property
    def _names(self) -> frozenset[str]:
        lines = _kept(self._directory / "NAMES", lambda: "\n".join(self._archive.namelist()))
        return frozenset(lines.splitlines())

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BufferedReader(_Ranged(self.wheel, self.size_bytes), RANGE_BYTES))

    @property
    def _directory(self) -> Path:
        return _cache() / self.version


def releases(first_minor: int) -> list[Release]:
    """The released minors from `first_minor` on, oldest first."""
    known = _cache() / f"releases-{first_minor}.json"
    if not known.exists() or time.time() - known.stat().st_mtime > RELEASES_SECONDS:
        known.unlink(missing_ok=True)
    text = _kept(known, lambda: json.dumps([asdict(release) for release in _resolve(first_minor)]))
    return [Release(**fields) for fields in json.loads(text)]


def _resolve(first_minor: int) -> Iterator[Release]:
    """Asks for one minor after the other until there is none."""
    minor = first_minor
    while True:
        command = [str(Path(engine_python()).with_name("uv")), "pip", "compile", "--quiet", "--no-deps", "--no-header"]
        command += ["--python", engine_python(), "--format", "pylock.toml", "-"]
        asked = subprocess.run(
            command, input=f"vllm==0.{minor}.*", capture_output=True, text=True, timeout=REQUEST_SECONDS, check=False
        )
        if asked.returncode != 0:
            assert "unsatisfiable" in asked.stderr, f"the index does not answer:\n{asked.stderr}"
            return
        package = tomllib.loads(asked.stdout)["packages"][0]
        wheel = package["wheels"][0]
        yield Release(package["version"], wheel["url"], wheel["size"])
        minor += 1


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CAIRN_PYTHON_CACHE") or Path(root) / "cairn") / "vllm-sources"


def _kept(path: Path, make: object) -> str:
    """A text of the cache, made first if it is not there."""
    if not path.exists():
        assert callable(make)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(make())
        unfinished.rename(path)
    return path.read_text()


class _Ranged(io.RawIOBase):
    """A file of the index, read in ranges."""

    def __init__(self, url: str, size_bytes: int) -> None:
        self._url = url
        self._size_bytes = size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        end = min(self._size_bytes, self._at + len(buffer))
        if end <= self._at:
            return 0
        request = urllib.request.Request(self._url, headers={"range": f"bytes={self._at}-{end - 1}"})
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
            assert answer.status == 206, f"the index gives no ranges: status {answer.status}"
            piece = answer.read(len(buffer))
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)
