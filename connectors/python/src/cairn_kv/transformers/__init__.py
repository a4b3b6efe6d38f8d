"""The adapter for Hugging Face transformers.

from cairn_kv.transformers import PrefixStore

with PrefixStore(model) as store:
    output = store.generate(input_ids, max_new_tokens=64)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import CairnCache, PrefixStore

__all__ = ["CairnCache", "PrefixStore"]


def __getattr__(name: str) -> Any:
    """The classes, and with them torch and transformers, are imported when they are asked for."""
    if name in __all__:
        from . import cache

        return getattr(cache, name)
    raise AttributeError(name)
