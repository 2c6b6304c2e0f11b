"""The shape of the code: one order of rooms in each package, no import between packages, what each may depend on."""

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The rooms of every package, and its modules outside of rooms, in one order: each imports only from those named before
# it. Names in one tuple know nothing of each other.
ORDER = {
    "mft_data": [
        "errors",
        "reading",
        ("dataset", "encoding"),
        ("rows", "filters"),
        "audit",
        "display",
        "execution",
        "commands",
        "option_values",
        "cli",
    ],
    "mft_eval": [
        ("errors", "wire"),
        ("sandbox", "generations"),
        "problems",
        "judging",
        ("scoring", "report"),
        "commands",
        "command_line",
        "cli",
    ],
    "mft_infer": [
        ("errors", "settings"),
        ("prompts", "encoding", "decoding", "output"),
        "model",
        ("engines", "conversation"),
        "commands",
        "cli",
    ],
    "mft_merge": [
        "errors",
        ("extras", "files", "torch_import"),
        "sources",
        "planning",
        "values",
        "output",
        ("verification", "extract"),
        "merge",
        "cli",
    ],
    "mft_train": [
        "errors",
        "config",
        "rows",
        "model",
        "loss",
        "optimization",
        "balancing",
        "engine",
        "checkpoint",
        ("planning", "tracking"),
        "report",
        "running",
        "cli",
        "__main__",
    ],
}
MOST_FLAT_MODULES = 20
NEVER_IN = {
    "mft_eval": {"torch", "transformers", "numpy", "tokenizers", "streaming"},
    "mft_merge": {"accelerate", "streaming"},
    "mft_infer": {"streaming", "accelerate", "deepspeed"},
    "mft_data": {"torch", "peft", "accelerate", "deepspeed"},
}


def source(package: str) -> Path:
    return ROOT / "packages" / package.replace("_", "-") / "src" / package


def modules(package: str) -> dict[str, Path]:
    """Every module below a package by its dotted name without the package's."""
    folder = source(package)
    paths = {path.relative_to(folder).with_suffix(""): path for path in sorted(folder.rglob("*.py"))}
    return {".".join(name.parts): path for name, path in paths.items() if name.name != "__init__"}


def own_imports(package: str, path: Path) -> set[str]:
    """The modules of its own package that a module imports, by their dotted names without the package's."""
    known = modules(package)
    found = set()
    for imported in imports(path):
        words = imported.split(".")
        if words[0] == package:
            names = {".".join(words[1:stop]) for stop in range(2, len(words) + 1)} & known.keys()
            assert names, f"{path} imports {imported}, which is no module or is handed on by a room"
            found |= names
    return found


def room(name: str) -> str:
    return name.split(".")[0]


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def levels(package: str) -> dict[str, int]:
    """The position of every room or module in the package's order."""
    groups = [(group,) if isinstance(group, str) else group for group in ORDER[package]]
    return {name: level for level, group in enumerate(groups) for name in group}


@pytest.mark.parametrize("package", ORDER)
def test_the_order_names_every_room_once(package):
    listed = [name for group in ORDER[package] for name in ([group] if isinstance(group, str) else group)]
    assert sorted(listed) == sorted({room(name) for name in modules(package)})


@pytest.mark.parametrize("package", ORDER)
def test_rooms_import_only_from_those_before_them(package):
    level = levels(package)
    for name, path in modules(package).items():
        for imported in own_imports(package, path):
            if room(imported) != room(name):
                assert level[room(imported)] < level[room(name)], f"{package}.{name} imports {imported}"


@pytest.mark.parametrize("package", ORDER)
def test_no_imports_go_in_a_circle(package):
    TopologicalSorter({name: own_imports(package, path) for name, path in modules(package).items()}).prepare()


@pytest.mark.parametrize("package", ORDER)
def test_a_room_is_one_level_deep_and_its_init_is_a_docstring(package):
    for path in source(package).rglob("*.py"):
        assert len(path.relative_to(source(package)).parts) <= 2, path
        if path.name == "__init__.py" and path.parent != source(package):
            (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(docstring, ast.Expr), path
            assert isinstance(docstring.value, ast.Constant), path


@pytest.mark.parametrize("package", ORDER)
def test_a_large_package_has_rooms(package):
    flat = [name for name in modules(package) if "." not in name]
    assert len(flat) <= MOST_FLAT_MODULES


@pytest.mark.parametrize("package", ORDER)
def test_packages_never_import_each_other(package):
    others = set(ORDER) - {package}
    tests = (ROOT / "packages" / package.replace("_", "-") / "tests").rglob("*.py")
    for path in [*modules(package).values(), *tests]:
        roots = {imported.split(".")[0] for imported in imports(path)}
        assert not roots & others, path
        assert not roots & NEVER_IN.get(package, set()) or path not in source(package).rglob("*.py"), path


@pytest.mark.parametrize("package", ORDER)
def test_every_import_is_a_declared_dependency(package):
    import importlib.metadata
    import re
    import sys

    project = tomllib.loads((ROOT / "packages" / package.replace("_", "-") / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    requirements = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    declared = {re.match(r"[\w.-]+", requirement).group().lower() for requirement in requirements}
    by_module = importlib.metadata.packages_distributions()
    for path in modules(package).values():
        for root in {imported.split(".")[0] for imported in imports(path)} - {package, *sys.stdlib_module_names}:
            distributions = {name.lower() for name in by_module.get(root, [root.replace("_", "-")])}
            assert distributions & declared, f"{path.name} imports {root}, which pyproject.toml does not name"


@pytest.mark.parametrize("package", ORDER)
def test_every_module_and_public_name_says_what_it_is(package):
    for path in modules(package).values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_shared_dependencies_ask_for_the_same_versions():
    floors: dict[str, set[str]] = {}
    for path in ROOT.glob("packages/*/pyproject.toml"):
        for requirement in tomllib.loads(path.read_text())["project"]["dependencies"]:
            name, _, floor = requirement.partition(">=")
            floors.setdefault(name, set()).add(floor)
    assert {name: found for name, found in floors.items() if len(found) > 1} == {}
