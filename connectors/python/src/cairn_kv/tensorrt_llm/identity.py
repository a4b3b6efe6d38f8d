"""What makes a block of this engine the same block in another process.

As everywhere (`cairn_kv.adapters.identity`): engines with equal descriptors may read each other's bytes, so everything
that changes a block's bytes stands in the descriptor, and what cannot be told for certain is `NotServed`. Only
attributes of the engine's arguments are read, so that this works with any version and imports neither engine nor torch.

Tensor-parallel ranks hold different heads: shards of one block. With MLA all of them hold the same bytes, of which the
first stores one copy and all load it. Under attention data parallelism each rank is an engine of its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn_kv import NamespaceDescriptor
from cairn_kv.adapters.identity import Identity, NotServed, weights_fingerprint

from .chain import ALGORITHM, KEY_BYTES

#: Arguments that decide how keys and values are computed.
COMPUTING_FIELDS = ("dtype", "quant_config", "attn_backend", "model_kwargs", "revision", "sparse_attention_config")


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


def _revision(llm_args: Any) -> str:
    """What the model's name leaves open: weights on this disk, and how it is computed."""
    computing = {name: repr(getattr(llm_args, name, None)) for name in COMPUTING_FIELDS}
    text = json.dumps(computing, sort_keys=True)
    parts = {
        "weights": weights_fingerprint(Path(str(llm_args.model))),
        "computing": hashlib.sha256(text.encode()).hexdigest()[:32],
    }
    return json.dumps(parts, sort_keys=True, separators=(",", ":"))
