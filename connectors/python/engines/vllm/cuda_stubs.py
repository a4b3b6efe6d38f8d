"""Lets the registry's torch, which is linked against CUDA, be imported where no GPU library is installed.

The wheel of torch names a dozen NVIDIA libraries that its dynamic linker wants before the first line of Python runs.
On a machine that computes on its CPU none of them is ever called. This writes one small shared object per missing
library, with every symbol that torch's own libraries leave undefined, each a function that answers 100 (no CUDA-
capable device). torch then finds no device and stays on the CPU.

    python cuda_stubs.py SITE_PACKAGES/torch/lib       needs cc, nm and readelf

libcuda itself is left out: torch opens it by name, and must find it missing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

LIBRARY = re.compile(r"\(NEEDED\).*\[(lib(?:cu|nv|nccl)[^\]]*)\]")
SYMBOL = re.compile(r"^(?:__cuda|cuda|cu[A-Z]|cublas|cudnn|cufft|cufile|cupti|curand|cusolver|cusparse|nccl|nv)")
TEXTS = {"cudaGetErrorString", "cudaGetErrorName"}
#: What every stub answers: cudaErrorNoDevice.
NO_DEVICE = 100


def output_of(*command: str) -> list[str]:
    """The lines that a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def wanted(directory: Path) -> tuple[set[str], dict[str, set[str]]]:
    """(missing libraries, undefined symbols by their version; the version "" is none)."""
    present = {path.name for path in directory.iterdir()}
    libraries: set[str] = set()
    symbols: dict[str, set[str]] = defaultdict(set)
    for path in sorted(directory.glob("*.so")):
        for line in output_of("readelf", "--dynamic", "--wide", str(path)):
            match = LIBRARY.search(line)
            if match and match[1] not in present and not match[1].startswith("libcuda.so"):
                libraries.add(match[1])
        for line in output_of("nm", "--dynamic", "--undefined-only", str(path)):
            name, _, version = line.split()[-1].partition("@")
            if SYMBOL.match(name):
                symbols[version.lstrip("@")].add(name)
    return libraries, symbols


def versions_of(library: str, symbols: dict[str, set[str]]) -> dict[str, set[str]]:
    """The symbols that this library has to define. Versions are named after libraries, but for one family."""
    own = {
        version: names
        for version, names in symbols.items()
        if version == library or (version == "NVSHMEM" and "nvshmem" in library)
    }
    if library.startswith("libcudart"):
        own[""] = symbols.get("", set())
    return own


def build(library: str, versions: dict[str, set[str]], directory: Path, scratch: Path) -> None:
    """Compiles one stub."""
    lines = ["int cairn_stub_of_a_gpu_library;"]
    for name in sorted(set().union(*versions.values()) if versions else set()):
        text = f'const char *{name}(int code) {{ (void)code; return "no device"; }}'
        lines.append(text if name in TEXTS else f"long {name}(void) {{ return {NO_DEVICE}; }}")
    source, script = scratch / "stub.c", scratch / "stub.map"
    source.write_text("\n".join(lines) + "\n")
    nodes = [f"{version} {{ global: {'; '.join(sorted(names))}; }};" for version, names in versions.items() if version]
    script.write_text("\n".join(nodes) + "\n")
    flags = ["-shared", "-fPIC", "-O1", "-w", "-fno-builtin", f"-Wl,-soname,{library}"]
    if nodes:
        flags.append(f"-Wl,--version-script={script}")
    subprocess.run(["cc", *flags, "-o", str(directory / library), str(source)], check=True)


def main() -> None:
    """Builds all that is missing."""
    directory = Path(sys.argv[1])
    libraries, symbols = wanted(directory)
    with tempfile.TemporaryDirectory() as scratch:
        for library in sorted(libraries):
            build(library, versions_of(library, symbols), directory, Path(scratch))
    print(f"{len(libraries)} libraries stand in for a GPU's")


if __name__ == "__main__":
    main()
