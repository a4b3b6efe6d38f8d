"""A prompt that SGLang computed once is read from the daemon after its own caches are empty.

    python sglang_hicache.py MODEL          in SGLang's Python, on a host with a GPU, with a daemon running

The engine computes a long prompt and writes it through. Then its caches are flushed, which leaves the daemon, and the
same prompt is asked again: the answer says how many of its tokens came from storage.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import sglang

CAIRN = {
    "backend_name": "cairn",
    "module_path": "cairn_kv.sglang",
    "class_name": "CairnHiCacheStorage",
    "interface_v1": 1,
    "hicache_storage_pass_prefix_keys": True,
}
PROMPT_TOKENS = 2_048


def main() -> None:
    """Asks twice and prints where the tokens came from."""
    engine = sglang.Engine(
        model_path=sys.argv[1],
        page_size=64,
        enable_hierarchical_cache=True,
        hicache_ratio=2.0,
        hicache_mem_layout="page_first",
        hicache_storage_backend="dynamic",
        hicache_storage_backend_extra_config=json.dumps(CAIRN),
        enable_cache_report=True,
    )
    prompt = [10 + number % 1_000 for number in range(PROMPT_TOKENS)]
    ask(engine, "computed", prompt)
    time.sleep(2.0)  # What was computed is written beside the answers.
    engine.flush_cache()
    ask(engine, "after the engine's caches were emptied", prompt)
    engine.shutdown()


def ask(engine: Any, what: str, prompt: list[int]) -> None:
    """One request, and how much of it came from where."""
    begun = time.perf_counter()
    answer = engine.generate(input_ids=prompt, sampling_params={"max_new_tokens": 1, "temperature": 0})
    seconds = time.perf_counter() - begun
    meta = answer["meta_info"]
    print(f"{what}: {seconds:.3f} s, cached {meta.get('cached_tokens')}, {meta.get('cached_tokens_details')}")


if __name__ == "__main__":
    main()
