"""What makes a chunk of an engine's CPU tier the same chunk in another process.

A chunk's bytes are opaque: the pages of all layers and all workers as the engine lays them out, padding included. So
all that the engine tells about what it offloads goes into the namespace, fields of later versions included, save what
only says which process this is. What a tier is not told is the revision of a model that is named rather than a
directory, and overrides given on the command line: those are the option `revision`, and for whoever sets none, the
daemon's proof.

Imports neither the engine nor torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cairn_kv.adapters.identity import Identity, NotServed, weights_fingerprint
from cairn_kv.protocol import NamespaceDescriptor

from .tier_link import KEY_BYTES

#: Of the engine's configuration, what says nothing about a chunk's bytes, or stands in the namespace by itself.
NOT_OF_BYTES = ("engine_id", "extra_config", "enable_kv_cache_events", "model")
NOT_OF_BYTES_PARALLEL = ("rank", "data_parallel_index", "data_parallel_size", "data_parallel_rank_local")


def describe_chunks(config: Any, row_bytes: int, revision: str, engine_version: str, machine: str) -> Identity:
    """The chunks of an engine with this offloading configuration: the same in every engine that may read them.

    ``row_bytes`` is the length of a chunk, ``revision`` the operator's word, ``machine`` as in identity.py.
    Raises NotServed.
    """
    if not config.groups:
        raise NotServed("no layers are offloaded")
    if getattr(config, "kv_cache_layout", None) is None:
        # Attention backends lay a block out differently, and nothing else of the configuration tells which one it is.
        raise NotServed("the engine does not tell how it lays out a chunk; a tier needs 0.29")
    blocks = int(config.cache.blocks_per_chunk)
    block_tokens = max(int(group.tokens_per_block) for group in config.groups) * blocks
    dtype = str(config.model.dtype)
    descriptor = NamespaceDescriptor(
        model=str(config.model.name),
        revision=_revision(Path(str(config.model.name)), revision),
        kv_dtype=dtype,
        quant_scales=dtype.startswith(("fp8", "int8", "nvfp4")),
        layout=f"offload chunk {_digest(_facts(config))} of {blocks} blocks, {machine}",
        row_bytes=row_bytes,
        group_kinds=("offloaded",) * len(config.groups),
        draft=False,
        block_tokens=block_tokens,
        # The engine's own, which it does not tell: another one, or another seed, makes other keys.
        hash_algorithm="engine",
        hash_seed=_digest(os.environ.get("PYTHONHASHSEED")),
        engine_build=f"vllm {engine_version}",
        key_bytes=KEY_BYTES,
        shards=1,
        chained=False,
    )
    return Identity(descriptor, ("chunk",), row_bytes, world=1)


def _facts(config: Any) -> dict[str, Any]:
    """What the engine tells of its chunks' bytes."""
    told = dataclasses.asdict(dataclasses.replace(config, extra_config={}))
    facts = {name: fact for name, fact in told.items() if name not in NOT_OF_BYTES}
    facts["parallel"] = {name: fact for name, fact in told["parallel"].items() if name not in NOT_OF_BYTES_PARALLEL}
    return facts


def _revision(model: Path, named: str) -> str:
    """What the model's name leaves open: weights and configuration on this disk, and what the operator says."""
    config = model / "config.json"
    text = config.read_text() if config.is_file() else ""
    facts = {"weights": weights_fingerprint(model), "config": _digest(text), "named": _digest(named)}
    return json.dumps(facts, sort_keys=True)


def _digest(fact: object) -> str:
    return hashlib.sha256(json.dumps(fact, sort_keys=True, default=str).encode()).hexdigest()[:16]
