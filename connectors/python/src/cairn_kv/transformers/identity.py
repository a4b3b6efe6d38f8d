"""What makes a block of this model the same block in another process.

Everything that changes a block's bytes stands in the namespace's descriptor: the weights themselves (a digest of what
lies in memory, because a researcher's model often is no longer what its name says), the configuration, the dtype,
how attention is computed, the versions of transformers and torch, the device and its instruction set, the shapes of
all layers, and the salt.

Nothing is guessed. Shapes come from a forward pass of two tokens, and models whose keys and values depend on anything
but the tokens before them are `NotServed`. Only attributes are read here, so this module needs neither torch nor
transformers; probe.py does what needs them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn_kv.adapters.identity import NotServed
from cairn_kv.protocol import NamespaceDescriptor

KEY_BYTES = 32
#: The daemon's longest row.
ROW_BYTES_MAX = 2**31 - 1
#: Of the model's name; the daemon takes 1,024.
NAME_CHARACTERS_MAX = 512
SPREAD = "the model is spread over several ranks, each with a part of every block"
#: Rotary embeddings that turn with the length of the whole input: equal tokens then have unequal keys.
ROTARY_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True)
class LayerShape:
    """One layer's keys and values of one token: (heads, numbers of a head) each."""

    keys: tuple[int, int]
    values: tuple[int, int]

    @property
    def numbers(self) -> int:
        """Numbers of one token."""
        return self.keys[0] * self.keys[1] + self.values[0] * self.values[1]


@dataclass(frozen=True)
class Facts:
    """What probe.py found out about a loaded model.

    ``weights``: a digest, or the name that the caller gave. ``dtype``: of keys and values, without "torch.".
    ``attention``: the implementation. ``machine``: device, instruction set, precision and torch's version.
    """

    weights: str
    dtype: str
    dtype_bytes: int
    attention: str
    machine: str
    transformers: str
    shapes: tuple[LayerShape, ...]


def check_model(model: Any) -> None:
    """Whether a model's blocks depend on its tokens alone, as far as its attributes tell. Raises NotServed."""
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise NotServed("an encoder's output decides about the decoder's cache")
    if config.get_text_config(decoder=True) is not config:
        raise NotServed("the model takes inputs other than tokens, which block keys do not name")
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        raise NotServed("adapters can be switched on and off unseen: merge them into the weights")
    if (getattr(model, "_tp_size", None) or 1) > 1 or getattr(config, "distributed_config", None) is not None:
        raise NotServed(SPREAD)
    by_length = sorted(set(rotary_kinds(config)) & set(ROTARY_BY_LENGTH))
    if by_length:
        raise NotServed(f"rotary embeddings of kind {by_length[0]} depend on the length of the whole input")


def rotary_kinds(config: Any) -> list[str]:
    """Kinds of rotary embeddings that a configuration names, for all layers alike or by kind of layer."""
    kinds: list[str] = []
    for name in ("rope_parameters", "rope_scaling"):
        given = getattr(config, name, None)
        if isinstance(given, Mapping):
            kinds.extend(_kinds_in(given))
    return kinds


def _kinds_in(given: Mapping[str, Any]) -> Iterable[str]:
    kind = given.get("rope_type", given.get("type"))
    if kind is not None:
        yield str(kind)
    for inner in given.values():
        if isinstance(inner, Mapping):
            yield from _kinds_in(inner)


def check_layers(kinds: Sequence[str]) -> None:
    """Whether all layers of a cache, by their class names, keep every token's keys and values. Raises NotServed."""
    others = sorted(set(kinds) - {"DynamicLayer"})
    if others:
        raise NotServed(f"the cache has layers of kind {', '.join(others)}; full attention (DynamicLayer) is served")
    if not kinds:
        raise NotServed("the model filled no cache")


def describe(model: Any, facts: Facts, block_tokens: int, cache_salt: str) -> NamespaceDescriptor:
    """The namespace of a model's blocks. Raises NotServed."""
    row_bytes = block_tokens * facts.dtype_bytes * sum(shape.numbers for shape in facts.shapes)
    if row_bytes > ROW_BYTES_MAX:
        raise NotServed(f"a block of {block_tokens} tokens has {row_bytes} bytes; at most {ROW_BYTES_MAX}")
    kind = type(model)
    config = str(model.config.to_json_string(use_diff=False))
    revision = {
        "weights": facts.weights,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "config": _digest(_without_place(config)),
    }
    layout = {
        "order": "layer, keys then values, head, token",
        "layers": len(facts.shapes),
        "shapes": _digest(repr([(shape.keys, shape.values) for shape in facts.shapes])),
        "attention": facts.attention,
        "machine": facts.machine,
    }
    return NamespaceDescriptor(
        model=_name(model),
        revision=_text(revision),
        kv_dtype=facts.dtype,
        quant_scales=False,
        layout=_text(layout),
        row_bytes=row_bytes,
        group_kinds=("full_attention",),
        draft=False,
        block_tokens=block_tokens,
        hash_algorithm="sha256",
        hash_seed=_digest(cache_salt) if cache_salt else "default",
        engine_build=f"transformers {facts.transformers}",
        key_bytes=KEY_BYTES,
        shards=1,
        chained=True,
    )


def _name(model: Any) -> str:
    """What an operator sees: the hub's name, or that of the directory, wherever it lies."""
    name = str(getattr(model, "name_or_path", "")) or type(model).__name__
    return (Path(name).name if Path(name).is_absolute() else name)[:NAME_CHARACTERS_MAX]


def _without_place(config: str) -> str:
    """The configuration without where it was read from."""
    fields = json.loads(config)
    fields.pop("_name_or_path", None)
    return json.dumps(fields, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))
