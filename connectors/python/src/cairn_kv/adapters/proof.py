"""Whether a stored row and the row computed now hold the same keys and values: the incarnation proof of every adapter.

torch is imported where rows are compared as numbers, which is only where an engine that has it asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

#: Of a proof's two rows: how far a number may be off, as a part of the row's root mean square, …
OFF_RMS = 2.0**-5
#: … which share of the numbers may be off by more, …
OFF_SHARE_MAX = 0.01
#: … and how far quantised rows may point in different directions.
COSINE_MIN = 0.99

#: How the numbers of a quantised cache lie in its bytes, by the engine's name of the cache's type. The kinds that are
#: missing here pack scales among the numbers: of those only equal bytes are the same.
QUANTISED = {
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
    "fp8_inc": "float8_e4m3fn",
    "int8": "int8",
}


def comparison_of(tensor_dtype: Any, cache_dtype: str = "auto") -> Callable[[bytes | memoryview, bytes], bool]:
    """Compares a stored row with a computed one (``same_values``) by what ``numbers_of`` says of their numbers."""
    dtype, quantised = numbers_of(tensor_dtype, cache_dtype)
    return functools.partial(same_values, dtype=dtype, quantised=quantised)


def numbers_of(tensor_dtype: Any, cache_dtype: str = "auto") -> tuple[Any, bool]:
    """(torch's type of the numbers in a row, whether they are quantised); the type is None if bytes are all there is.

    ``cache_dtype`` is the engine's name of the cache's type: a quantised cache is often declared as plain bytes.
    """
    if cache_dtype in QUANTISED:
        return getattr(_torch(), QUANTISED[cache_dtype]), True
    if not tensor_dtype.is_floating_point:
        return None, False
    return tensor_dtype, tensor_dtype.itemsize == 1


def same_values(stored: bytes | memoryview, computed: bytes, dtype: Any, quantised: bool) -> bool:
    """Whether two rows hold the same keys and values, up to what another partition of the same sums changes.

    Equal bytes are the same. Else the rows are compared as numbers (``numbers_of``): a prompt computed in other pieces
    differs by rounding (1e-5 of fp32, about 1e-2 of bf16 on CPU), another prompt, model or layout differs everywhere.
    At most `OFF_SHARE_MAX` of the numbers may be off by more than `OFF_RMS` of the row's root mean square. One step of
    a quantised number is more than that, so there the rows' directions are compared: a cosine of `COSINE_MIN` or more.
    """
    stored = bytes(stored)
    if stored == computed:
        return True
    if dtype is None or len(stored) != len(computed):
        return False
    torch = _torch()
    left = torch.frombuffer(bytearray(stored), dtype=dtype).float()
    right = torch.frombuffer(bytearray(computed), dtype=dtype).float()
    if not bool(torch.isfinite(left).all()) or not bool(torch.isfinite(right).all()):
        return False
    if quantised:
        size = float(left.norm()) * float(right.norm())
        return size > 0 and float(left.dot(right)) >= COSINE_MIN * size
    scale = float(right.square().mean().sqrt())
    off = (left - right).abs() > OFF_RMS * scale
    return scale > 0 and float(off.float().mean()) <= OFF_SHARE_MAX


def _torch() -> Any:
    import torch

    return torch
