"""The architecture as a test: imports run one way, only the command line prints, only capture knows torch, help is cheap."""

import ast
import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import clustersim

PACKAGE = Path(clustersim.__file__).parent
GROUND = (
    "types", "pick", "places", "descriptions", "writing", "units", "jit", "gpuspec", "kernels", "parts", "matrices", "stacks",
    "model", "architecture", "hf_config", "parallel", "wiring", "handmade", "fabrics", "ways", "laying", "routes", "route_table",
    "cluster", "lanes", "cost",
)  # fmt: skip
ROOMS = (
    *GROUND, "workload", "importers", "placement", "exchange", "network", "engine", "results", "report", "composition", "config",
    "identity", "deciding", "inputs", "fitting", "assembling", "sending", "playing", "training", "causes", "outcome",
    "attribution", "forward_pass", "simulation", "disaggregation", "sweeps", "validation", "commands", "cli",
)  # fmt: skip
HEAVY = {
    "numba", "polars", "hydra", "numpy", "simpy", "networkx", "scipy", "pyarrow", "omegaconf", "rich", "torch", "yaml",
    "matplotlib",
}  # fmt: skip
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py" and "conf" not in path.parts]


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    """Every module that a file imports, anywhere in it, by its full name; `from package import name` gives both."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written out in full"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module):
    """The room that a module of ours is in; None for the package itself and for what it merely exports."""
    parts = module.split(".")
    if parts[0] != "clustersim" or len(parts) == 1:
        return None
    return parts[1] if (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file() else None


def public_functions(path):
    return {n.name for n in tree(path).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_one_way(path):
    own = room(module_of(path))
    for used in {room(name) for name in imported(path)} - {None, own}:
        if own == "capture":
            assert used in (*GROUND, "workload"), f"capture hangs on workload alone, and imports {used}"
        elif used == "capture":
            assert own == "commands", f"{own} imports capture; only a command may"
        else:
            assert ROOMS.index(used) < ROOMS.index(own), f"{own} comes before {used} and imports it"


def test_every_room_has_its_place_in_the_order():
    assert {room(module_of(path)) for path in FILES} <= {*ROOMS, "capture"}


def test_the_test_sees_imports_in_functions_and_of_names(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from clustersim import cli\n    import clustersim.network.kernel\n")
    assert {room(name) for name in imported(file)} == {None, "cli", "network"}


def test_no_public_function_shares_the_name_of_a_module_beside_it():
    """`from package import name` would give now the one, now the other."""
    clashes = set()
    for package in {path.parent for path in FILES}:
        submodules = {path.stem for path in package.glob("*.py")} | {path.name for path in package.iterdir() if path.is_dir()}
        functions = {name for path in package.glob("*.py") for name in public_functions(path)}
        offered = set(importlib.import_module(module_of(package)).__dict__.get("__all__", ()))
        clashes |= {f"{module_of(package)}.{name}" for name in submodules & (functions | offered)}
    assert clashes <= {"clustersim.pick"}, "clustersim itself offers no `pick`, so that one is always the module"
    assert "pick" not in clustersim.__all__


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_the_command_line_prints(path):
    calls = [n for n in ast.walk(tree(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]
    assert not calls or path.name == "cli.py" or path.parent.name == "commands"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_only_capture_imports_torch(path):
    assert "torch" not in {name.partition(".")[0] for name in imported(path)} or path.parent.name == "capture"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_every_module_says_what_it_is_for(path):
    docstring = ast.get_docstring(tree(path))
    assert docstring or not path.read_text().strip(), "a module begins with a docstring"


def loaded_by(statement):
    """Names of the packages that a fresh interpreter has loaded after a statement, and what it printed."""
    script = f"import sys, json\n{statement}\nprint(json.dumps(sorted(m for m in sys.modules if '.' not in m)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=60
    )
    return set(json.loads(done.stderr)), done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"], ["list"], ["list", "model"], ["list", "capacity=gshard"], ["--version"], ["completion", "bash"]],
)
def test_what_needs_no_run_costs_no_imports(arguments):
    loaded, printed = loaded_by(f"from clustersim.cli import main; main({arguments!r})")
    assert printed
    assert not loaded & HEAVY


def test_completing_a_word_costs_the_reading_of_yaml():
    loaded, printed = loaded_by("from clustersim.cli import main; main(['completion', 'words', 'clustersim capacity.f'])")
    assert printed == "capacity.factor=\n"
    assert loaded & HEAVY <= {"yaml"}


def test_importing_the_package_costs_nothing():
    loaded, _ = loaded_by("import clustersim")
    assert not loaded & HEAVY


def test_a_run_needs_neither_torch_nor_pyarrow_nor_scipy():
    loaded, _ = loaded_by("import clustersim as cs; cs.simulate, cs.scan, cs.transfer, cs.load_cluster, cs.flow_times")
    assert not loaded & {"torch", "pyarrow", "scipy", "matplotlib"}
