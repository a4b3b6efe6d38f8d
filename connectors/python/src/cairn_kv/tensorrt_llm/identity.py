"""What makes a block of this engine the same block in another process.

As everywhere (`cairn_kv.adapters.identity`): two engines with equal descriptors may read each other's bytes, so
everything that changes a block's bytes stands in the descriptor, and what cannot be told for certain is `NotServed`.
Only attributes of the engine's arguments are read, and files of the model, so that this works with any version and
imports neither engine nor torch.

Tensor-parallel ranks hold different heads: shards of one block. With MLA all of them hold the same bytes, of which the
first stores one copy and all load it. Under attention data parallelism each rank is an engine of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn_kv import NamespaceDescriptor
from cairn_kv.adapters.identity import Identity, NotServed, weights_fingerprint

from .chain import ALGORITHM, KEY_BYTES

#: Arguments that decide how keys and values are computed.
COMPUTING_FIELDS = (
    "dtype",
    "quant_config",
    "attn_backend",
    "model_kwargs",
    "revision",
    "sparse_attention_config",
    "load_format",
)
#: Files of the model that decide the same.
COMPUTING_FILES = ("config.json", "hf_quant_config.json")
#: Parts of names in a model's configuration that speak of inputs other than text.
OTHER_INPUTS = ("vision", "visual", "image", "video", "audio", "speech", "multimodal", "modality", "mm_")


@dataclass(frozen=True)
class PoolFacts:
    """One rank's blocks as they were registered. ``kind``: full_attention or mla. ``layout``: what was declared."""

    blocks: int
    row_bytes: int
    dtype: str
    kind: str
    layout: dict[str, Any]


def attention_dp(llm_args: Any) -> bool:
    """Whether each rank has its own requests, scheduler and blocks."""
    return bool(getattr(llm_args, "enable_attention_dp", False))


def world_of(llm_args: Any) -> int:
    """Ranks that share one scheduler."""
    return 1 if attention_dp(llm_args) else int(getattr(llm_args, "tensor_parallel_size", 1) or 1)


def identity_of(llm_args: Any, facts: PoolFacts, engine_version: str, machine: str) -> Identity:
    """Describes the blocks of an engine, the same on all of its ranks.

    ``machine`` names what else decides about a block's bytes (device, torch's version). Raises NotServed.
    """
    _check(llm_args, facts)
    world = world_of(llm_args)
    shards = 1 if facts.kind == "mla" else world
    block_tokens = int(llm_args.kv_cache_config.tokens_per_block)
    descriptor = NamespaceDescriptor(
        model=str(llm_args.model),
        revision=_revision(llm_args),
        kv_dtype=facts.dtype,
        quant_scales=facts.dtype.startswith(("float8", "uint8", "int8", "float4")),
        layout=json.dumps({**facts.layout, "machine": machine}, sort_keys=True, separators=(",", ":")),
        row_bytes=facts.row_bytes,
        group_kinds=(facts.kind,),
        draft=False,
        block_tokens=block_tokens,
        hash_algorithm=ALGORITHM,
        hash_seed="default",
        engine_build=f"tensorrt_llm {engine_version}",
        key_bytes=KEY_BYTES,
        shards=shards,
        chained=True,
    )
    return Identity(descriptor, layer_names=(), page_bytes=facts.row_bytes, world=world)


def _check(llm_args: Any, facts: PoolFacts) -> None:
    cache = llm_args.kv_cache_config
    if int(getattr(llm_args, "max_beam_width", 1) or 1) > 1:
        raise NotServed("beam search: a request has several chains")
    for name in ("pipeline_parallel_size", "context_parallel_size"):
        if int(getattr(llm_args, name, 1) or 1) > 1:
            raise NotServed(f"{name}: a rank holds some layers, or some tokens, of a block")
    if getattr(llm_args, "speculative_config", None) is not None:
        raise NotServed("speculative decoding: what draft layers hold depends on the token after the block")
    if getattr(cache, "max_attention_window", None) or getattr(cache, "sink_token_length", None):
        raise NotServed("sliding windows: blocks outside of a window are not kept by the engine")
    four_bit = facts.dtype.startswith(("uint8", "float4")) or "fp4" in str(getattr(cache, "dtype", "")).lower()
    if facts.layout.get("manager") == 1 and four_bit:
        raise NotServed("the older cache manager keeps the scales of 4-bit blocks apart from its one pool")
    if int(getattr(cache, "host_cache_size", 0) or 0) > 0:
        raise NotServed("host_cache_size: the engine moves blocks to host memory and back to other places")
    if not getattr(cache, "enable_block_reuse", True):
        raise NotServed("enable_block_reuse is off: the engine then ignores what a connector finds")
    per_node = getattr(llm_args, "gpus_per_node", None)
    if per_node and world_of(llm_args) > int(per_node):
        raise NotServed(f"{world_of(llm_args)} ranks on nodes of {per_node}: they share no memory")
    if facts.blocks < 2 or facts.row_bytes < 1:
        raise NotServed(f"{facts.blocks} blocks of {facts.row_bytes} bytes")


def text_only(llm_args: Any) -> bool:
    """Whether the model is known to take nothing but text: its configuration is there, and names nothing else."""
    try:
        config = json.loads((_model_directory(llm_args) / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(config, dict) or config.get("is_encoder_decoder"):
        return False
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return False
    if not all(str(name).endswith("ForCausalLM") for name in architectures):
        return False
    names = (*_names_in(config), str(config.get("model_type", "")), *map(str, architectures))
    return not any(part in name.lower() for name in names for part in OTHER_INPUTS)


def _names_in(value: Any) -> Iterator[str]:
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(name, str):
            yield name
        if isinstance(inner, (dict, list)):
            yield from _names_in(inner)


def _model_directory(llm_args: Any) -> Path:
    """Where the model's files lie; for a hub's name the place in the hub's cache, if it is there."""
    model = Path(str(llm_args.model))
    if model.is_dir():
        return model
    try:
        hub = importlib.import_module("huggingface_hub")
        revision = getattr(llm_args, "revision", None)
        found = hub.try_to_load_from_cache(str(llm_args.model), "config.json", revision=revision)
    except (ImportError, ValueError):  # Without the hub's client, or a name that cannot be one of the hub's.
        return model
    return Path(found).parent if isinstance(found, str) else model


def _revision(llm_args: Any) -> str:
    """What the model's name leaves open: its files on this disk, and how it is computed."""
    computing = {name: repr(getattr(llm_args, name, None)) for name in COMPUTING_FIELDS}
    directory = _model_directory(llm_args)
    for name in COMPUTING_FILES:
        path = directory / name
        computing[name] = _digest(path.read_bytes()) if path.is_file() else ""
    parts = {
        "weights": weights_fingerprint(directory),
        "computing": _digest(json.dumps(computing, sort_keys=True).encode()),
    }
    return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
