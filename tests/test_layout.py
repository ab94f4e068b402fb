"""The house's three rules, read from imports and signatures: what may call what, and with what."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "calculate_calibration_metrics", "calculate_upper_bound_rlhf", "calculate_win_rate", "dpo",
    "plot_results", "sft",
}  # fmt: skip
# a room imports itself and rooms of lower floors
FLOORS = {
    "data": 0, "metrics": 0, "plumbing": 0, "reports": 1, "scoring": 2, "judging": 3, "training": 3,
}  # fmt: skip
MATHS = {"numpy", "scipy", "statsmodels", "pandas"}
HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate"}
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("ranking/**/*.py")])
OURS = sorted([*ROOT.glob("reproduce/*.py"), *ROOT.glob("benchmarks/*.py")])


def name_of(file: Path) -> str:
    """The module's dotted name; a package's is that of its folder."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path, at_start: bool = False) -> set[str]:
    """Dotted names of what a file imports; `at_start`: not inside of functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if at_start else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n for n in inside if n in MODULES} or {node.module}
    return found


MODULES = {name_of(file) for file in FILES}


def room_of(module: str) -> str | None:
    """data, scoring, … of a module of `ranking`; None in the root."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ranking" and len(parts) > 1 else None


def test_no_script_is_imported_and_rooms_import_downward():
    assert {file.stem for file in ROOT.glob("*.py")} == SCRIPTS | {
        "data_utils",
        "dpo_gamma_trainer",
    }
    assert {room_of(name_of(file)) for file in FILES} == {None, *FLOORS}
    for file in [*FILES, *OURS]:
        for module in imports_of(file) & MODULES:
            assert module not in SCRIPTS or file.parts[-2] == "reproduce", (file, module)
            own, other = room_of(name_of(file)), room_of(module)
            if own is not None:
                assert other is not None, f"{file} imports {module} of the root"
                assert own == other or FLOORS[other] < FLOORS[own], f"{file} imports {module}"


def test_what_other_scripts_import_is_installed():
    """`pip install -e` takes the modules of the root that are no scripts, with `ranking`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    importable = {file.stem for file in ROOT.glob("*.py")} - SCRIPTS
    assert set(project["tool"]["setuptools"]["py-modules"]) == importable


def test_no_circle():
    arrows = {name_of(file): imports_of(file) & MODULES for file in FILES}
    while arrows:
        leaves = {name for name, called in arrows.items() if not called & arrows.keys()}
        assert leaves, f"a circle among {sorted(arrows)}"
        arrows = {name: called for name, called in arrows.items() if name not in leaves}


def test_the_largest_room_names_its_modules():
    """In its docstring, in the order of a run."""
    folder = ROOT / "ranking/training"
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    modules = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert modules <= {*re.findall(r"\w+", text)}


@pytest.mark.parametrize("file", sorted(ROOT.glob("ranking/metrics/*.py")), ids=lambda f: f.stem)
def test_metrics_are_numpy_and_scipy(file):
    import sys

    for module in imports_of(file):
        top = module.split(".")[0]
        assert top in MATHS | set(sys.stdlib_module_names) or room_of(module) == "metrics", module


@pytest.mark.parametrize("file", sorted(ROOT.glob("ranking/reports/*.py")), ids=lambda f: f.stem)
def test_reports_need_no_torch(file):
    assert not {module.split(".")[0] for module in imports_of(file)} & HEAVY


@pytest.mark.parametrize("script", sorted(SCRIPTS - {"dpo", "sft"}))  # these: test_early_checks.py
def test_what_loads_with_a_script_needs_no_torch(script):
    """All that is imported at the start, from one to the next."""
    waiting, seen = [script], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        path = ROOT / Path(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        called = imports_of(file, at_start=True)
        assert not {name.split(".")[0] for name in called} & HEAVY, module
        waiting += called & MODULES
    assert len(seen) > 10


def functions_of(file: Path):
    """(name, its parameters) of each function that is no method: those have a library's signature."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    methods = {
        id(function) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
        for function in node.body
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and id(node) not in methods:
            yield node.name, [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


@pytest.mark.parametrize("file", sorted({*FILES, *OURS}), ids=name_of)
def test_only_parse_args_and_main_see_args(file):
    for name, parameters in functions_of(file):
        for parameter in parameters:
            kind = ast.unparse(parameter.annotation) if parameter.annotation else ""
            sees = parameter.arg.endswith("args") or "Namespace" in kind or "Arguments" in kind
            assert not sees or name in ("parse_args", "main"), f"{name}({parameter.arg})"


def test_every_name_has_one_meaning():
    """No two rooms define one public name, but for what each script has."""
    homes: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                homes.setdefault(name, []).append(name_of(file))
    of_scripts = {"main", "parse_args", "REPLACED", "__all__"}
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    assert not twice.keys() - of_scripts, twice
