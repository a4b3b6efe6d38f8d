"""Whether a stored page and the page computed now hold the same keys and values.

Equal bytes are the same. Else the pages are compared as numbers, because a prompt computed in other pieces rounds
otherwise. 8-bit floats are so coarse that one step of them is an eighth of the value: there the direction of the whole
page is compared, since single values prove nothing.
"""

from __future__ import annotations

from typing import Any

from cairn_kv.vllm.rows import same_values

#: Cosine of the angle between two 8-bit pages that are the same.
COSINE_MIN = 0.99


def same_page(stored: memoryview, computed: bytes | bytearray, dtype: str) -> bool:
    """Compares two pages of a dtype as torch names it ("bfloat16"); one that torch does not know by its bytes alone."""
    import torch

    kind = getattr(torch, dtype, None)
    fresh = bytes(computed)
    if kind is None or bytes(stored) == fresh:
        return bytes(stored) == fresh
    if kind.is_floating_point and kind.itemsize == 1:
        return _cosine(bytes(stored), fresh, kind) >= COSINE_MIN
    return same_values(stored, fresh, kind)


def _cosine(left: bytes, right: bytes, dtype: Any) -> float:
    """0 where either holds no finite number, or nothing but zeros."""
    import torch

    a, b = (torch.frombuffer(bytearray(page), dtype=dtype).float() for page in (left, right))
    if a.shape != b.shape or not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(b).all()):
        return 0.0
    size = float(a.norm()) * float(b.norm())
    return float(torch.dot(a, b)) / size if size > 0 else 0.0
