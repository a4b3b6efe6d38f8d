"""The connector for vLLM.

--kv-transfer-config '{"kv_connector":"CairnConnector","kv_connector_module_path":"cairn_kv.vllm",
                       "kv_role":"kv_both","kv_load_failure_policy":"recompute"}'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connector import CairnConnector

__all__ = ["CairnConnector"]


def __getattr__(name: str) -> Any:
    """The connector's class, and with it the engine, is imported when it is asked for."""
    if name == "CairnConnector":
        from .connector import CairnConnector

        return CairnConnector
    raise AttributeError(name)
