"""HiCache's storage backend: what SGLang calls, and what it gets whatever happens.

SGLang calls a backend from threads of its own (one queries, one reads, one writes) and trusts it: an answer of None
ends such a thread for the life of the process, a call that does not return stops prefetching for everybody. So every
method here answers with a value of the right shape and in time. A fault of ours is logged, counted, and a miss.

One `_Side` holds all that depends on the host pool: it comes into being when the engine registers the pool, is put
in place of another as a whole when the engine gives up what was stored (`clear`), and is gone after `close`. Without
one every answer is a miss: that is also how a pool that is not served is handled, which is said once.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

from cairn_kv import CairnError, Session
from cairn_kv.adapters.identity import NotServed

from .counters import Counters
from .identity import Identity, identity_of, launch_of
from .options import Options
from .pages import Pages, Place, geometry_of
from .transfers import ROWS_MIN, Transfers

log = logging.getLogger("cairn_kv.sglang")

#: How long the engine's start waits for the daemon; without one it starts all the same.
CONNECT_SECONDS = 2.0
ROW_ALIGNMENT_BYTES = 64
KEY_CHARACTERS = 64
#: A line in the log says what was counted, this often at most and only if something was.
REPORT_SECONDS = 60.0
#: Of each kind of figure, those that the engine has not fetched for its metrics.
FIGURES_MAX = 1_024

Answer = TypeVar("Answer")


def _or_miss(miss: Callable[..., Answer]) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """A method whose faults become the answer `miss(*arguments)`: nothing is raised into the engine's threads."""

    def wrap(method: Callable[..., Answer]) -> Callable[..., Answer]:
        @functools.wraps(method)
        def call(self: CairnHiCacheStorage, *arguments: Any, **named: Any) -> Answer:
            try:
                return method(self, *arguments, **named)
            except Exception:
                self.note_fault(method.__name__)
                return miss(*arguments, **named)

        return call

    return wrap


@dataclass(frozen=True)
class _Side:
    identity: Identity
    session: Session
    pages: Pages
    transfers: Transfers
    #: Which of the engine's two interfaces this side's rows fit.
    serves_buffers: bool
    serves_flat: bool


@dataclass
class _Figures:
    """What the engine exports for each read and write: pages, and gigabytes a second."""

    pages: deque[int]
    bandwidth: deque[float]


class CairnHiCacheStorage(HiCacheStorage):  # type: ignore[misc]
    """One rank's backend.

    Args:
        storage_config: the engine's `HiCacheStorageConfig`; its `extra_config` holds the options.
        kwargs: what else the engine's loader passes; nothing of it is needed.

    Raises:
        ValueError: an option is out of range. Nothing else: a daemon that is away is none of the engine's faults.

    """

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        self._config = storage_config
        self._options = Options.read(storage_config.extra_config or {})
        if self._options.unknown:
            log.warning("cairn: options that are not known: %s", ", ".join(self._options.unknown))
        self._counters = Counters()
        self._launch = launch_of()
        self._pool: Any = None
        self._side: _Side | None = None
        self._closed = False
        self._cleared = 0
        self._lock = threading.Lock()
        self._reported_at = time.monotonic()
        self._reported: dict[str, int] = {}
        self._read = _Figures(deque(maxlen=FIGURES_MAX), deque(maxlen=FIGURES_MAX))
        self._written = _Figures(deque(maxlen=FIGURES_MAX), deque(maxlen=FIGURES_MAX))

    # Life.

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Takes the host pool: what its pages are is known from here on."""
        super().register_mem_pool_host(mem_pool_host)
        self._pool = mem_pool_host
        self._open()

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Takes a further pool. Beside that of keys and values none is served, and then that one is not either."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if str(getattr(host_pool_name, "value", host_pool_name)) != "kv":
            self._stop(f"the model has a pool of {host_pool_name} beside its keys and values")

    def clear(self) -> None:
        """Gives up what was stored: from here on this engine finds only what it stores anew."""
        with self._lock:
            self._cleared += 1
            self._counters.add("clears")
        if self._side is not None:
            self._open()

    def close(self) -> None:
        """Ends the session with the daemon; every call after this is a miss."""
        self._closed = True
        self._put(None)

    def get_stats(self) -> Any:
        """What the engine's metrics show of reads and writes since the last call; None if it keeps none."""
        if not getattr(self._config, "enable_storage_metrics", False):
            return None
        try:
            from sglang.srt.observability.metrics_collector import StorageMetrics
        except ImportError:
            return None
        figures = StorageMetrics()
        for name, ours in (("prefetch", self._read), ("backup", self._written)):
            getattr(figures, f"{name}_pgs").extend(ours.pages)
            getattr(figures, f"{name}_bandwidth").extend(ours.bandwidth)
            ours.pages.clear()
            ours.bandwidth.clear()
        return figures

    def counters(self) -> dict[str, int]:
        """All that was counted, by the names of `counters.COUNTERS`."""
        return self._counters.totals()

    @property
    def identity(self) -> Identity | None:
        """What this rank's pages are; None while none are served."""
        side = self._side
        return None if side is None else side.identity

    # The zero-copy interface.

    @_or_miss(lambda keys, *_rest, **_named: 0)
    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many pages can be read, from the first on."""
        self._counters.add("queries")
        self._counters.add("queried_pages", len(keys))
        side, digests = self._side, _digests(keys)
        if not self._reachable(side) or not digests:
            return 0
        assert side is not None
        hit = side.transfers.find(digests, self._options.lookup_timeout_ms / 1_000)
        # The engine has the pages in front of these itself. Without being used here they would leave first.
        side.transfers.touch(_digests(getattr(extra_info, "prefix_keys", None) or ()))
        self._counters.add("hit_pages", hit)
        self._report()
        return hit

    @_or_miss(lambda keys, *_rest, **_named: [False] * len(keys))
    def batch_get_v1(self, keys: list[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        """Reads pages into the host pool; those that did not arrive are False and were not written to."""
        side = self._side
        if side is None or not side.serves_buffers:
            return [False] * len(keys)
        return self._get(side, keys, side.pages.places(host_indices, len(keys)))

    @_or_miss(lambda keys, *_rest, **_named: [False] * len(keys))
    def batch_set_v1(self, keys: list[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        """Stores pages of the host pool; True for those that can be read from now on."""
        side = self._side
        if side is None or not side.serves_buffers:
            return [False] * len(keys)
        return self._set(side, keys, side.pages.places(host_indices, len(keys)))

    # The generic interface: flat copies of pages.

    @_or_miss(lambda *_arguments, **_named: None)
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        """Reads a page into a flat copy; that copy, or None."""
        return self._get_flat([key], [target_location])[0]

    @_or_miss(lambda keys, *_rest, **_named: [None] * len(keys))
    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> list[Any]:
        """Reads pages into flat copies; each, or None from the first on that did not arrive."""
        return self._get_flat(keys, target_locations)

    @_or_miss(lambda *_arguments, **_named: False)
    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Stores a flat copy of a page."""
        return self._set_flat([key], [value])

    @_or_miss(lambda *_arguments, **_named: False)
    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """Stores flat copies of pages; whether all of them can be read from now on."""
        return self._set_flat(keys, values)

    @_or_miss(lambda *_arguments, **_named: False)
    def exists(self, key: str) -> bool:
        """Whether a page can be read."""
        return bool(self.batch_exists([key]) == 1)

    # The interface for models with further pools, which are not served: every answer is a miss of the right shape.

    def batch_exists_v2(self, keys: list[str], pool_transfers: Any = None, extra_info: Any = None) -> Any:
        """Nothing is found, unless no further pool is asked for."""
        from sglang.srt.mem_cache.hicache_storage import PoolTransferResult

        if pool_transfers:
            return PoolTransferResult.empty()
        return PoolTransferResult(self.batch_exists(keys, extra_info), {})

    def batch_get_v2(self, transfers: Any, extra_info: Any = None) -> dict[str, list[bool]]:
        """Nothing is read."""
        return {transfer.name: [False] * len(transfer.keys or []) for transfer in transfers}

    def batch_set_v2(self, transfers: Any, extra_info: Any = None) -> dict[str, list[bool]]:
        """Nothing is stored."""
        return self.batch_get_v2(transfers, extra_info)

    # Behind them.

    def note_fault(self, method: str) -> None:
        """Counts and logs the exception under way; the first is told in full."""
        first = self._counters.totals()["faults"] == 0
        self._counters.add("faults")
        if first:
            log.exception("cairn: a fault in %s, answered as a miss", method)
        else:
            log.warning("cairn: another fault in %s, answered as a miss", method)

    def _get(self, side: _Side, keys: Sequence[str], places: Sequence[Place]) -> list[bool]:
        digests = _digests(keys)
        landed = 0
        if self._reachable(side) and digests:
            begun = time.monotonic()
            landed = side.transfers.load(digests, places, self._options.load_timeout_ms / 1_000)
            self._figure(self._read, landed, side, time.monotonic() - begun)
        self._counters.add("load_pages_short", len(keys) - landed)
        self._report()
        return [True] * landed + [False] * (len(keys) - landed)

    def _set(self, side: _Side, keys: Sequence[str], places: Sequence[Place]) -> list[bool]:
        digests = _digests(keys)
        stored = [False] * len(keys)
        if self._reachable(side) and len(digests) == len(keys):
            begun = time.monotonic()
            stored = side.transfers.store(digests, places, self._options.store_timeout_ms / 1_000)
            self._figure(self._written, sum(stored), side, time.monotonic() - begun)
        self._counters.add("stored_pages", sum(stored))
        self._counters.add("store_pages_short", len(keys) - sum(stored))
        self._report()
        return stored

    def _get_flat(self, keys: Sequence[str], targets: Any) -> list[Any]:
        side = self._side
        nothing: list[Any] = [None] * len(keys)
        if side is None or not side.serves_flat or targets is None or len(targets) != len(keys):
            return nothing
        if any(target is None for target in targets):
            return nothing
        landed = sum(self._get(side, keys, [side.pages.place_of(target) for target in targets]))
        return [*targets[:landed], *nothing[landed:]]

    def _set_flat(self, keys: Sequence[str], values: Any) -> bool:
        side = self._side
        if side is None or not side.serves_flat or values is None or len(values) != len(keys):
            return False
        pages = [value.contiguous() for value in values]
        return all(self._set(side, keys, [side.pages.place_of(page) for page in pages]))

    def _reachable(self, side: _Side | None) -> bool:
        if side is None:
            return False
        if not side.session.connected:
            self._counters.add("unavailable")
            return False
        return True

    def _open(self) -> None:
        """Makes a side for the pool. What is not served is said, and leaves none."""
        self._put(None)
        if self._closed:
            return
        try:
            self._put(self._side_of(self._pool))
        except (NotServed, CairnError, OSError) as error:
            self._stop(str(error))
        except Exception:
            # The engine's start is not worth a cache that nobody foresaw: another version's pool or configuration.
            log.exception("cairn: a fault at the start")
            self._stop("a fault at the start, told above")

    def _side_of(self, pool: Any) -> _Side:
        options = self._options
        geometry = geometry_of(pool)
        pages = Pages(pool, geometry)
        flat = not options.interface_v1
        version = importlib.metadata.version("sglang")
        identity = identity_of(
            self._config, pool, geometry, _arguments(), version, self._launch, flat=flat, cleared=self._cleared
        )
        stride_bytes = -(-geometry.row_bytes // ROW_ALIGNMENT_BYTES) * ROW_ALIGNMENT_BYTES
        rows = max(ROWS_MIN, int(options.window_bytes) // stride_bytes)
        session = Session(
            options.socket or os.environ.get("CAIRN_SOCKET"),
            identity.engine_id,
            [identity.descriptor],
            role="worker",
            rank=identity.rank,
            ranks=identity.ranks,
            engine=("sglang", version),
        )
        try:
            if not session.wait_connected(CONNECT_SECONDS):
                log.warning("cairn: no daemon yet: %s", session.last_error)
            window = session.create_window(rows, stride_bytes=stride_bytes)
        except BaseException:
            session.close()
            raise
        transfers = Transfers(session, window, identity.dtype, self._counters)
        log.info("cairn: pages of %d bytes, %d rows, namespace %s", geometry.row_bytes, rows, identity.engine_id)
        return _Side(
            identity=identity,
            session=session,
            pages=pages,
            transfers=transfers,
            serves_buffers=not flat or pages.flat_is_row,
            serves_flat=flat or pages.flat_is_row,
        )

    def _put(self, side: _Side | None) -> None:
        """Puts a side in place of the one that is there, which ends: calls in it end as misses."""
        with self._lock:
            before, self._side = self._side, side
        if before is not None:
            before.session.close()

    def _stop(self, reason: str) -> None:
        self._put(None)
        log.error("cairn: nothing is stored or loaded: %s", reason)

    def _figure(self, figures: _Figures, pages: int, side: _Side, seconds: float) -> None:
        if pages and seconds > 0:
            figures.pages.append(pages)
            figures.bandwidth.append(pages * side.identity.descriptor.row_bytes / seconds / 1e9)

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported_at < REPORT_SECONDS:
            return
        totals = self._counters.totals()
        with self._lock:
            before, self._reported, self._reported_at = self._reported, totals, now
        counted = {name: value - before.get(name, 0) for name, value in totals.items()}
        line = ", ".join(f"{name} {value}" for name, value in counted.items() if value)
        log.info("cairn: %s", line)


def _digests(keys: Sequence[str]) -> list[bytes]:
    """Keys as bytes, up to the first that is no SHA-256 in hex: nobody can have stored that."""
    digests = []
    for key in keys:
        if len(key) != KEY_CHARACTERS:
            break
        try:
            digests.append(bytes.fromhex(key))
        except ValueError:
            break
    return digests


def _arguments() -> Any:
    """The engine's server arguments, None outside of a server's process."""
    try:
        from sglang.srt.runtime_context import get_server_args

        return get_server_args()
    except Exception:
        return None
