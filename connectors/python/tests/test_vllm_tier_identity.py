"""The namespace of a tier's chunks: equal where bytes are, different where anything says that they may not be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cairn_kv import NamespaceDescriptor
from cairn_kv.adapters.identity import NotServed
from cairn_kv.vllm.tier_identity import describe_chunks


@dataclass(frozen=True)
class Group:
    """Layers that share block tables."""

    tokens_per_block: int = 16
    layer_names: tuple[str, ...] = ("a", "b")


@dataclass(frozen=True)
class Model:
    """The model."""

    name: str = "org/model"
    dtype: str = "bfloat16"
    max_model_len: int = 4_096


@dataclass(frozen=True)
class Cache:
    """Sizes of blocks and chunks."""

    tokens_per_hash: int = 16
    blocks_per_chunk: int = 2


@dataclass(frozen=True)
class Parallel:
    """Ranks."""

    rank: int = 0
    tp_size: int = 1
    world_size: int = 1
    data_parallel_index: int = 0
    data_parallel_size: int = 1


@dataclass(frozen=True)
class Config:
    """An engine's offloading configuration, as far as the tier knows it, and a field that it does not know."""

    engine_id: str = "one"
    groups: tuple[Group, ...] = (Group(),)
    extra_config: dict[str, Any] = field(default_factory=dict)
    enable_kv_cache_events: bool = False
    model: Model = Model()
    cache: Cache = Cache()
    parallel: Parallel = Parallel()
    kv_cache_layout: str | None = "NHD"
    layout_of_tomorrow: str | None = None


def described(
    config: Config, revision: str = "", row_bytes: int = 4_096, version: str = "0.32", on: str = "cpu"
) -> NamespaceDescriptor:
    return describe_chunks(config, row_bytes, revision, version, on).descriptor


def test_which_process_it_is_makes_no_difference() -> None:
    other = Config(
        engine_id="two",
        extra_config={"cpu_bytes_to_use": 1, "secondary_tiers": [object()]},
        enable_kv_cache_events=True,
        model=Model(max_model_len=99),
        parallel=Parallel(rank=3, data_parallel_index=1, data_parallel_size=2),
    )
    assert described(Config()) == described(other)
    assert described(Config()).block_tokens == 32


def test_whatever_the_bytes_may_depend_on_makes_another_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    others = [
        replace(config, model=Model(name="org/other")),
        replace(config, model=Model(dtype="float16")),
        replace(config, groups=(Group(), Group(layer_names=("c",)))),
        replace(config, groups=(Group(layer_names=("a", "c")),)),
        replace(config, cache=Cache(blocks_per_chunk=1)),
        replace(config, parallel=Parallel(tp_size=2, world_size=2)),
        replace(config, kv_cache_layout="HND"),
        replace(config, layout_of_tomorrow="another"),
    ]
    descriptors = [described(config), *map(described, others)]
    descriptors += [described(config, revision="abc"), described(config, row_bytes=8_192)]
    descriptors += [described(config, version="0.33"), described(config, on="cpu AMX")]
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    descriptors.append(described(config))
    assert len(set(descriptors)) == len(descriptors)


def test_a_model_in_a_directory_is_told_apart_by_its_weights_and_its_configuration(tmp_path: Path) -> None:
    config = Config(model=Model(name=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = described(config)
    (tmp_path / "config.json").write_text("{}")
    second = described(config)
    (tmp_path / "model.safetensors").write_bytes(b"changed")
    revisions = {descriptor.revision for descriptor in (first, second, described(config))}
    assert len(revisions) == 3


def test_an_engine_without_layers_is_not_served_and_no_text_is_too_long_for_the_daemon() -> None:
    with pytest.raises(NotServed, match="no layers"):
        described(Config(groups=()))
    assert len(described(Config(), revision="x" * 10_000).revision) < 1_024, "the daemon's bound of a text"


def test_an_engine_that_does_not_tell_its_layout_is_not_served() -> None:
    with pytest.raises(NotServed, match=r"lays out a chunk; a tier needs 0\.29"):
        described(replace(Config(), kv_cache_layout=None))
    before_029 = SimpleNamespace(**{name: fact for name, fact in vars(Config()).items() if name != "kv_cache_layout"})
    with pytest.raises(NotServed, match="lays out a chunk"):
        describe_chunks(before_029, 4_096, "", "0.28", "cpu")
