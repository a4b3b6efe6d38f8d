"""Every released vLLM from 0.25 on calls our methods as they are written, and has what our adapters import.

Nothing of the engine is imported here: its classes are read out of the source of each release. An engine that renames
a hook, gives one another parameter or adds an abstract one fails these tests on the day of its release, not in an
operator's log.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest
from vllm_sources import Release, releases

import cairn_kv.vllm
from engines import say

FIRST_MINOR = 25
#: The minor that the other tests run end to end.
TESTED_MINOR = 32
ADAPTERS = Path(cairn_kv.vllm.__file__).parent


@dataclass(frozen=True)
class Adapter:
    """One class of ours, and the engine's classes that it derives from."""

    module: str
    name: str
    base_module: str
    bases: tuple[str, ...]
    #: Hooks that came later: the first minor that has each.
    since: tuple[tuple[str, int], ...]
    #: Public methods that the engine does not know.
    own: frozenset[str]


CONNECTOR = Adapter(
    module="connector.py",
    name="CairnConnector",
    base_module="vllm/distributed/kv_transfer/kv_connector/v1/base.py",
    bases=("KVConnectorBase_V1", "SupportsHMA"),
    since=(("requires_kv_delivery", 27),),
    own=frozenset({"counters"}),
)
TIER = Adapter(
    module="tier.py",
    name="CairnTier",
    base_module="vllm/v1/kv_offload/tiering/base.py",
    bases=("SecondaryTierManager",),
    since=(),
    own=frozenset({"counters"}),
)
EVERY = [CONNECTOR, TIER]
#: Fields of the engine's that the tier reads, by class: of one of the classes where it was renamed.
TIER_READS = [
    ("vllm/v1/kv_offload/tiering/base.py", ("TransferJob", "JobMetadata"), {"job_id", "keys", "req_context"}),
    ("vllm/v1/kv_offload/tiering/base.py", ("JobResult",), {"job_id", "success"}),
    ("vllm/v1/kv_offload/base.py", ("ScheduleEndContext",), {"preempted_req_ids"}),
    ("vllm/v1/kv_offload/base.py", ("ReqContext",), {"req_id"}),
]
#: The same where the tier does not serve older versions.
TIER_SERVES_FROM = 29
TIER_READS_SERVING = [
    (
        "vllm/v1/kv_offload/config.py",
        ("OffloadingConfig",),
        {
            "engine_id",
            "extra_config",
            "enable_kv_cache_events",
            "groups",
            "model",
            "cache",
            "parallel",
            "kv_cache_layout",
        },
    ),
    ("vllm/v1/kv_offload/config.py", ("OffloadingGroupConfig",), {"tokens_per_block"}),
    ("vllm/v1/kv_offload/config.py", ("OffloadingModelConfig",), {"name", "dtype"}),
    ("vllm/v1/kv_offload/config.py", ("OffloadingCacheConfig",), {"blocks_per_chunk"}),
    (
        "vllm/v1/kv_offload/config.py",
        ("OffloadingParallelConfig",),
        {"rank", "data_parallel_index", "world_size", "tp_size"},
    ),
]


@dataclass(frozen=True)
class Method:
    """One method of a class: its parameters behind self or cls, and how it is decorated."""

    parameters: ast.arguments
    decorators: frozenset[str]

    @property
    def kind(self) -> str:
        """How it is called."""
        return next((kind for kind in ("property", "classmethod", "staticmethod") if kind in self.decorators), "method")


def methods_of(source: str, *classes: str) -> dict[str, Method]:
    """The methods of classes that stand at the top of a module; with several, the first one that has a method."""
    found: dict[str, Method] = {}
    bodies = {node.name: node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    for name in classes:
        assert name in bodies, f"there is no class {name}"
        for node in bodies[name]:
            if isinstance(node, ast.FunctionDef):
                decorators = frozenset(ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list)
                found.setdefault(node.name, Method(node.args, decorators))
    return found


def is_hook(name: str) -> bool:
    """Whether the engine may call it."""
    return name == "__init__" or not name.startswith("_")


def faults(base: Method, ours: Method) -> list[str]:
    """Why a call that fits the engine's method does not fit ours; empty if each does."""
    if base.kind != ours.kind:
        return [f"is a {base.kind} there and a {ours.kind} here"]
    theirs, mine = base.parameters, ours.parameters
    found = []
    given = [argument.arg for argument in [*theirs.posonlyargs, *theirs.args]]
    taken = [argument.arg for argument in [*mine.posonlyargs, *mine.args]]
    for at, name in enumerate(given):
        if at >= len(taken) and (mine.vararg is None or mine.kwarg is None):
            found.append(f"parameter {name} is not taken")
        if at < len(taken) and taken[at] != name:
            found.append(f"parameter {at} is {name} there and {taken[at]} here")
    may_be_left_out = len(given) - len(theirs.defaults)
    must_be_given = len(taken) - len(mine.defaults)
    if must_be_given > may_be_left_out:
        found.append(f"{taken[may_be_left_out:must_be_given]} need not be given there and must be here")
    named = {argument.arg for argument in [*mine.args, *mine.kwonlyargs]}
    found += [f"keyword {a.arg} is not taken" for a in theirs.kwonlyargs if a.arg not in named and mine.kwarg is None]
    needed = {a.arg for a, default in zip(mine.kwonlyargs, mine.kw_defaults, strict=True) if default is None}
    found += [f"keyword {name} is not given" for name in sorted(needed - {a.arg for a in theirs.kwonlyargs})]
    found += ["*arguments are not taken"] if theirs.vararg is not None and mine.vararg is None else []
    found += ["**keywords are not taken"] if theirs.kwarg is not None and mine.kwarg is None else []
    return found


@pytest.fixture(scope="module")
def released() -> list[Release]:
    """The minors that the index has."""
    found = releases(FIRST_MINOR)
    minors = [release.minor for release in found]
    assert minors == list(range(FIRST_MINOR, FIRST_MINOR + len(minors)))
    assert TESTED_MINOR in minors
    return found


@pytest.mark.parametrize("adapter", EVERY, ids=lambda adapter: adapter.name)
def test_each_release_calls_our_methods_as_they_are_written_and_asks_for_no_other(
    released: list[Release], adapter: Adapter
) -> None:
    ours = methods_of((ADAPTERS / adapter.module).read_text(), adapter.name)
    since = dict(adapter.since)
    wrong: list[str] = []
    known: set[str] = set()
    for release in released:
        base = methods_of(release.text(adapter.base_module), *adapter.bases)
        if release.minor > FIRST_MINOR:
            added = sorted(name for name in base.keys() - known - ours.keys() if is_hook(name))
            say(f"{adapter.name}: new in {release.version}, and left as it is: {', '.join(added) or 'nothing'}")
        known |= base.keys()
        for name, method in base.items():
            if name in ours:
                wrong += [f"{release.version}: {name}: {fault}" for fault in faults(method, ours[name])]
            elif "abstractmethod" in method.decorators:
                wrong.append(f"{release.version}: {name} must be there")
        for name in filter(is_hook, ours.keys() - adapter.own):
            there, expected = name in base, release.minor >= since.get(name, FIRST_MINOR)
            if there != expected:
                wrong.append(f"{release.version}: {name} is {'' if there else 'not '}there, against this test's table")
    assert wrong == []


def test_each_release_has_what_our_adapters_import(released: list[Release]) -> None:
    wanted = {
        (module, name, str(path.name))
        for path in sorted(ADAPTERS.glob("*.py"))
        for module, name in imports_of(ast.parse(path.read_text()))
    }
    assert len(wanted) > len(EVERY)
    missing = [
        f"{release.version}: {user}: from {module} import {name}"
        for release in released
        for module, name, user in sorted(wanted)
        if not provides(release, module, name)
    ]
    assert missing == []


def test_each_release_has_the_fields_that_the_tier_reads(released: list[Release]) -> None:
    missing: list[str] = []
    for release in released:
        serving = TIER_READS_SERVING if release.minor >= TIER_SERVES_FROM else []
        for path, classes, wanted in [*TIER_READS, *serving]:
            fields = fields_of(release.text(path), classes)
            missing += [f"{release.version}: {classes[0]}.{name}" for name in sorted(wanted - fields)]
        job = fields_of(release.text("vllm/v1/kv_offload/tiering/base.py"), ("TransferJob", "JobMetadata"))
        if len(job & {"chunk_ids", "block_ids"}) != 1:
            missing.append(f"{release.version}: the chunks of a job")
    assert missing == []


def fields_of(source: str, classes: tuple[str, ...]) -> set[str]:
    """Fields of the first of these classes that a module has."""
    bodies = {node.name: node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    body = next((bodies[name] for name in classes if name in bodies), [])
    return {str(ast.unparse(node.target)) for node in body if isinstance(node, ast.AnnAssign)}


def imports_of(tree: ast.AST) -> list[tuple[str, str]]:
    """What is imported from the engine and must be there: what stands in a `try` may be missing."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            found += [(str(node.module), alias.name) for alias in node.names]
        elif not isinstance(node, ast.Try):
            found += imports_of(node)
    return found


def provides(release: Release, module: str, name: str) -> bool:
    """Whether a module of the release binds a name, or has a submodule of it."""
    at = module.replace(".", "/")
    if release.has(f"{at}/{name}.py") or release.has(f"{at}/{name}/__init__.py"):
        return True
    path = f"{at}.py" if release.has(f"{at}.py") else f"{at}/__init__.py"
    return release.has(path) and name in bound_by(ast.parse(release.text(path)))


def bound_by(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def test_the_comparison_of_parameters_notices_what_would_break_a_call() -> None:
    """The check itself: each pair is one fault that a release could bring."""
    for theirs, mine in [
        ("self, a, b", "self, a"),
        ("self, a", "self, b"),
        ("self, a", "self, a, b"),
        ("self, a=None", "self, a"),
        ("self, *, c", "self"),
        ("self", "self, *, c"),
        ("self, **c", "self"),
        ("self, *c", "self"),
    ]:
        assert faults(method(theirs), method(mine)), f"{theirs} against {mine}"
    for theirs, mine in [("self, a, b", "self, a, *c, **d"), ("self, a", "self, a, b=1"), ("self, *, c", "self, **d")]:
        assert faults(method(theirs), method(mine)) == [], f"{theirs} against {mine}"


def method(parameters: str) -> Method:
    """A method with these parameters."""
    return methods_of(f"class A:\n def f({parameters}): pass", "A")["f"]
