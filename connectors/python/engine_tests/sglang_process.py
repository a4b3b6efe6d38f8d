"""Ranks of SGLang's HiCache without a model, each a process: a JSON job down a socket, its JSON answer back.

Runs in SGLang's own Python (sglang_rank.py starts it), which imports the engine once and forks each rank. The cache
controller with its threads, the loader that builds the backend, and the host pools are the wheel's; the jobs do what
the wheel's scheduler does around them, in its order:

    backup    a node was computed and written to the host pool: write_storage, then the acknowledgement
    prefetch  a request arrived: prefetch (the query thread), memory for what was found, the transfer thread, its
              acknowledgements; then the pages are compared with what the model would have computed

What a "model" computes for a page follows from the page's key alone. The first line sets the rank up.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import queue
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines" / "sglang"))
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"

import standins

standins.install()

import torch  # noqa: E402
from sglang.srt.mem_cache import utils as cache_utils  # noqa: E402
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout, KVBuffers, MHABufferInfo, MLABufferInfo  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolName, PoolTransfer  # noqa: E402
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController  # noqa: E402
from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool  # noqa: E402
from sglang.srt.mem_cache.pool_host.group import HostPoolGroup, PoolEntry  # noqa: E402
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost  # noqa: E402
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost  # noqa: E402
from sglang.srt.runtime_context import get_context, get_parallel  # noqa: E402

STEP_SECONDS = 60.0
UNTOUCHED = 77


def page_hashes(tokens: Any, prior: bytes | None, page_tokens: int) -> list[str]:
    """The engine's page keys, which its C++ makes: SHA-256 over the key before and the page's tokens."""
    keys = []
    for first in range(0, len(tokens) - page_tokens + 1, page_tokens):
        page = b"".join(int(token).to_bytes(4, "little") for token in tokens[first : first + page_tokens])
        prior = hashlib.sha256((prior or b"") + page).digest()
        keys.append(prior.hex())
    return keys


cache_utils.get_native_hash = page_hashes


class DevicePool:
    """What the controller asks of the device's pool while nothing moves between device and host."""

    device = torch.device("cpu")

    def __init__(self, layers: int) -> None:
        self.layer_num = layers

    def register_layer_transfer_counter(self, _counter: Any) -> None:
        """Nothing to count."""


class DeviceMla(DevicePool, MLATokenToKVPool):
    """By its class the controller knows that all ranks hold the same bytes."""

    def __init__(self, layers: int) -> None:
        DevicePool.__init__(self, layers)


class Rank:
    """A controller, its host pool, and the jobs."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.page_tokens = setup["pageTokens"]
        layers = setup["layers"]
        dtype = getattr(torch, setup["dtype"])
        parallel = {"tp_rank": setup["tpRank"], "tp_size": setup["tpSize"]}
        parallel.update(pp_rank=setup["ppRank"], pp_size=setup["ppSize"])
        parallel.update(attn_dcp_size=1, attn_dcp_rank=0, attn_tp_rank=0, attn_tp_size=1, attn_dp_rank=0)
        get_parallel().override_permanently(**parallel)
        if setup["arguments"] is not None:
            get_context()._server_args = SimpleNamespace(**setup["arguments"])
        make = self._mla if setup["pool"] == "mla" else self._mha
        self.pool, device = make(setup, layers, dtype)
        kv = PoolEntry(PoolName.KV, self.pool, device, lambda layer: layer, is_primary_index_anchor=True)
        entries = [kv]
        if setup["sidePool"]:
            entries.append(PoolEntry(PoolName.SWA, make(setup, layers, dtype)[0], device, lambda layer: layer))
        config, threshold, _, _, self.pass_prefix_keys = HybridCacheController.parse_storage_backend_extra_config(
            setup["extra"]
        )
        self.controller = HybridCacheController(
            SimpleNamespace(get_kvcache=lambda: device),
            HostPoolGroup(entries),
            self.page_tokens,
            None,
            threading.Event(),
            storage_backend="dynamic",
            prefetch_threshold=threshold,
            model_name=setup["model"],
            storage_backend_extra_config=config,
            enable_storage_metrics=setup["storageMetrics"],
        )
        self._config = config
        self._setup = setup
        self._requests = 0

    @property
    def backend(self) -> Any:
        """The backend that the engine's loader made."""
        return self.controller.storage_backend

    @staticmethod
    def _capacity(setup: dict[str, Any]) -> dict[str, Any]:
        return {
            "device_capacity_tokens": setup["pages"] * setup["pageTokens"],
            "start_layer": 0,
            "end_layer": setup["layers"],
            "host_token_capacity": setup["pages"] * setup["pageTokens"],
        }

    def _mha(self, setup: dict[str, Any], layers: int, dtype: torch.dtype) -> tuple[Any, Any]:
        heads, size = setup["heads"], setup["headSize"]
        side = tuple(torch.zeros(setup["pageTokens"], heads, size, dtype=dtype) for _ in range(layers))
        pointers = torch.tensor([layer.data_ptr() for layer in side])
        buffers = KVBuffers(k=side, v=side, k_data_ptrs=pointers, v_data_ptrs=pointers, layout=KVBufferLayout.NHD)
        info = MHABufferInfo(
            buffers=buffers,
            page_size=self.page_tokens,
            head_num=heads,
            head_dim=size,
            v_head_dim=size,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        pool = MHATokenToKVPoolHost(
            info, 1.0, 0, self.page_tokens, setup["layout"], pin_memory=False, **self._capacity(setup)
        )
        return pool, DevicePool(layers)

    def _mla(self, setup: dict[str, Any], layers: int, dtype: torch.dtype) -> tuple[Any, Any]:
        rank, rope = setup["headSize"], setup["headSize"] // 2
        rows = tuple(torch.zeros(setup["pageTokens"], 1, rank + rope, dtype=dtype) for _ in range(layers))
        info = MLABufferInfo(
            buffers=rows,
            data_ptrs=torch.tensor([layer.data_ptr() for layer in rows]),
            layer_indices=tuple(range(layers)),
            device_layer_num=layers,
            page_size=self.page_tokens,
            kv_lora_rank=rank,
            qk_rope_head_dim=rope,
            kv_cache_dim=rank + rope,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        pool = MLATokenToKVPoolHost(
            info,
            1.0,
            0,
            self.page_tokens,
            setup["layout"],
            pin_memory=False,
            target_layer_num=layers,
            **self._capacity(setup),
        )
        return pool, DeviceMla(layers)

    # Pages.

    def computed(self, key: str, job: dict[str, Any]) -> torch.Tensor:
        """The flat page that the model computes for a key; with other weights, or rounded otherwise."""
        seed = int(hashlib.sha256(f"{key} {job.get('weights', 0)}".encode()).hexdigest()[:12], 16)
        template = self.pool.get_dummy_flat_data_page()
        generator = torch.Generator().manual_seed(seed)
        page = torch.randn(template.shape, generator=generator)
        if job.get("rounding"):
            page += job["rounding"] * torch.randn(template.shape)
        if template.dtype == torch.uint8:
            return page.to(torch.float8_e4m3fn).view(torch.uint8)  # As the engine stores 8-bit floats.
        return page.to(template.dtype)

    def _fill(self, keys: list[str], indices: torch.Tensor, job: dict[str, Any]) -> None:
        for at, key in enumerate(keys):
            self.pool.set_from_flat_data_page(int(indices[at * self.page_tokens]), self.computed(key, job))

    def _page(self, indices: torch.Tensor, at: int) -> torch.Tensor:
        return self.pool.get_data_page(int(indices[at * self.page_tokens]), flat=True)

    def _chain(self, job: dict[str, Any]) -> tuple[list[str], list[str]]:
        """(keys before the node, keys of the node)."""
        keys = cache_utils.get_storage_hash_str(job["tokens"], None, page_size=self.page_tokens)
        return keys[: job.get("from", 0)], keys[job.get("from", 0) :]

    # Jobs.

    def backup(self, job: dict[str, Any]) -> dict[str, Any]:
        """A node of the tree is written through."""
        before, keys = self._chain(job)
        indices = self.controller.mem_pool_host.alloc(len(keys) * self.page_tokens)
        assert indices is not None
        self._fill(keys, indices, job)
        tokens = job["tokens"][len(before) * self.page_tokens :]
        prefix = before if self.pass_prefix_keys else None
        number = self.controller.write_storage(indices, tokens, keys, prefix)
        done = self.controller.ack_backup_queue.get(timeout=STEP_SECONDS)
        assert done.id == number
        self.controller.mem_pool_host.free(indices)
        return {"completed": done.completed_tokens // self.page_tokens}

    def prefetch(self, job: dict[str, Any]) -> dict[str, Any]:
        """A request's tail is looked for, and read."""
        found = self.query(job)
        return {**found, **self.transfer(job)}

    def query(self, job: dict[str, Any]) -> dict[str, Any]:
        """The query half of a prefetch."""
        before, keys = self._chain(job)
        self._requests += 1
        # As the scheduler passes them: without the pages of the node that the request continues.
        ancestors = before[: -job.get("lastNodePages", 1)] if self.pass_prefix_keys and before else None
        tokens = job["tokens"][len(before) * self.page_tokens :]
        last = before[-1] if before else None
        handle = SimpleNamespace(rid=f"request {self._requests}")
        self._operation = self.controller.prefetch(handle, tokens, last, ancestors)
        operation = self.controller.prefetch_hit_queue.get(timeout=STEP_SECONDS)
        assert operation is self._operation
        assert operation.all_hash_values == keys
        return {"hit": operation.storage_hit_count // self.page_tokens}

    def transfer(self, job: dict[str, Any]) -> dict[str, Any]:
        """The transfer half: every acknowledgement up to the last, then the pages."""
        operation = self._operation
        pages = len(operation.hash_value)
        if pages == 0:
            return {"completed": 0, "right": 0, "wrong": 0, "untouched": 0}
        indices = self.controller.mem_pool_host.alloc(pages * self.page_tokens)
        assert indices is not None
        for at in range(pages):
            template = self.pool.get_dummy_flat_data_page()
            self.pool.set_from_flat_data_page(int(indices[at * self.page_tokens]), torch.full_like(template, UNTOUCHED))
        operation.host_indices = indices
        self.controller.prefetch_buffer.put(operation)
        completed = 0
        while True:
            ack = self.controller.ack_prefetch_queue.get(timeout=STEP_SECONDS)
            if ack.completed_tokens is not None:
                completed = ack.completed_tokens // self.page_tokens
            if ack.completed_req:
                break
        seen = [self._page(indices, at) for at in range(pages)]
        right = [torch.equal(page, self.computed(key, job)) for page, key in zip(seen, operation.hash_value)]  # noqa: B905
        untouched = [bool((page == UNTOUCHED).all()) for page in seen]
        self._kept = (indices, pages)
        if not job.get("keep"):
            self.controller.mem_pool_host.free(indices)
        return {
            "completed": completed,
            "right": sum(right[:completed]),
            "wrong": sum(not (a or b) for a, b in zip(right, untouched)),  # noqa: B905
            "untouched": sum(untouched[completed:]),
        }

    def untouched(self, _job: dict[str, Any]) -> dict[str, Any]:
        """How many pages of the last transfer, which it kept, nothing has written to until now."""
        indices, pages = self._kept
        return {"pages": sum(bool((self._page(indices, at) == UNTOUCHED).all()) for at in range(pages))}

    def signatures(self, _job: dict[str, Any]) -> dict[str, Any]:
        """Methods of the engine's abstract class whose parameters are not ours by name and order."""
        differ = []
        for name, method in vars(HiCacheStorage).items():
            if name.startswith("_") or not inspect.isfunction(method):
                continue
            theirs = list(inspect.signature(method).parameters)
            ours = list(inspect.signature(getattr(type(self.backend), name)).parameters)
            if theirs != ours[: len(theirs)]:
                differ.append([name, theirs, ours])
        return {"differ": differ, "abstract": sorted(getattr(type(self.backend), "__abstractmethods__", ()))}

    def content(self, job: dict[str, Any]) -> dict[str, Any]:
        """What the model computes for one page, as the buffers of `page_first` hold it."""
        _, keys = self._chain(job)
        return {"bytes": self.computed(keys[job["page"]], job).view(torch.uint8).numpy().tobytes().hex()}

    def call(self, job: dict[str, Any]) -> dict[str, Any]:
        """One method of the backend with keys and, where it takes pages, as many of the pool's."""
        name, keys = job["method"], job["keys"]
        method = getattr(self.backend, name)
        if name in {"batch_get_v1", "batch_set_v1"}:
            return {"answer": method(keys, torch.arange(job.get("indices", len(keys) * self.page_tokens)))}
        if name in {"batch_get_v2", "batch_set_v2"}:
            return {"answer": method([PoolTransfer(name=PoolName.SWA, keys=keys)])}
        if name == "batch_exists_v2":
            answer = method(keys, [PoolTransfer(name=PoolName.SWA, keys=keys)] if job.get("side") else None)
            return {"answer": [answer.kv_hit_pages, answer.extra_pool_hit_pages]}
        if name == "batch_exists":
            return {"answer": method(keys)}
        return {"answer": self._generic(name, method, keys, job)}

    def _generic(self, name: str, method: Any, keys: list[str], job: dict[str, Any]) -> Any:
        pages = [self.computed(key, job) for key in keys]
        dummies = [self.pool.get_dummy_flat_data_page() for _ in keys]
        arguments: dict[str, tuple[Any, ...]] = {
            "exists": (keys[0],),
            "get": (keys[0], dummies[0]),
            "set": (keys[0], pages[0]),
            "batch_get": (keys, dummies),
            "batch_set": (keys, pages),
        }
        answer = method(*arguments[name])
        if name == "get":
            return answer is not None and torch.equal(answer, pages[0])
        if name == "batch_get":
            return [page is not None and torch.equal(page, pages[at]) for at, page in enumerate(answer)]
        return answer

    def state(self, _job: dict[str, Any]) -> dict[str, Any]:
        """Counters, identity, whether the engine's threads live, and what its metrics get."""
        controller, stats = self.controller, None
        threads = (controller.prefetch_thread, controller.prefetch_io_aux_thread, controller.prefetch_sync_thread)
        if self.backend is not None:
            stats = self.backend.get_stats()
        identity = None if self.backend is None else self.backend.identity
        return {
            "alive": all(thread.is_alive() for thread in (*threads, controller.backup_thread)),
            "counters": {} if self.backend is None else self.backend.counters(),
            "engineId": None if identity is None else identity.engine_id,
            "layout": None if identity is None else json.loads(identity.descriptor.layout),
            "revision": None if identity is None else json.loads(identity.descriptor.revision),
            "stats": None if stats is None else [stats.prefetch_pgs, stats.backup_pgs],
            "isSubclass": isinstance(self.backend, HiCacheStorage),
        }

    def clear(self, _job: dict[str, Any]) -> dict[str, Any]:
        """The operator's "clear": through the controller, as the engine does it."""
        return {"cleared": self.controller.clear_storage_backend()}

    def detach(self, _job: dict[str, Any]) -> dict[str, Any]:
        """Run-time detach."""
        backend = self.backend
        self.controller.detach_storage_backend()
        return {"after": backend.batch_exists(["00" * 32])}

    def attach(self, _job: dict[str, Any]) -> dict[str, Any]:
        """Run-time attach with the set-up's configuration, while the host pool may hold pages."""
        entries = self.controller.mem_pool_host.entries
        before = self.pool.get_data_page(0).clone()
        self.controller.attach_storage_backend(
            "dynamic", self.page_tokens, self._setup["model"], dict(self._config), host_pools=entries
        )
        return {"poolUnchanged": torch.equal(before, self.pool.get_data_page(0))}

    def reset(self, _job: dict[str, Any]) -> dict[str, Any]:
        """What a flush of the engine's cache does to the controller."""
        self.controller.reset()
        return {}


def serve(stream: Any) -> None:
    """One rank: reads jobs until the test lets go of it."""
    setup = json.loads(stream.readline())
    if setup["ownLaunch"]:
        child = os.fork()  # Ranks of one start of the engine have one parent; another start's have another.
        if child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
            os._exit(0)
    log = os.open(setup["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        rank = Rank(setup)
        answer: dict[str, Any] = {"ready": os.getpid()}
    except ValueError as error:
        answer = {"refused": str(error)}
    stream.write(json.dumps(answer) + "\n")
    stream.flush()
    for line in stream:
        job = json.loads(line)
        try:
            answer = getattr(rank, job["op"])(job)
        except queue.Empty:
            answer = {"hung": job["op"]}
        stream.write(json.dumps(answer) + "\n")
        stream.flush()
    if "refused" not in answer:
        rank.controller.detach_storage_backend()


def main() -> None:
    """Imports the engine once, then forks a rank for each connection, until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    torch.set_num_threads(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            serve(connection.makefile("rw"))
            os._exit(0)  # What the parent's interpreter has to do at its end is not ours.
        connection.close()


if __name__ == "__main__":
    main()
