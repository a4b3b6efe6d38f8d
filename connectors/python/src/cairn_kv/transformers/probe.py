"""What only the loaded model itself can tell: shapes, machine, and whether it computes as it should.

Shapes come from a forward pass of two tokens. A second pass with another second token shows that a token's keys and
values do not depend on what comes after it, which is what a prefix cache rests on.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import DynamicCache

from cairn_kv.adapters.identity import NotServed

from .identity import SPREAD, Facts, LayerShape, check_layers, check_model
from .weights import weights_digest

#: Steps of the dtype, at the size of the largest number, that two computations of one token may be apart.
ROUNDING_STEPS = 4
#: Hooks of these packages belong to the model; anybody else's may change what it computes.
OWN_HOOKS = ("transformers.", "accelerate.")


def examine(model: Any, weights: str | None) -> tuple[Facts, torch.dtype, list[torch.device]]:
    """What the model is, the dtype of its cache, and where each layer's lies. Raises NotServed."""
    check_model(model)
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise NotServed(SPREAD)
    if model.device.type == "meta":
        raise NotServed("the weights are not in memory")
    reason = unfit(model)
    if reason is not None:
        raise NotServed(reason)
    layers = [(layer.keys, layer.values) for layer in _probe(model)]
    dtypes = {tensor.dtype for pair in layers for tensor in pair}
    if len(dtypes) != 1:
        raise NotServed(f"keys and values of {len(dtypes)} dtypes")
    dtype = dtypes.pop()
    devices = [keys.device for keys, _ in layers]
    facts = Facts(
        weights=weights_digest(model) if weights is None else f"named {weights}",
        dtype=str(dtype).removeprefix("torch."),
        dtype_bytes=dtype.itemsize,
        attention=attention(model),
        machine=machine(devices),
        transformers=str(transformers.__version__),
        shapes=tuple(LayerShape(_heads(keys), _heads(values)) for keys, values in layers),
    )
    return facts, dtype, devices


def _heads(tensor: torch.Tensor) -> tuple[int, int]:
    return int(tensor.shape[1]), int(tensor.shape[3])


def _probe(model: Any) -> list[Any]:
    """The layers of a cache that two tokens filled. Raises NotServed."""
    one, two = _fill(model, 1), _fill(model, 2)
    check_layers([type(layer).__name__ for layer in one])
    for layer, other in zip(one, two, strict=True):
        for tensor, changed in ((layer.keys, other.keys), (layer.values, other.values)):
            if tensor is None or tensor.dim() != 4 or tensor.shape[0] != 1 or tensor.shape[2] != 2:
                raise NotServed("a layer does not keep keys and values as [batch, heads, tokens, numbers]")
            if not tensor.is_floating_point():
                raise NotServed(f"keys and values are {tensor.dtype}")
            if not _same(tensor[:, :, :1], changed[:, :, :1]):
                raise NotServed("a token's keys and values depend on the tokens after it")
    return one


def _fill(model: Any, second: int) -> list[Any]:
    try:
        cache = DynamicCache(config=model.config)
        tokens = torch.tensor([[0, second]], device=model.device)
        with torch.no_grad():
            model(input_ids=tokens, past_key_values=cache, use_cache=True)
    except Exception as error:
        raise NotServed(f"a forward pass of two tokens with a cache fails: {error}") from error
    return list(cache.layers)


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Equal up to what other neighbours change in the rounding of sums (experts get other batches)."""
    left, right = one.float(), two.float()
    bound = ROUNDING_STEPS * torch.finfo(one.dtype).eps * float(left.abs().max())
    return bool((left - right).abs().max() <= bound)


def attention(model: Any) -> str:
    """The implementation that computes attention now."""
    return str(getattr(model.config, "_attn_implementation", None) or "default")


def machine(devices: list[torch.device]) -> str:
    """What decides about the bytes of keys and values beside the model."""
    precision = f"torch {torch.__version__} precision {torch.get_float32_matmul_precision()}"
    kinds = sorted({device.type for device in devices})
    if kinds == ["cpu"]:
        tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        return f"cpu {torch.backends.cpu.get_cpu_capability()}{' AMX' if tiles else ''} {precision}"
    if "cuda" in kinds:
        names = sorted({torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"})
        kinds = [f"{kind} {names} {torch.version.cuda}" if kind == "cuda" else kind for kind in kinds]
        precision += f" tf32 {torch.backends.cuda.matmul.allow_tf32}"
    return f"{', '.join(kinds)} {precision}"


def unfit(model: Any) -> str | None:
    """Why what the model computes now is no block of its namespace; None if it is one."""
    if model.training:
        return "the model is in training mode: call model.eval()"
    if torch.is_autocast_enabled(model.device.type):
        return "autocast is on"
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if not str(getattr(hook, "__module__", "")).startswith(OWN_HOOKS):
                return "a module has a forward hook, which may change what it computes"
    return None
