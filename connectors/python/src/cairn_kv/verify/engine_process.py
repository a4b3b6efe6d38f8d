"""One vLLM, driven line by line: a JSON job on standard input, its JSON answer on standard output.

A process of its own per engine: an engine cannot be started twice in one, and an engine that is killed shall not take
the test with it. The first line sets the engine up; the answer tells that it is ready.

    {"model": DIR, "dtype": "float32", "blockTokens": 32, "blocks": 256, "modelTokensMax": 2048, "stepTokensMax": 2048,
     "sequencesMax": 8, "threads": null, "connector": {…} | null, "loadFailurePolicy": "recompute",
     "prefixCaching": false, "transfer": {…} (another connector's whole configuration, in place of "connector")}
    {"op": "generate", "prompts": [[token, …], …], "maxTokens": 8}          -> {"outputs": [{tokens, logprobs, cached}]}
    {"op": "stepTokensMax", "value": 256}                                       -> {}
    {"op": "counters"}                                                           -> {"counters": {…}}
    {"op": "resetCache"}       as an engine does whose weights are replaced
    {"op": "zeroBlocks", "every": 1}   zeros every n-th block that the connector loads from now on, to see it noticed
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Reads jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # The engine's own prints go to standard error.
    setup = json.loads(sys.stdin.readline())
    engine = _start(setup)
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        _answer(answers, _OPERATIONS[job["op"]](engine, job))
    connector = _scheduler(engine).connector
    if connector is not None:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        get_kv_transfer_group().shutdown()
        connector.shutdown()


def _answer(stream: Any, answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def _start(setup: dict[str, Any]) -> Any:
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL=os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    )
    if setup["threads"] is not None:
        # With one thread that computes, the kernels add in one order whatever else is in the batch.
        os.environ.update(OMP_NUM_THREADS=str(setup["threads"]), VLLM_CPU_OMP_THREADS_BIND="nobind")
    if setup["blockTokens"] % 32 != 0:
        _allow_blocks_of_16()
    from vllm import LLM

    transfer = setup.get("transfer")
    if setup.get("connector") is not None:
        transfer = {
            "kv_connector": "CairnConnector",
            "kv_connector_module_path": "cairn_kv.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": setup.get("loadFailurePolicy", "recompute"),
            "kv_connector_extra_config": setup["connector"],
        }
    return LLM(
        model=setup["model"],
        skip_tokenizer_init=True,
        dtype=setup["dtype"],
        enforce_eager=True,
        block_size=setup["blockTokens"],
        max_model_len=setup["modelTokensMax"],
        max_num_seqs=setup["sequencesMax"],
        max_num_batched_tokens=setup["stepTokensMax"],
        enable_prefix_caching=setup.get("prefixCaching", False),
        num_gpu_blocks_override=setup["blocks"],
        disable_log_stats=False,
        seed=0,
        **({} if transfer is None else {"kv_transfer_config": transfer}),
    )


def _allow_blocks_of_16() -> None:
    """The CPU kernels work on 16 tokens, but the list of block sizes that the engine accepts starts at 32."""
    from vllm.v1.attention.backend import MultipleOf
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    CPUAttentionBackend.get_supported_kernel_block_sizes = staticmethod(lambda kv_cache_spec=None: [MultipleOf(16)])


def _scheduler(engine: Any) -> Any:
    return engine.llm_engine.engine_core.engine_core.scheduler


def _generate(engine: Any, job: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=job["maxTokens"], logprobs=2, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    begun = time.perf_counter()
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - begun
    return {"outputs": [_output(output) for output in outputs], "seconds": seconds}


def _output(output: Any) -> dict[str, Any]:
    choice = output.outputs[0]
    return {
        "cached": output.num_cached_tokens,
        "tokens": list(choice.token_ids),
        "finish": choice.finish_reason,
        # The two best of each step, bit by bit.
        "logprobs": [
            [[token, entry.logprob.hex()] for token, entry in step.items()] for step in (choice.logprobs or [])
        ],
    }


def _step_tokens_max(engine: Any, job: dict[str, Any]) -> dict[str, Any]:
    _scheduler(engine).max_num_scheduled_tokens = job["value"]
    return {}


def _counters(engine: Any, _job: dict[str, Any]) -> dict[str, Any]:
    totals: dict[str, float] = {}
    for part in _counting(engine):
        for name, value in part.counters().items():
            totals[name] = totals.get(name, 0) + value
    return {"counters": totals}


def _counting(engine: Any) -> list[Any]:
    """Both halves of our connector, or our tiers of the engine's own."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    connector = _scheduler(engine).connector
    if hasattr(connector, "counters"):
        return [get_kv_transfer_group(), connector]
    return list(connector.scheduler.manager.secondary_tiers)


def _reset_cache(engine: Any, _job: dict[str, Any]) -> dict[str, Any]:
    assert engine.llm_engine.reset_prefix_cache(reset_connector=True)
    return {}


def _zero_blocks(_engine: Any, job: dict[str, Any]) -> dict[str, Any]:
    import ctypes
    import itertools

    from cairn_kv.vllm.rows import BlockRows
    from cairn_kv.vllm.tier_link import ChunkRows

    scatter = BlockRows.scatter
    loaded = itertools.count(1)

    def zeroed(self: BlockRows, row: int, block: int) -> None:
        scatter(self, row, block)
        if next(loaded) % job["every"] != 0:
            return
        for base, stride in self._pages:
            ctypes.memset(base + block * stride, 0, self._identity.page_bytes)

    def zeroed_chunk(self: ChunkRows, row: int, chunk: int) -> None:
        ctypes.memset(self._chunk(chunk), 0, self.row_bytes)

    BlockRows.scatter = zeroed  # type: ignore[method-assign]
    ChunkRows.scatter = zeroed_chunk  # type: ignore[method-assign]
    return {}


_OPERATIONS = {
    "generate": _generate,
    "stepTokensMax": _step_tokens_max,
    "counters": _counters,
    "resetCache": _reset_cache,
    "zeroBlocks": _zero_blocks,
}

if __name__ == "__main__":
    main()
