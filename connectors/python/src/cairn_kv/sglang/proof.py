"""Whether a stored page and the page computed now hold the same keys and values.

Equal bytes are the same. Else the pages are compared as numbers, because a prompt computed in other pieces rounds
otherwise. 8-bit floats are so coarse that one step of them is an eighth of the value: there the direction of the whole
page is compared, since single values prove nothing.
"""

from __future__ import annotations

from cairn_kv.adapters.proof import comparison_of


def same_page(stored: memoryview, computed: bytes | bytearray, dtype: str) -> bool:
    """Compares two pages of a dtype as torch names it ("bfloat16"); one that torch does not know by its bytes alone."""
    import torch

    kind = getattr(torch, dtype, None)
    if kind is None:
        return bytes(stored) == bytes(computed)
    return comparison_of(kind)(stored, bytes(computed))
