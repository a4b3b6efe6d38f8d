"""What makes a page of this engine the same page in another process.

A namespace is a promise: two engines with equal descriptors may read each other's bytes. HiCache hands a backend little
to make it from (a *served* model name, ranks), so the rest is taken from where it stands: the engine's arguments, the
host pool's geometry and layout, the weights on disk, the engine's version.

A rank is a namespace of its own. The engine asks each rank for itself and goes on with the least of their answers, and
which ranks hold which part of a page (tensor and pipeline stages, context-parallel slices) is its own business: a rank
that waited for the others' shards would wait for ranks that may not exist. With MLA all tensor-parallel ranks hold the
same bytes: they share a namespace and an engine id, the engine lets one of them write, and its proof holds for all.

Pages are unchained. Their keys are chains of hashes, but no call of the engine says reliably where in its chain a page
stands: `prefix_keys` is absent unless it is configured, absent at the root even then, and in a read it lacks the pages
of the node that the read continues. A key names its whole prefix anyhow, so nothing is lost in safety.

Only attributes of the engine's objects are read, so that the module works with any version and imports no engine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cairn_kv.adapters.identity import NotServed, weights_fingerprint
from cairn_kv.protocol import NamespaceDescriptor

from .pages import Geometry

#: Page keys are SHA-256.
KEY_BYTES = 32
#: What the engine's arguments tell of the bytes of a page.
_ARGUMENTS = (
    "model_path",
    "revision",
    "weight_version",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "quantization_param_path",
    "json_model_override_args",
)
#: What the host pool tells of its geometry, as far as its kind has it.
_GEOMETRY = (
    "page_size",
    "layer_num",
    "target_layer_num",
    "start_layer",
    "end_layer",
    "head_num",
    "head_group_num",
    "head_dim",
    "v_head_dim",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "kv_cache_dim",
    "size_per_token",
)


@dataclass(frozen=True)
class Identity:
    """One rank's pages, and which ranks share them.

    ``flat``: a page is stored in the order of the engine's flat copies, not of its buffers. ``dtype`` is the KV
    cache's own, also where the pool stores it as plain bytes.
    """

    descriptor: NamespaceDescriptor
    engine_id: str
    rank: int
    ranks: int
    flat: bool
    dtype: str


def identity_of(
    config: Any, pool: Any, geometry: Geometry, arguments: Any, version: str, launch: str, *, flat: bool, cleared: int
) -> Identity:
    """Describes the pages of a rank.

    Args:
        config: the engine's `HiCacheStorageConfig`.
        pool: the engine's host pool.
        geometry: of the pool's pages.
        arguments: the engine's server arguments, None where there are none.
        version: the engine's.
        launch: names this life of the engine, the same in all of its ranks.
        flat: pages come as flat copies.
        cleared: how often the engine gave up what was stored: a new namespace each time.

    Raises:
        NotServed: the engine's configuration is outside of what is served.

    """
    if int(getattr(config, "dcp_size", 1) or 1) > 1:
        raise NotServed("decode context parallelism splits the tokens of a page over ranks")
    replicated = bool(config.is_mla_model)
    revision = _revision(arguments)
    if cleared:
        revision["cleared"] = f"{launch} {cleared}"
    dtype = _dtype(pool, arguments)
    descriptor = NamespaceDescriptor(
        model=str(config.model_name or revision.get("model_path") or "unnamed"),
        revision=_packed(revision),
        kv_dtype=dtype,
        quant_scales=bool(revision.get("quantization_param_path")) or dtype.startswith("float8"),
        layout=_packed(_layout(config, pool, geometry, replicated=replicated, flat=flat)),
        row_bytes=geometry.row_bytes,
        group_kinds=("mla" if replicated else "full_attention",),
        draft=False,
        block_tokens=geometry.indices,
        hash_algorithm="sha256",
        hash_seed="sglang",
        engine_build=f"sglang {version}",
        key_bytes=KEY_BYTES,
        shards=1,
        chained=False,
    )
    digest = hashlib.sha256(msgspec.json.encode(descriptor)).hexdigest()[:16]
    return Identity(
        descriptor=descriptor,
        engine_id=f"sglang-{launch}-{digest}",
        rank=int(config.tp_rank) if replicated else 0,
        ranks=int(config.tp_size) if replicated else 1,
        flat=flat,
        dtype=dtype,
    )


def _revision(arguments: Any) -> dict[str, str]:
    """What the served name leaves open."""
    found = {name: getattr(arguments, name, None) for name in _ARGUMENTS}
    facts = {name: str(value) for name, value in found.items() if value is not None}
    if "model_path" in facts:
        facts["weights"] = weights_fingerprint(Path(facts["model_path"]))
    return facts


def _dtype(pool: Any, arguments: Any) -> str:
    """The KV cache's dtype; 8-bit floats are stored as plain bytes by the pool."""
    stored = str(pool.dtype).removeprefix("torch.")
    declared = str(getattr(arguments, "kv_cache_dtype", "") or "")
    by_name = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
    return by_name.get(declared, stored) if stored == "uint8" else stored


def _layout(config: Any, pool: Any, geometry: Geometry, *, replicated: bool, flat: bool) -> Mapping[str, Any]:
    facts: dict[str, Any] = {
        "pool": type(pool).__name__,
        "layout": str(pool.layout),
        "format": str(getattr(pool, "storage_format_tag", None) or ""),
        "order": "flat" if flat else "buffers",
        "stored": str(pool.dtype).removeprefix("torch."),
        "buffers": [len(geometry.buffers), *sorted(set(geometry.buffers))],
        "pipeline": [int(config.pp_rank), int(config.pp_size)],
        "context": [int(getattr(config, "attn_cp_rank", 0)), int(getattr(config, "attn_cp_size", 1))],
    }
    if not replicated:
        facts["tensor"] = [int(config.tp_rank), int(config.tp_size)]
    for name in _GEOMETRY:
        value = getattr(pool, name, None)
        if isinstance(value, int):
            facts[name] = value
    return facts


def _packed(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def launch_of(parent: int | None = None) -> str:
    """Names one start of the engine in all of its ranks: the process that started them, and when that began.

    Ranks are children of one process. Its number alone comes again, with its start time (clock ticks since the host's
    start) and the namespace of process numbers it does not.
    """
    number = os.getppid() if parent is None else parent
    try:
        began = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        space = os.readlink("/proc/self/ns/pid")
    except (OSError, IndexError):
        return f"{number}-{os.urandom(4).hex()}"
    return f"{number}-{began}-{space.strip('pid:[]')}"
