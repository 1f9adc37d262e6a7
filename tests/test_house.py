"""The rules of the house: floors, the way up, one adapter for each client, names that resolve."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("streaming", "features", "trainers", "serving", "infra")  # from the ground up
SHIPPED = (*FLOORS, "benchmarks")

# A client library is imported by the one module or package that adapts it.
ADAPTERS = {
    "fastapi": ("serving.http.api", "serving.http.dashboard", "serving.http.shortcut"),
    "feast": ("features.store",),
    "kafka": ("streaming.kafka_client",),
    "prometheus_client": ("streaming.metrics", "features.store"),  # there to keep Feast off it
    "opentelemetry": ("infra.spans",),
    "ray": ("infra.workers", "infra.ray_serve"),
    "redis": ("features.store",),
    "sqlite3": ("streaming.file_log", "features.store"),  # two files, each with rules of its own
    "uvicorn": ("infra.serving",),
}


def modules() -> dict[str, Path]:
    """Every module of the house by its dotted name."""
    found = {}
    for floor in SHIPPED:
        for path in sorted((ROOT / floor).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """What a module imports, wherever in it: (module, names taken from it)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            yield node.module or "", [alias.name for alias in node.names]


def edges() -> dict[str, set[str]]:
    """Module -> the modules of the house that it imports."""
    house = modules()
    graph: dict[str, set[str]] = {name: set() for name in house}
    for name, path in house.items():
        for target, taken in imports(path):
            for candidate in (f"{target}.{one}" for one in taken):
                graph[name] |= {candidate} & house.keys()
            if target in house and not any(f"{target}.{one}" in house for one in taken):
                graph[name].add(target)
        graph[name].discard(name)
    return graph


def test_a_floor_imports_only_floors_below_it() -> None:
    height = {floor: level for level, floor in enumerate(SHIPPED)}
    upward = [
        f"{name} imports {target}"
        for name, targets in edges().items()
        for target in targets
        if height[target.split(".")[0]] > height[name.split(".")[0]]
        # The command line runs benchmarks by name, and nothing else of the house knows them.
        and name != "infra.bench"
    ]
    assert upward == []


def test_there_is_no_import_cycle() -> None:
    graph = edges()
    graph["infra.bench"].discard("benchmarks")
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_each_client_library_is_imported_by_its_adapter_alone() -> None:
    strangers = [
        f"{name} imports {target}"
        for name, path in modules().items()
        if not name.startswith("benchmarks")
        for target, _ in imports(path)
        if (adapters := ADAPTERS.get(target.split(".")[0]))
        and not any(name == one or name.startswith(f"{one}.") for one in adapters)
    ]
    assert strangers == []


def test_production_code_imports_no_tests_and_no_test_tools() -> None:
    forbidden = {"tests", "pytest", "hypothesis", "playwright"}
    found = [
        f"{name} imports {target}"
        for name, path in modules().items()
        if not name.startswith("benchmarks")
        for target, _ in imports(path)
        if target.split(".")[0] in forbidden
    ]
    assert found == []


def test_no_module_hides_behind_a_name_that_says_nothing() -> None:
    empty_names = {"utils", "util", "common", "helpers", "misc"}
    assert [n for n in modules() if empty_names & set(n.split("."))] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [
        n for n, path in modules().items() if not ast.get_docstring(ast.parse(path.read_text()))
    ] == []


@pytest.mark.parametrize("package", SHIPPED)
def test_top_level_packages_resolve_to_this_repository(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__).parent == ROOT / package


def test_every_dependency_is_pinned_by_name_and_version_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(pin.count("==") == 1 and " " not in pin and "/" not in pin for pin in pins)
    names = [pin.split("==")[0].lower().replace("_", "-") for pin in pins]
    assert len(names) == len(set(names))
