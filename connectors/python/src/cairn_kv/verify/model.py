"""Writes a small Llama with seeded random weights, so that an engine can be tried without any download.

The weights are equal in every process and on every machine. They are scaled so that activations keep their size and the
next token is far from a coin toss: an engine whose keys or values are wrong by a little answers with other tokens.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SEED = 20_260_714


@dataclass(frozen=True)
class Shape:
    """Sizes of the model.

    Keys and values of one token: 2 · layers · kv_heads · head_size numbers.
    """

    layers: int = 2
    hidden: int = 128
    intermediate: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_size: int = 32
    vocabulary: int = 512
    positions: int = 4_096


TINY = Shape()
#: Prefill dominates: about 0.1 s for 512 tokens on two cores of 2023.
HEAVY = Shape(layers=8, hidden=1_024, intermediate=2_816, heads=16, kv_heads=4, head_size=64, positions=8_192)

#: A step of 512 tokens takes about 0.1 s there.
MIDDLE = Shape(layers=4, hidden=512, intermediate=1_408, heads=8, kv_heads=2, head_size=64, positions=8_192)

#: As small, but its weights are more than the fingerprint reads of their file.
DEEP = Shape(layers=16)

SHAPES = {"tiny": TINY, "deep": DEEP, "middle": MIDDLE, "heavy": HEAVY}


def write_model(directory: Path, shape: Shape = TINY) -> Path:
    """Writes `config.json` and `model.safetensors` unless they are there for this shape; the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    mark = directory / "shape.json"
    wanted = json.dumps({"seed": SEED, **asdict(shape)}, sort_keys=True)
    if mark.exists() and mark.read_text() == wanted:
        return directory
    (directory / "config.json").write_text(json.dumps(_config(shape), indent=1))
    _write_weights(directory / "model.safetensors", shape)
    mark.write_text(wanted)
    return directory


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _write_weights(path: Path, shape: Shape) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(SEED)

    def matrix(rows: int, columns: int, gain: float = 1.5) -> Any:
        return torch.randn(rows, columns, generator=generator) * (gain / columns**0.5)

    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    weights = {
        "model.embed_tokens.weight": torch.randn(shape.vocabulary, shape.hidden, generator=generator),
        "model.norm.weight": torch.ones(shape.hidden),
        "lm_head.weight": matrix(shape.vocabulary, shape.hidden, 3.0),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        weights[f"{prefix}self_attn.q_proj.weight"] = matrix(queries, shape.hidden)
        weights[f"{prefix}self_attn.k_proj.weight"] = matrix(keys, shape.hidden)
        weights[f"{prefix}self_attn.v_proj.weight"] = matrix(keys, shape.hidden)
        weights[f"{prefix}self_attn.o_proj.weight"] = matrix(shape.hidden, queries)
        weights[f"{prefix}mlp.gate_proj.weight"] = matrix(shape.intermediate, shape.hidden)
        weights[f"{prefix}mlp.up_proj.weight"] = matrix(shape.intermediate, shape.hidden)
        weights[f"{prefix}mlp.down_proj.weight"] = matrix(shape.hidden, shape.intermediate)
        weights[f"{prefix}input_layernorm.weight"] = torch.ones(shape.hidden)
        weights[f"{prefix}post_attention_layernorm.weight"] = torch.ones(shape.hidden)
    save_file(weights, str(path), metadata={"format": "pt"})
