"""The house rules that a program can check (STYLE 1 and 2)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gradacc_dist"
LAUNCHER = ROOT / "launcher"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80

# From the ground up. A module may import from the layers below its own, and within its own room;
# rooms of one layer are siblings and do not know each other.
LAYERS = [
    ["errors"],
    ["config", "items", "signals", "exits"],
    ["world"],
    ["data"],
    ["model", "optim", "objectives"],
    ["observe"],
    ["agreement", "engines"],
    ["denominator"],
    ["windows", "checkpoint", "evaluate"],
    ["step"],
    ["records"],
    ["training", "validation", "exporting"],
    ["cli"],
    ["train", "validate", "export", "bandwidth"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
SOURCES = sorted(PACKAGE.rglob("*.py"))
LAUNCHER_SOURCES = sorted(LAUNCHER.rglob("*.py"))

# What the launcher, which starts ranks and loads no torch, may know of them.
KNOWN_TO_LAUNCHER = {
    "errors",
    "config",
    "exits",
    "observe.ledger",
    "checkpoint.store",
    "checkpoint.launch",
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Those of gradacc_dist by their names in it, those of others by their whole names."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [node.module or ""]
            if node.module == "gradacc_dist":
                names = [f"gradacc_dist.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        modules |= set(names)
    return modules


def imported_rooms(path: Path) -> set[str]:
    modules = imported_modules(path)
    rooms = {name.split(".")[1] for name in modules if name.startswith("gradacc_dist.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = room(path)
    if own == "__init__":
        assert imported_rooms(path) == set()
        return
    for other in imported_rooms(path) - {own}:
        assert LEVEL[other] < LEVEL[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", LAUNCHER_SOURCES, ids=lambda path: path.name)
def test_the_launcher_knows_little_of_the_ranks(path):
    for module in imported_modules(path):
        if module.startswith("gradacc_dist."):
            inner = module.removeprefix("gradacc_dist.")
            known = {inner, inner.partition(".")[0]} & KNOWN_TO_LAUNCHER
            assert known, f"{path.name} imports {module}"
        assert module.partition(".")[0] not in {"torch", "accelerate", "transformers", "datasets"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ranks_know_nothing_of_the_launcher(path):
    assert not {name for name in imported_modules(path) if name.partition(".")[0] == "launcher"}


def test_no_module_of_the_launcher_loads_torch():
    """Nor through what it knows: each of those modules is loaded in one process, and looked at."""
    names = [f"launcher.{path.stem}" for path in LAUNCHER_SOURCES if not path.stem.startswith("__")]
    program = (
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


EVERY_SOURCE = [*SOURCES, *LAUNCHER_SOURCES]


@pytest.mark.parametrize("path", EVERY_SOURCE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= MAX_FUNCTION_LINES, f"{node.name} has {size} lines"


def test_no_cycles():
    graph = {}
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in EVERY_SOURCE}
    for name, path in names.items():
        modules = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                modules |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        graph[name] = modules & names.keys() - {name}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


DIVIDING_CALLS = {"div", "div_", "divide", "mean", "true_divide"}


@pytest.mark.parametrize(
    "path",
    # factor.py looks at gradients, and changes none that trains.
    [
        p
        for p in SOURCES
        if room(p) in {"step", "windows", "engines", "objectives", "world"} and p.stem != "factor"
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_the_denominator_is_the_only_divider(path):
    """Contract 3: nothing else on the way of a gradient divides, averages or asks for a mean."""
    for node in ast.walk(ast.parse(path.read_text())):
        divides = isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div)
        calls = isinstance(node, ast.Attribute) and node.attr in DIVIDING_CALLS
        means = isinstance(node, ast.keyword) and getattr(node.value, "value", None) == "mean"
        if divides or calls or means:
            pytest.fail(f"{path.name} divides at line {node.lineno}")
