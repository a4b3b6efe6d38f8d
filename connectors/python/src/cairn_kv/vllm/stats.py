"""The engine's containers for what a half counts.

The engine adds up what its workers and its scheduler report, logs a line per interval, and exports Prometheus metrics
named `vllm:cairn_*` through its own endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from cairn_kv.adapters.counters import COUNTERS, TIMES


@dataclass
class CairnConnectorStats(KVConnectorStats):
    """The engine's container: a flat map from name to number."""

    data: dict[str, Any] = field(default_factory=dict)

    def reset(self) -> None:
        """Empties the container."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Adds another half's numbers."""
        for name, value in other.data.items():
            self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        """The log line: counters, and times as means in milliseconds."""
        line: dict[str, int | float] = {}
        for name in COUNTERS:
            if name in self.data:
                line[name] = int(self.data[name])
        for name in TIMES:
            count = self.data.get(f"{name}_count", 0)
            if count:
                line[f"{name.removesuffix('_seconds')}_ms_mean"] = round(1e3 * self.data[f"{name}_sum"] / count, 3)
        return line

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not self.data


class CairnPromMetrics(KVConnectorPromMetrics):
    """Prometheus counters, one per entry of COUNTERS and two per entry of TIMES."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        names = dict(COUNTERS)
        for name, text in TIMES.items():
            names[f"{name}_sum"] = f"{text} Sum."
            names[f"{name}_count"] = f"{text} Number."
        self._metrics: dict[str, dict[int, Any]] = {}
        for name, text in names.items():
            family = self._counter_cls(name=f"vllm:cairn_{name}", documentation=text, labelnames=labelnames)
            self._metrics[name] = {engine: family.labels(*values) for engine, values in per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Adds one step's numbers."""
        for name, value in transfer_stats_data.items():
            metric = self._metrics.get(name, {}).get(engine_idx)
            if metric is not None and value > 0:
                metric.inc(value)
