"""Whether a stored row and the row computed now hold the same keys and values: the incarnation proof of every adapter.

torch is imported where rows are compared as numbers, which is only where an engine that has it asks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

#: Of a proof's two rows: how far a number may be off, as a part of the row's root mean square, …
OFF_RMS = 2.0**-5
#: … which share of the numbers may be off by more, …
OFF_SHARE_MAX = 0.01
#: … and how far quantised rows may point in different directions.
COSINE_MIN = 0.99

#: Numbers that are judged by a scale of their own, so that a few large ones hide nothing of the others: most engines
#: keep at least so many of one head's together, whatever else a row's layout is.
PIECE_NUMBERS = 64
#: How far a number may be off, as a part of its piece's scale or of itself, whichever is larger, …
OFF_PIECE = 2.0**-4
#: … and which share of the numbers may be off by more.
OFF_PIECE_SHARE_MAX = 0.1
#: Half of all numbers drawn from a normal distribution are closer to 0 than this part of its deviation.
MEDIAN_OF_DEVIATION = 0.6745
#: Scales of its piece at which a quantised number is cut off before directions are compared.
CUT_SCALES = 3.0

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

    A row is opaque, and a few channels of its keys may be a thousand times as large as all else. So both rules must
    hold once more where nothing is large: each piece of `PIECE_NUMBERS` has a scale that its outliers do not move (its
    median), by which numbers may be off by `OFF_PIECE` (`OFF_PIECE_SHARE_MAX` of them by more), and by which quantised
    rows are levelled and cut off at `CUT_SCALES` before their directions are compared again.
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
    scales = _piece_scales(right)
    if quantised:
        cut = (-CUT_SCALES, CUT_SCALES)
        return _one_direction(left, right) and _one_direction((left / scales).clamp(*cut), (right / scales).clamp(*cut))
    scale = float(right.square().mean().sqrt())
    if not 0 < scale < math.inf:
        return False
    off = (left - right).abs()
    off_piece = off > OFF_PIECE * torch.maximum(scales, right.abs())
    return (
        float((off > OFF_RMS * scale).float().mean()) <= OFF_SHARE_MAX
        and float(off_piece.float().mean()) <= OFF_PIECE_SHARE_MAX
    )


def _one_direction(left: Any, right: Any) -> bool:
    size = float(left.norm()) * float(right.norm())
    return size > 0 and float(left.dot(right)) >= COSINE_MIN * size


def _piece_scales(row: Any) -> Any:
    """Of each number, the scale of its piece: never 0, the smallest normal number in a piece that is mostly zeros."""
    torch = _torch()
    short = -len(row) % PIECE_NUMBERS
    pieces = torch.nn.functional.pad(row.abs(), (0, short), value=math.nan).view(-1, PIECE_NUMBERS)
    scales = pieces.nanmedian(dim=1).values / MEDIAN_OF_DEVIATION
    scales = scales.clamp(min=torch.finfo(torch.float32).tiny)
    return scales.repeat_interleave(PIECE_NUMBERS)[: len(row)]


def _torch() -> Any:
    import torch

    return torch
