"""The storage backend for SGLang's HiCache.

--enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config
'{"backend_name":"cairn","module_path":"cairn_kv.sglang","class_name":"CairnHiCacheStorage","interface_v1":1,
  "hicache_storage_pass_prefix_keys":true}'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .storage import CairnHiCacheStorage

__all__ = ["CairnHiCacheStorage"]


def __getattr__(name: str) -> Any:
    """The backend's class, and with it the engine, is imported when it is asked for."""
    if name == "CairnHiCacheStorage":
        from .storage import CairnHiCacheStorage

        return CairnHiCacheStorage
    raise AttributeError(name)
