"""The connector for TensorRT-LLM's PyTorch backend.

kv_connector_config:
  connector_module: cairn_kv.tensorrt_llm
  connector_scheduler_class: CairnScheduler
  connector_worker_class: CairnWorker
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connector import CairnScheduler, CairnWorker

__all__ = ["CairnScheduler", "CairnWorker"]


def __getattr__(name: str) -> Any:
    """The classes, and with them the engine, are imported when they are asked for."""
    if name in __all__:
        from . import connector

        return getattr(connector, name)
    raise AttributeError(name)
