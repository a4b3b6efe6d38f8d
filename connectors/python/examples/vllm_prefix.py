"""Prompts with a common beginning, answered by vLLM with the connector.

    python examples/vllm_prefix.py [--socket PATH] [--model DIRECTORY]

Needs a running daemon, vLLM for CPU and this package; no download: without --model the script writes a tiny model with
random weights. Each prompt says how many of its tokens were loaded instead of computed. Run it twice: the first prompt
of the second run proves that this engine computes what the first one stored, the others load it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

PROMPTS = 4
COMMON_TOKENS = 512
OWN_TOKENS = 20
#: Stores and the verdict on a proof travel beside the engine's steps.
PAUSE_SECONDS = 1.0


def main() -> int:
    """Answers the prompts."""
    parser = argparse.ArgumentParser(description="Answers prompts with a common beginning.")
    parser.add_argument("--socket", help="the daemon's socket (default: its default place)")
    parser.add_argument("--model", help="a model's directory (default: a tiny one, written by this script)")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams  # noqa: PLC0415 (the variables come first)

    from cairn_kv.verify.model import write_model  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as directory:
        # The same place each time: the model's name is part of what makes blocks the same.
        place = Path(tempfile.gettempdir()) / f"cairn-example-model-{os.getuid()}"
        model = options.model or str(place if place.exists() else write_model(Path(directory) / "model").rename(place))
        transfer = {
            "kv_connector": "CairnConnector",
            "kv_connector_module_path": "cairn_kv.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"socket": options.socket},
        }
        engine = LLM(
            model=model,
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            kv_transfer_config=transfer,
        )
        chance = random.Random(7)
        common = [chance.randrange(3, 500) for _ in range(COMMON_TOKENS)]
        sampling = SamplingParams(temperature=0, max_tokens=8, detokenize=False)
        for number in range(PROMPTS):
            prompt = common + [chance.randrange(3, 500) for _ in range(OWN_TOKENS)]
            (answer,) = engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
            print(f"prompt {number}: {answer.num_cached_tokens or 0} of {len(prompt)} tokens loaded")
            time.sleep(PAUSE_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
