"""TensorRT-LLM's caches as torch has them. Its executor is ours (tests/trtllm_engine.py): the engine needs a GPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from node import Node

import cairn_kv
from engines import engine_python

HERE = Path(__file__).resolve().parent


def child(*arguments: str, **environment: str) -> list[str]:
    """What the script prints."""
    paths = [str(Path(cairn_kv.__file__).parents[1]), str(HERE.parent / "tests")]
    done = subprocess.run(
        [engine_python(), str(HERE / "torch_cache.py"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_blocks_of_both_cache_managers_are_stored_and_loaded_by_torch() -> None:
    own = Node({"engineApi": {"proof": "off"}}).start()
    try:
        options = {"SOCKET": own.socket, "LOOKUP_MS": "10000", "STAGE_MS": "30000", "STAGING_BYTES": str(1 << 20)}
        printed = child("serve", **{f"TRTLLM_CAIRN_{name}": value for name, value in options.items()})
        assert printed == [
            f"{manager} {kind} {ranks} [0, 160]"
            for manager in (1, 2)
            for kind in ("full_attention", "mla")
            for ranks in (1, 2)
        ]
    finally:
        own.remove()


def test_caches_that_cannot_be_told_for_certain_are_refused() -> None:
    assert child("refuse") == [
        "a pool of shape [4, 2, 64]; [blocks, layers, 1 or 2, elements] is known",
        "a pool of shape [4, 2, 3, 64]; [blocks, layers, 1 or 2, elements] is known",
        "a block of the pool is not one piece",
        "2 groups of layers; one of full attention is served",
        "the layers attend to a window of 128 tokens only",
        "a block has parts that are the same on all ranks beside parts that are not",
        "the group has no regions",
        "regions have different numbers of slots",
        "the layout's proof failed",
        "block -1 of 8",
    ]
