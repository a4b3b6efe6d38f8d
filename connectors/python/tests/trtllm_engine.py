"""TensorRT-LLM's side of the connector, as far as a connector can see it.

`tensorrt_llm` itself needs a GPU to be imported. This is its interface in our words: the abstract classes and what a
step's output holds, found under the engine's module names, and an executor that calls the hooks in the engine's order
with allocators like those of its two cache managers. Blocks are bytes that follow from the tokens before them, so that
the executor can say of every block that it is about to use whether it holds what it must; it says so by asserting.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

BLOCK_TOKENS = 32
ROW_BYTES = 4_096
#: A directory with the configuration of a model of text.
MODEL = Path(__file__).resolve().parent / "text_model"


@dataclass
class RequestData:
    """One request in a step's output."""

    request_id: int
    new_tokens: list[int]
    new_block_ids: list[int]
    computed_position: int
    num_scheduled_tokens: int
    block_hashes: list[int] = field(default_factory=list)
    priorities: list[int] | None = None
    cache_salt: str | None = None
    new_block_ids_by_layer_group: list[list[int]] | None = None


@dataclass
class SchedulerOutput:
    """All requests of a step."""

    new_requests: list[RequestData] = field(default_factory=list)
    cached_requests: list[RequestData] = field(default_factory=list)


class KvCacheConnectorWorker(ABC):
    """The worker's interface."""

    def __init__(self, llm_args: Any) -> None:
        self._llm_args = llm_args
        self._metadata: object = None
        super().__init__()

    def bind_connector_meta(self, metadata: object) -> None:
        self._metadata = metadata

    def get_connector_meta(self) -> object:
        return self._metadata

    def register_forward_pass_callable(self) -> Callable[[], None] | None:
        return None

    @abstractmethod
    def register_kv_caches(self, kv_cache_tensor: Any) -> None: ...

    @abstractmethod
    def start_load_kv(self, stream: Any) -> None: ...

    @abstractmethod
    def wait_for_layer_load(self, layer_idx: int, stream: Any) -> None: ...

    @abstractmethod
    def save_kv_layer(self, layer_idx: int, stream: Any) -> None: ...

    @abstractmethod
    def wait_for_save(self, stream: Any) -> None: ...

    @abstractmethod
    def get_finished(self, finished_gen: list[int], started_loading: list[int]) -> tuple[list[int], list[int]]: ...


class KvCacheConnectorScheduler(ABC):
    """The scheduler's interface."""

    def __init__(self, llm_args: Any) -> None:
        self._llm_args = llm_args
        super().__init__()

    @abstractmethod
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> object: ...

    @abstractmethod
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]: ...

    @abstractmethod
    def request_finished(self, request: Any, cache_block_ids: list[int]) -> bool: ...

    @abstractmethod
    def update_state_after_alloc(self, request: Any, block_ids: list[int]) -> None: ...

    def request_reset(self, request: Any) -> None:
        return

    def cancel_load(self, request: Any, start: int, end: int) -> None:
        return


class Mpi:
    """Ranks that take turns in one process: what rank 0 broadcasts, the others get in the same order."""

    def __init__(self) -> None:
        self.rank = 0
        self._said: list[object] = []
        self._heard: dict[int, int] = {}

    def broadcast(self, mine: object, root: int = 0) -> object:
        if self.rank == root:
            self._said.append(mine)
            return mine
        at = self._heard.get(self.rank, 0)
        self._heard[self.rank] = at + 1
        return sent_over(self._said[at])

    def restart(self) -> None:
        self._said.clear()
        self._heard.clear()


def sent_over(value: object) -> object:
    """As another rank gets it."""
    copy: object = pickle.loads(pickle.dumps(value))  # noqa: S301 (our own)
    return copy


MPI = Mpi()
#: What was said in the engine's log.
LOG: list[str] = []
#: Of those, the warnings.
WARNINGS: list[str] = []


def _warn(text: str) -> None:
    LOG.append(text)
    WARNINGS.append(text)


def install() -> None:
    """Puts the interface under the engine's names, once."""
    if "tensorrt_llm" in sys.modules:
        return
    names = ("tensorrt_llm", "tensorrt_llm._utils", "tensorrt_llm._torch", "tensorrt_llm._torch.pyexecutor")
    for name in names:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = []
    vars(sys.modules["tensorrt_llm"])["__version__"] = "1.2.0"
    sys.modules["tensorrt_llm.logger"] = ModuleType("tensorrt_llm.logger")
    vars(sys.modules["tensorrt_llm.logger"])["logger"] = SimpleNamespace(warning=_warn, info=LOG.append)
    vars(sys.modules["tensorrt_llm._utils"]).update(mpi_rank=lambda: MPI.rank, mpi_broadcast=MPI.broadcast)
    sys.modules["tensorrt_llm._torch.pyexecutor.kv_cache_connector"] = sys.modules[__name__]


def llm_args(**over: Any) -> SimpleNamespace:
    """What the engine hands to both halves."""
    cache = {
        "tokens_per_block": BLOCK_TOKENS,
        "enable_block_reuse": True,
        "host_cache_size": 0,
        "max_attention_window": None,
        **over.pop("cache", {}),
    }
    fields: dict[str, Any] = {
        "model": str(MODEL),
        "dtype": "bfloat16",
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "context_parallel_size": 1,
        "enable_attention_dp": False,
        "gpus_per_node": 8,
        "max_beam_width": 1,
        "speculative_config": None,
        "kv_cache_config": SimpleNamespace(**cache),
    }
    return SimpleNamespace(**{**fields, **over})


class Request(SimpleNamespace):
    """The fields of the engine's request that a connector may read, as its PyTorch half has them."""

    def __init__(self, request_id: int, tokens: Sequence[int], **over: Any) -> None:
        fields = {
            "lora_task_id": None,
            "multimodal_hashes": None,
            "cache_salt": None,
            "cache_salt_id": None,
            "return_context_logits": False,
            "py_return_context_logits": False,
            "py_multimodal_data": None,
        }
        super().__init__(request_id=request_id, all_tokens=list(tokens), prompt_len=len(tokens), **{**fields, **over})
        self.asked = 0
        self.position = 0
        self.block_ids: list[int] = []
        self.done = False

    def get_tokens(self, beam: int) -> list[int]:
        assert beam == 0
        return list(self.all_tokens)


class BoundRequest:
    """A request as it comes back out of C++, which is how the older manager asks: what Python added is not there."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __getattr__(self, name: str) -> Any:
        if name.startswith("py_"):
            raise AttributeError(name)
        return getattr(self._request, name)


def block_bytes(tokens: Sequence[int], ordinal: int, shard: int, weights: str) -> bytes:
    """What block ``ordinal`` of a chain holds on a shard."""
    end = (ordinal + 1) * BLOCK_TOKENS
    seed = hashlib.sha256(f"{weights} {shard} {list(tokens[:end])}".encode()).digest()
    return seed * (ROW_BYTES // len(seed))


class Cache:
    """One rank's blocks, and the pool through which the connector copies them."""

    def __init__(self, blocks: int, shard: int, kind: str) -> None:
        self.shard, self.kind = shard, kind
        self.blocks: list[Any] = [bytearray(ROW_BYTES) for _ in range(blocks)]

    def register(self, worker: Any) -> None:
        """As the engine's executor does at its start."""
        worker.register_kv_caches(self)

    def pool(self, slots_of: Callable[[int], int]) -> Any:
        return MemoryPool(self, slots_of(ROW_BYTES))


class MemoryPool:
    """`BlockPool` without torch."""

    def __init__(self, cache: Cache, slots: int) -> None:
        from cairn_kv.tensorrt_llm.identity import PoolFacts

        self._cache = cache
        self._slots = [bytearray(ROW_BYTES) for _ in range(slots)]
        self.facts = PoolFacts(len(cache.blocks), ROW_BYTES, "bfloat16", cache.kind, {"manager": "test"})
        self.dtype = SimpleNamespace(is_floating_point=False)
        self.written: list[int] = []

    def read(self, block_ids: Sequence[int], slots: Sequence[int], stream: Any) -> Callable[[], None]:
        for block, slot in zip(block_ids, slots, strict=True):
            assert block >= 0
            self._slots[slot][:] = self._cache.blocks[block]
        return lambda: None

    def slot(self, slot: int) -> memoryview:
        return memoryview(self._slots[slot])

    def write(self, rows: Sequence[memoryview], block_ids: Sequence[int], stream: Any) -> None:
        for row, block in zip(rows, block_ids, strict=True):
            assert block >= 0
            self._cache.blocks[block][:] = row


@dataclass
class _Shown:
    block_ids: int = 0
    tokens: int = 0


class Engine:
    """One engine: an executor, its scheduler's half and a worker's half per rank, driven in the engine's order."""

    def __init__(self, arguments: SimpleNamespace, *, ranks: int = 1, first_rank: int = 0, **settings: Any) -> None:
        from cairn_kv.tensorrt_llm import CairnScheduler, CairnWorker

        self.kind = str(settings.get("kind", "full_attention"))
        self.weights = str(settings.get("weights", "w"))
        self.chunk_tokens = int(settings.get("chunk_tokens", 1 << 20))
        self.per_chunk = bool(settings.get("per_chunk", False))
        self.covers = settings.get("covers")
        self.by_group = bool(settings.get("by_group", False))
        #: Of the two cache managers only the newer one does any of these; it asks with the whole request.
        self.newer = self.by_group or self.per_chunk or self.covers is not None
        self.passed = set(settings.get("passed", ()))
        blocks = int(settings.get("blocks", 64))
        MPI.restart()
        self.workers: list[Any] = []
        for rank in range(first_rank, first_rank + ranks):
            MPI.rank = rank
            self.workers.append(CairnWorker(arguments))
            if rank == first_rank:
                self.scheduler = CairnScheduler(arguments)
        cache_type = settings.get("cache_type", Cache)
        self.caches = [cache_type(blocks, 0 if self.kind == "mla" else rank, self.kind) for rank in range(ranks)]
        for rank, (worker, cache) in enumerate(zip(self.workers, self.caches, strict=True)):
            MPI.rank = first_rank + rank
            cache.register(worker)
        self._free = list(range(blocks))
        self._active: list[Request] = []
        self._shown: dict[int, _Shown] = {}
        self._external: dict[int, int] = {}
        self.matched: dict[int, int] = {}
        self.computed: dict[int, int] = {}
        self._ids = 0
        self.last_step: object = None

    @property
    def staging(self) -> Any:
        """The scheduler's staging memory."""
        return self.scheduler._staging

    @property
    def session(self) -> Any:
        """The scheduler's session."""
        return self.scheduler._session

    # What a client sees.

    def run(self, tokens: Sequence[int], new_tokens: int = 3, **over: Any) -> Request:
        """Serves one request to its end."""
        request = self.add(tokens, **over)
        while not request.done:
            self.step(new_tokens)
        return request

    def add(self, tokens: Sequence[int], **over: Any) -> Request:
        self._ids += 1
        request = Request(self._ids, tokens, **over)
        self._active.append(request)
        return request

    # One iteration of the executor's loop.

    def step(self, new_tokens: int = 3, *, forward: bool = True) -> None:
        for request in self._active:
            self.prepare(request)
        self.show()
        self.begin()
        if forward:
            self.forward(new_tokens)
        self.collect()

    def prepare(self, request: Request) -> None:
        """The cache manager: asks once, then allocates and tells."""
        if request.asked == 0:
            self.ask(request)
            request.position = self.matched[request.request_id]
            self._allocate(request)
            if self.by_group:
                self.scheduler.update_state_after_alloc_by_layer_group(request, [list(request.block_ids)])
            else:
                self.scheduler.update_state_after_alloc(request, list(request.block_ids))
        else:
            self._allocate(request)

    def ask(self, request: Request, computed: int = 0) -> None:
        request.asked += 1
        assert request.asked == 1
        seen = request if self.newer else BoundRequest(request)
        answer = self.scheduler.get_num_new_matched_tokens(seen, computed)
        tokens, asynchronous = int(answer[0]), answer[1]
        assert asynchronous is False
        assert tokens % BLOCK_TOKENS == 0
        assert tokens < len(request.all_tokens)
        if self.covers is not None:  # The newer manager may take less than was answered.
            tokens = min(tokens, self.covers * BLOCK_TOKENS)
        self._external[request.request_id] = tokens
        self.matched[request.request_id] = tokens

    def _chunk(self, request: Request) -> int:
        if request.position >= request.prompt_len:
            return 1
        return min(self.chunk_tokens, int(request.prompt_len - request.position))

    def _allocate(self, request: Request) -> None:
        end = request.position + self._chunk(request)
        if not self.per_chunk:
            end = max(end, request.prompt_len)
        while len(request.block_ids) * BLOCK_TOKENS < end:
            request.block_ids.append(-1 if len(request.block_ids) in self.passed else self._free.pop(0))

    def show(self) -> None:
        """The connector manager: what is new of each request since the last step."""
        output = SchedulerOutput()
        for request in self._active:
            new = request.request_id not in self._shown
            shown = self._shown.setdefault(request.request_id, _Shown())
            data = RequestData(
                request.request_id,
                request.all_tokens[shown.tokens :],
                request.block_ids[shown.block_ids :],
                request.position - self._external.pop(request.request_id, 0),
                self._chunk(request),
                cache_salt=request.cache_salt,
            )
            if self.by_group:
                data.new_block_ids, data.new_block_ids_by_layer_group = [], [data.new_block_ids]
            shown.tokens, shown.block_ids = len(request.all_tokens), len(request.block_ids)
            (output.new_requests if new else output.cached_requests).append(data)
        self.last_step = self.scheduler.build_connector_meta(output)

    def begin(self) -> None:
        """The step's metadata goes to all ranks, and each begins its loads."""
        for worker in self.workers:
            worker.bind_connector_meta(sent_over(self.last_step))
        for worker in self.workers:
            worker.start_load_kv(None)

    def forward(self, new_tokens: int) -> None:
        """The model: uses every block before the position, and fills those from there on."""
        for request in self._active:
            end = request.position + self._chunk(request)
            self.computed[request.request_id] = self.computed.get(request.request_id, 0) + self._chunk(request)
            for cache in self.caches:
                self._use(request, cache)
                for ordinal in range(request.position // BLOCK_TOKENS, end // BLOCK_TOKENS):
                    if request.block_ids[ordinal] >= 0:
                        filled = block_bytes(request.all_tokens, ordinal, cache.shard, self.weights)
                        cache.blocks[request.block_ids[ordinal]][:] = filled
        for worker in self.workers:
            for layer in range(2):
                worker.wait_for_layer_load(layer, None)
                worker.save_kv_layer(layer, None)
            worker.wait_for_save(None)
        for request in list(self._active):
            request.position += self._chunk(request)
            if request.position >= request.prompt_len:
                request.all_tokens.append(len(request.all_tokens))
            if request.position >= request.prompt_len + new_tokens - 1:
                self.finish(request)

    def _use(self, request: Request, cache: Cache) -> None:
        for ordinal in range(request.position // BLOCK_TOKENS):
            block = request.block_ids[ordinal]
            if block >= 0:
                expected = block_bytes(request.all_tokens, ordinal, cache.shard, self.weights)
                assert cache.blocks[block] == expected, f"request {request.request_id}: block {ordinal} is wrong"

    def finish(self, request: Request) -> None:
        """The request ends, whatever it was at; its blocks go to the next one at once, overwritten."""
        request.done = True
        self._active.remove(request)
        if self.by_group:
            kept = self.scheduler.request_finished_by_layer_group(request, [list(request.block_ids)])
        else:
            kept = self.scheduler.request_finished(request, list(request.block_ids))
        assert kept is False
        self._give_back(request)

    def reset(self, request: Request) -> None:
        """The newer manager takes a request's blocks; it runs again from the start and is asked for anew."""
        self.scheduler.request_reset(request)
        self._give_back(request)
        del self._shown[request.request_id]
        request.asked = request.position = 0
        request.block_ids = []

    def _give_back(self, request: Request) -> None:
        held = [block for block in request.block_ids if block >= 0]
        for cache in self.caches:
            for block in held:
                cache.blocks[block][:] = b"\xee" * ROW_BYTES
        self._free += held

    def collect(self) -> None:
        for worker in self.workers:
            assert worker.get_finished([], []) == ([], [])

    def close(self) -> None:
        for worker in self.workers:
            worker.shutdown()
        self.scheduler.shutdown()
