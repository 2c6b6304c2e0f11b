"""The shape of the code: layers inside each package, no import between packages, what each may depend on."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every module of every package, from the command line down. A module imports from the layers below its own only.
LAYERS = {
    "mft_data": [
        {"cli"},
        {"build", "join", "preview", "inspection", "verify"},
        {"assemble"},
        {"chunk_store"},
        {"encode_chunk", "plan"},
        {"work", "rows", "overlong", "remote", "choose_template"},
        {"chat_template", "encoder", "contamination"},
        {"dataset_dir", "template", "duplicates", "summary"},
        {"chunks", "records", "special_tokens", "split", "engines"},
        {"conversation", "mds", "row_rules", "saved_tokenizer", "sources", "staging", "tokenizer"},
        {"fingerprints", "length_histogram", "packing", "progress", "row_display", "shard_columns", "word_windows"},
        {"errors"},
    ],
    "mft_eval": [
        {"cli"},
        {"score"},
        {"results"},
        {"judging", "prompts"},
        {"judge", "problems", "generations"},
        {"sandbox", "session", "program", "pass_at_k"},
        {"program_host"},
        {"channel"},
        {"codec", "errors"},
    ],
    "mft_infer": [
        {"cli"},
        {"generate", "chat"},
        {"language_model", "generations", "prompts", "decoding"},
        {"detokenizer", "sampling"},
        {"errors"},
    ],
    "mft_merge": [
        {"cli"},
        {"merge"},
        {"merged_values"},
        {"plan"},
        {"adapter", "base_model", "tokenizer_files"},
        {"tensor_file", "json_file"},
        {"errors"},
    ],
    "mft_train": [
        {"__main__"},
        {"cli"},
        {"launch", "starter", "import_mftcoder", "report"},
        {"train", "report_page"},
        {"plan", "run", "report_charts", "report_tables"},
        {"metrics"},
        {
            "balance",
            "checkpoint_list",
            "compiled_layers",
            "line_chart",
            "memory",
            "not_finite",
            "provenance",
            "task_figures",
            "trackers",
        },
        {"balancers", "checkpoint", "config_file", "interrupts", "model", "optimizer", "schedule", "tokenizer_match"}
        | {"train_step", "validation"},
        {
            "coba",
            "famo",
            "self_paced",
            "mixture",
            "out_of_memory",
            "row_stream",
            "loss_head",
            "run_log",
            "progress_display",
        },
        {"router_loss"},
        {"dataset_dir", "coefficients", "segment_attention", "config", "slopes", "validation_record", "mftcoder_keys"},
        {"packed_batch", "curve", "perplexity", "peak_memory", "run_lock", "shared_memory"}
        | {"linear_cross_entropy", "lora_linear"},
        {"errors", "matrix_product"},
    ],
}
NEVER_IN = {
    "mft_eval": {"torch", "transformers", "numpy", "tokenizers", "streaming"},
    "mft_merge": {"transformers", "peft", "accelerate", "streaming"},
    "mft_infer": {"streaming", "accelerate", "deepspeed"},
    "mft_data": {"torch", "peft", "accelerate", "deepspeed"},
}


def modules(package: str) -> dict[str, Path]:
    source = ROOT / "packages" / package.replace("_", "-") / "src" / package
    assert [path for path in source.rglob("*.py") if path.parent != source] == [], "packages are flat"
    return {path.stem: path for path in source.glob("*.py") if path.stem != "__init__"}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_has_one_layer(package):
    listed = [name for layer in LAYERS[package] for name in layer]
    assert sorted(listed) == sorted(modules(package))


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_down(package):
    depth = {name: index for index, layer in enumerate(LAYERS[package]) for name in layer}
    for name, path in modules(package).items():
        own = {imported.split(".")[1] for imported in imports(path) if imported.startswith(f"{package}.")}
        for imported in own:
            assert depth[imported] > depth[name], f"{package}.{name} imports {imported} of its own layer or above"


@pytest.mark.parametrize("package", LAYERS)
def test_packages_never_import_each_other(package):
    others = set(LAYERS) - {package}
    tests = (ROOT / "packages" / package.replace("_", "-") / "tests").glob("*.py")
    for path in [*modules(package).values(), *tests]:
        roots = {imported.split(".")[0] for imported in imports(path)}
        assert not roots & others, path
        assert not roots & NEVER_IN.get(package, set()) or path.parent.name == "tests", path


@pytest.mark.parametrize("package", LAYERS)
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


@pytest.mark.parametrize("package", LAYERS)
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
