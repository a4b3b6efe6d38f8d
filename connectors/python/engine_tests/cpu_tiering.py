"""vLLM's own tiering on a machine without a GPU: everything is the engine's but the copies between blocks and chunks.

The engine has kernels for those on devices only. Here the worker's half copies with the tensors' own means, at once, so
that tiers behind the engine's CPU tier can be tried on any machine. Loaded by `spec_module_path`.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class CpuTieringSpec(TieringOffloadingSpec):
    """The engine's tiering with a worker that copies on the CPU."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        """The one worker of this process."""
        if self._worker is None:
            assert self.blocks_per_chunk == 1
            region = SharedOffloadRegion(
                engine_id=self._engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = CopyingWorker(kv_caches, region)
        return self._worker


class CopyingWorker(OffloadingWorker):
    """Copies within the call; a job has ended when it was submitted."""

    def __init__(self, kv_caches: Any, region: SharedOffloadRegion) -> None:
        self._region = region
        self._ended: list[TransferResult] = []
        self._pairs = []
        for cache in kv_caches.tensors:
            pages = cache.tensor.view(cache.tensor.shape[0], -1).view(torch.int8)
            self._pairs.append((pages, region.create_next_worker_view(cache.page_size_bytes)))

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Blocks to chunks."""
        return self._copy(job_id, src_spec.block_ids, dst_spec.chunk_ids, to_chunks=True)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """Chunks to blocks."""
        return self._copy(job_id, dst_spec.block_ids, src_spec.chunk_ids, to_chunks=False)

    def get_finished(self) -> list[TransferResult]:
        """Jobs that were submitted since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def wait(self, job_ids: Any) -> None:
        """Nothing is under way."""

    def shutdown(self) -> None:
        """Lets the memory go."""
        self._pairs.clear()
        self._region.cleanup()

    def _copy(self, job_id: int, blocks: Any, chunks: Any, *, to_chunks: bool) -> bool:
        size_bytes = 0
        for block, chunk in zip(blocks.tolist(), chunks.tolist(), strict=True):
            for pages, rows in self._pairs:
                target, source = (rows[chunk], pages[block]) if to_chunks else (pages[block], rows[chunk])
                target.copy_(source)
                size_bytes += rows.shape[1]
        self._ended.append(TransferResult(job_id=job_id, success=True, transfer_size=size_bytes, transfer_time=1e-6))
        return True
