"""Lets SGLang's HiCache modules be imported on a host without a GPU: what they import and never call here is a name.

The storage interface, its loader, the cache controller, and the host pools are the wheel's own. Not its own are the
package's outermost `__init__` (which loads the whole server), the CUDA kernels, and two libraries that only name
things at import. What is called of these raises, so that a test cannot pass on them.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

NAMES = frozenset({"sgl_kernel", "IPython", "gguf"})


class Absent:
    """A name of a library that is not here: it may be mentioned, not called."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *_arguments: Any, **_named: Any) -> Any:
        """Raises NotImplementedError."""
        raise NotImplementedError(f"{self._name} is not on this host")


class AbsentModule(types.ModuleType):
    """A module that has every name."""

    __path__: list[str] = []  # noqa: RUF012 (a module's path is its own)

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of NAMES."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """A module of its own for each name."""
        if fullname.partition(".")[0] not in NAMES:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module that has every name."""
        return AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def install() -> None:
    """Call before anything of SGLang is imported."""
    sys.meta_path.insert(0, Finder())
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = types.ModuleType("sglang")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["sglang"] = package
