"""The acceptance test before it has an engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_without_a_daemon_that_is_what_is_said_and_no_engine_is_started(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.sock")
    command = [sys.executable, "-m", "cairn_kv.verify", "vllm", "--socket", absent, "--python", "/absent/python"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    told = json.loads(ended.stdout)
    assert told == {
        "passed": False,
        "failure": f"no daemon can be reached at {absent}: No such file or directory",
        "steps": [],
    }
