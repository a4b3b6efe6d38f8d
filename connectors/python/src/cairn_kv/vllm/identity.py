"""What makes a block of this engine the same block in another process.

A namespace is a promise: two engines with equal descriptors may read each other's bytes. So everything that changes
the bytes of a block stands in the descriptor: the model and its weights, how it computes (dtype, quantization,
overrides of its configuration), how the engine lays a block out (declared layout, heads, head size, instruction set on
CPU), which build does it, and how the keys are made. Tensor- and pipeline-parallel ranks are shards of one block; LoRA,
multimodal inputs and salts are inside the engine's own keys.

Nothing here guesses. What cannot be told apart for certain (several groups of layers, sliding windows, draft layers, a
pipeline whose stages differ) is `NotServed`: the connector then stores and loads nothing and says so once.

Only attributes of the engine's objects are read, so that the module works with any minor version and imports neither
the engine nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cairn_kv.adapters.identity import Identity, NotServed, weights_fingerprint
from cairn_kv.protocol import NamespaceDescriptor

#: Key lengths by the engine's hash algorithms, bytes.
KEY_BYTES = {"sha256": 32, "sha256_cbor": 32, "xxhash": 16, "xxhash_cbor": 16}


def identity_of(vllm_config: Any, kv_cache_config: Any, engine_version: str, machine: str) -> Identity:
    """Describes the blocks of an engine; the same in its scheduler and in each of its workers.

    ``machine`` names what else decides about a block's bytes (device type, instruction set, torch's version).
    Raises NotServed.
    """
    group = _only_group(kv_cache_config)
    spec = group.kv_cache_spec
    kind = _kind_of(spec)
    cache, model, parallel = vllm_config.cache_config, vllm_config.model_config, vllm_config.parallel_config
    block_tokens = int(spec.block_size)
    _check_hash_unit(cache, kv_cache_config, block_tokens)
    world, shards = _ranks(parallel, model, kind)
    algorithm = str(cache.prefix_caching_hash_algo)
    if algorithm not in KEY_BYTES:
        raise NotServed(f"block hashes are made by {algorithm}, whose length is not known")
    page_bytes = int(spec.page_size_bytes)
    descriptor = NamespaceDescriptor(
        model=str(model.model),
        revision=_revision(model, getattr(vllm_config, "load_config", None)),
        kv_dtype=str(spec.dtype).removeprefix("torch."),
        quant_scales=_has_scales(cache, spec),
        layout=_layout(cache, kv_cache_config, spec, machine),
        row_bytes=page_bytes * len(group.layer_names),
        group_kinds=(kind,),
        draft=False,
        block_tokens=block_tokens,
        hash_algorithm=algorithm,
        hash_seed=_hash_seed(vllm_config, algorithm),
        engine_build=f"vllm {engine_version}",
        key_bytes=KEY_BYTES[algorithm],
        shards=shards,
        chained=True,
    )
    return Identity(descriptor, tuple(group.layer_names), page_bytes, world, _cache_dtype(cache))


def _only_group(kv_cache_config: Any) -> Any:
    groups = list(kv_cache_config.kv_cache_groups)
    if len(groups) != 1:
        kinds = ", ".join(sorted({type(group.kv_cache_spec).__name__ for group in groups})) or "none"
        raise NotServed(f"the model has {len(groups)} groups of layers ({kinds}); one of full attention is served")
    group = groups[0]
    if getattr(group, "is_eagle_group", False):
        raise NotServed("the group holds layers of a draft model")
    if not group.layer_names:
        raise NotServed("the group has no layers")
    return group


def _kind_of(spec: Any) -> str:
    """`full_attention` or `mla`, by the spec's class, which other kinds do not derive from."""
    names = [base.__name__ for base in type(spec).__mro__]
    if "SlidingWindowSpec" in names or "SlidingWindowMLASpec" in names or "ChunkedLocalAttentionSpec" in names:
        raise NotServed(f"{names[0]}: blocks outside of a window are not kept by the engine")
    if getattr(spec, "sliding_window", None) is not None or getattr(spec, "attention_chunk_size", None) is not None:
        raise NotServed("the layers attend to a window only")
    if "MLAAttentionSpec" in names:
        return "mla"
    if names[0] == "FullAttentionSpec":
        return "full_attention"
    raise NotServed(f"{names[0]} is no kind of attention that is served")


def _check_hash_unit(cache: Any, kv_cache_config: Any, block_tokens: int) -> None:
    unit = getattr(kv_cache_config, "hash_block_size", None) or getattr(cache, "hash_block_size", None)
    if unit is not None and int(unit) != block_tokens:
        raise NotServed(f"keys are made for every {unit} tokens, blocks hold {block_tokens}")


def _ranks(parallel: Any, model: Any, kind: str) -> tuple[int, int]:
    """(ranks in all, shards of a block). All ranks of one stage hold the same bytes of MLA layers."""
    tensor = int(parallel.tensor_parallel_size)
    pipeline = int(parallel.pipeline_parallel_size)
    for field in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if int(getattr(parallel, field, 1) or 1) > 1:
            raise NotServed(f"{field} splits a block's tokens over ranks")
    if pipeline > 1:
        layers = int(model.get_total_num_hidden_layers())
        if layers % pipeline != 0:
            raise NotServed(f"{layers} layers over {pipeline} stages: the stages' rows differ in length")
        if kind == "mla" and tensor > 1:
            raise NotServed("MLA with tensor and pipeline parallelism: the shards' owners are not settled")
    if kind == "mla":
        return tensor * pipeline, pipeline
    return tensor * pipeline, tensor * pipeline


def _revision(model: Any, load: Any) -> str:
    """What the model's name leaves open: revision, weights on this disk and how they are read, dtype, configuration."""
    config = getattr(model, "hf_config", None)
    to_json = getattr(config, "to_json_string", None)
    text = str(to_json(use_diff=False)) if to_json is not None else repr(config)
    parts = {
        "revision": str(getattr(model, "revision", None) or getattr(config, "_commit_hash", None) or ""),
        "weights": weights_fingerprint(Path(str(model.model))),
        # `dummy` computes with weights of its own making.
        "loadFormat": str(getattr(load, "load_format", "")),
        "dtype": str(getattr(model, "dtype", "")),
        "quantization": str(getattr(model, "quantization", None) or ""),
        "config": hashlib.sha256(text.encode()).hexdigest()[:16],
    }
    return json.dumps(parts, sort_keys=True, separators=(",", ":"))


def _cache_dtype(cache: Any) -> str:
    return str(getattr(cache, "cache_dtype", "auto"))


def _has_scales(cache: Any, spec: Any) -> bool:
    quantized = _cache_dtype(cache).startswith(("fp8", "int8", "nvfp4"))
    return quantized or (
        getattr(spec, "kv_quant_mode", None) not in (None, 0)
        and "NONE" not in str(getattr(spec, "kv_quant_mode", "NONE"))
    )


def _layout(cache: Any, kv_cache_config: Any, spec: Any, machine: str) -> str:
    """The layout as the engine declares it, and what the opaque bytes of a block depend on."""
    declared = getattr(kv_cache_config, "kv_cache_layout", None) or getattr(cache, "kv_cache_layout", None)
    facts = {
        "declared": str(declared or "undeclared"),
        "spec": type(spec).__name__,
        "heads": int(getattr(spec, "num_kv_heads", 0)),
        "headSize": int(getattr(spec, "head_size", 0)),
        "cacheDtype": _cache_dtype(cache),
        "pageBytes": int(spec.page_size_bytes),
        "machine": machine,
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _hash_seed(vllm_config: Any, algorithm: str) -> str:
    """Tells seeds apart without telling them.

    An engine seeds its first hash with PYTHONHASHSEED, else with a fixed text for cryptographic algorithms, else
    at random: nobody else's keys can then be equal, and the engine's own id stands for the seed.
    """
    seed = os.environ.get("PYTHONHASHSEED")
    if seed is not None:
        return hashlib.sha256(seed.encode()).hexdigest()[:16]
    if algorithm.startswith("sha256"):
        return "default"
    return f"random {vllm_config.kv_transfer_config.engine_id}"
