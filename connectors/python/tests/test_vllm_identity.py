"""What makes blocks of a vLLM the same, and which of its configurations are not served, by plain objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from cairn_kv.adapters.identity import Identity, NotServed
from cairn_kv.vllm.identity import KEY_BYTES, identity_of


@dataclass
class FullAttentionSpec:
    """The engine's class of this name, as far as it is read."""

    block_size: int = 16
    page_size_bytes: int = 4_096
    dtype: str = "torch.bfloat16"
    num_kv_heads: int = 2
    head_size: int = 32
    sliding_window: int | None = None
    attention_chunk_size: int | None = None


class MLAAttentionSpec(FullAttentionSpec):
    """One latent vector for all heads."""


class SlidingWindowSpec(FullAttentionSpec):
    """Keeps a window only."""


class SlidingWindowMLASpec(MLAAttentionSpec):
    """The same, of latent vectors."""


class ChunkedLocalAttentionSpec(FullAttentionSpec):
    """Keeps a chunk only."""


class MambaSpec(FullAttentionSpec):
    """Keeps a state and no tokens."""


class SinkFullAttentionSpec(FullAttentionSpec):
    """A kind that nobody has looked at."""


@dataclass
class Group:
    """Layers that share block tables."""

    kv_cache_spec: Any = field(default_factory=FullAttentionSpec)
    layer_names: tuple[str, ...] = ("a", "b")
    is_eagle_group: bool = False


class Engine:
    """An engine's configuration; a test changes what it is about."""

    def __init__(self) -> None:
        self.groups: list[Group] = [Group()]
        self.kv_cache = SimpleNamespace(kv_cache_groups=self.groups)
        self.cache = SimpleNamespace(prefix_caching_hash_algo="sha256", cache_dtype="auto")
        self.model = SimpleNamespace(
            model="org/model",
            revision="main",
            dtype="torch.bfloat16",
            quantization=None,
            hf_config=SimpleNamespace(to_json_string=lambda use_diff: f"{{}}{use_diff}"),
            get_total_num_hidden_layers=lambda: 8,
        )
        self.parallel = SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1)
        self.load = SimpleNamespace(load_format="auto")
        self.engine_id = "engine"

    @property
    def spec(self) -> FullAttentionSpec:
        spec = self.groups[0].kv_cache_spec
        assert isinstance(spec, FullAttentionSpec)
        return spec

    def mla(self) -> None:
        self.groups[0].kv_cache_spec = MLAAttentionSpec()

    def identity(self, version: str = "0.32.0", machine: str = "cpu") -> Identity:
        config = SimpleNamespace(
            cache_config=self.cache,
            model_config=self.model,
            parallel_config=self.parallel,
            load_config=self.load,
            kv_transfer_config=SimpleNamespace(engine_id=self.engine_id),
        )
        return identity_of(config, self.kv_cache, version, machine)


@pytest.fixture(autouse=True)
def _no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)


def _sets(place: str, name: str, value: Any) -> Callable[[Engine], None]:
    return lambda engine: setattr(getattr(engine, place), name, value)


def _of_kind(kind: type[FullAttentionSpec]) -> Callable[[Engine], None]:
    return lambda engine: setattr(engine.groups[0], "kv_cache_spec", kind())


def _mla_over_two(engine: Engine) -> None:
    engine.mla()
    engine.parallel.tensor_parallel_size = engine.parallel.pipeline_parallel_size = 2


def _uneven_stages(engine: Engine) -> None:
    engine.parallel.pipeline_parallel_size = 3


NOT_SERVED: dict[str, tuple[Callable[[Engine], None], str]] = {
    "no groups": (lambda engine: engine.groups.clear(), r"0 groups of layers \(none\)"),
    "two groups": (lambda engine: engine.groups.append(Group()), "2 groups of layers"),
    "a draft model's group": (lambda engine: setattr(engine.groups[0], "is_eagle_group", True), "draft model"),
    "a group without layers": (lambda engine: setattr(engine.groups[0], "layer_names", ()), "no layers"),
    "a sliding window": (_of_kind(SlidingWindowSpec), "outside of a window"),
    "a sliding window of MLA": (_of_kind(SlidingWindowMLASpec), "outside of a window"),
    "chunked local attention": (_of_kind(ChunkedLocalAttentionSpec), "outside of a window"),
    "full attention with a window": (_sets("spec", "sliding_window", 128), "attend to a window"),
    "full attention in chunks": (_sets("spec", "attention_chunk_size", 128), "attend to a window"),
    "a state": (_of_kind(MambaSpec), "MambaSpec is no kind"),
    "a kind derived from full attention": (_of_kind(SinkFullAttentionSpec), "SinkFullAttentionSpec is no kind"),
    "keys for other tokens, by the cache": (_sets("kv_cache", "hash_block_size", 8), "every 8 tokens, blocks hold 16"),
    "keys for other tokens, by the model": (_sets("cache", "hash_block_size", 32), "every 32 tokens, blocks hold 16"),
    "a hash of unknown length": (_sets("cache", "prefix_caching_hash_algo", "md5"), "made by md5"),
    "decode context parallelism": (_sets("parallel", "decode_context_parallel_size", 2), "splits a block's tokens"),
    "prefill context parallelism": (_sets("parallel", "prefill_context_parallel_size", 2), "splits a block's tokens"),
    "stages of different length": (_uneven_stages, "8 layers over 3 stages"),
    "MLA over ranks and stages": (_mla_over_two, "owners are not settled"),
}


@pytest.mark.parametrize("what", NOT_SERVED)
def test_what_cannot_be_told_apart_for_certain_is_not_served(what: str) -> None:
    change, why = NOT_SERVED[what]
    engine = Engine()
    engine.identity()
    change(engine)
    with pytest.raises(NotServed, match=why):
        engine.identity()


def test_a_row_holds_the_pages_of_all_layers_and_keys_are_as_long_as_the_engines() -> None:
    engine = Engine()
    identity = engine.identity()
    assert (identity.row_bytes, identity.page_bytes, identity.block_tokens) == (8_192, 4_096, 16)
    assert identity.layer_names == ("a", "b")
    assert identity.descriptor.group_kinds == ("full_attention",)
    assert identity.descriptor.kv_dtype == "bfloat16"
    for algorithm, key_bytes in KEY_BYTES.items():
        engine.cache.prefix_caching_hash_algo = algorithm
        assert engine.identity().key_bytes == key_bytes


def test_keys_for_as_many_tokens_as_a_block_holds_are_served() -> None:
    engine = Engine()
    engine.kv_cache.hash_block_size = engine.cache.hash_block_size = 16
    assert engine.identity().block_tokens == 16


@pytest.mark.parametrize(("tensor", "pipeline", "shards"), [(1, 1, 1), (4, 1, 4), (1, 2, 2), (2, 4, 8)])
def test_each_rank_is_a_shard_of_a_block(tensor: int, pipeline: int, shards: int) -> None:
    engine = Engine()
    engine.parallel.tensor_parallel_size, engine.parallel.pipeline_parallel_size = tensor, pipeline
    identity = engine.identity()
    assert (identity.world, identity.shards) == (tensor * pipeline, shards)
    assert [identity.stores(rank) for rank in range(identity.world)] == [True] * shards


@pytest.mark.parametrize(("tensor", "pipeline", "shards"), [(1, 1, 1), (4, 1, 1), (1, 2, 2)])
def test_the_ranks_of_a_stage_hold_the_same_bytes_of_mla(tensor: int, pipeline: int, shards: int) -> None:
    engine = Engine()
    engine.mla()
    engine.parallel.tensor_parallel_size, engine.parallel.pipeline_parallel_size = tensor, pipeline
    identity = engine.identity()
    assert (identity.world, identity.shards) == (tensor * pipeline, shards)
    assert identity.descriptor.group_kinds == ("mla",)
    assert sum(identity.stores(rank) for rank in range(identity.world)) == shards


APART: dict[str, Callable[[Engine], None]] = {
    "model": _sets("model", "model", "org/other"),
    "revision": _sets("model", "revision", "v2"),
    "type": _sets("model", "dtype", "torch.float16"),
    "quantization": _sets("model", "quantization", "awq"),
    "configuration": _sets("model", "hf_config", SimpleNamespace(rope="other")),
    "how weights are read": _sets("load", "load_format", "dummy"),
    "cache's type": _sets("cache", "cache_dtype", "fp8"),
    "layout": _sets("kv_cache", "kv_cache_layout", "HND"),
    "layout by the cache": _sets("cache", "kv_cache_layout", "NHD"),
    "heads": _sets("spec", "num_kv_heads", 4),
    "page": _sets("spec", "page_size_bytes", 8_192),
    "hash": _sets("cache", "prefix_caching_hash_algo", "sha256_cbor"),
    "ranks": _sets("parallel", "tensor_parallel_size", 2),
}


def test_whatever_changes_a_blocks_bytes_makes_another_namespace() -> None:
    descriptors = [Engine().identity().descriptor]
    for change in APART.values():
        engine = Engine()
        change(engine)
        descriptors.append(engine.identity().descriptor)
    descriptors.append(Engine().identity(version="0.33.0").descriptor)
    descriptors.append(Engine().identity(machine="cpu AMX").descriptor)
    assert len(set(descriptors)) == len(APART) + 3
    assert json.loads(descriptors[0].revision)["loadFormat"] == "auto"


def test_which_engine_it_is_makes_no_difference_where_seeds_are_equal() -> None:
    one, two = Engine(), Engine()
    two.engine_id = "another"
    assert one.identity() == two.identity()


def test_seeds_are_told_apart_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def seed(algorithm: str = "sha256", engine_id: str = "engine") -> str:
        engine = Engine()
        engine.cache.prefix_caching_hash_algo = algorithm
        engine.engine_id = engine_id
        return engine.identity().descriptor.hash_seed

    assert seed() == seed("sha256_cbor") == "default"
    assert seed("xxhash") != seed("xxhash", "another"), "seeded at random: nobody else's keys are equal"
    monkeypatch.setenv("PYTHONHASHSEED", "7654321")
    seven = seed()
    assert seven == seed("xxhash") == seed("xxhash", "another")
    assert "7654321" not in seven
    monkeypatch.setenv("PYTHONHASHSEED", "8")
    assert seed() not in {seven, "default"}
