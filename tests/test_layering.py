"""Imports point down only, and each large dependency is known to one file.

Read from the source text, so that an import inside a function counts as well.
"""

import ast
import sys
from pathlib import Path

import pytest

import jaxresnet as jr

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxresnet"

# A module imports modules of earlier rows only, never its own row or a later one. So there are no cycles.
LAYERS = [
    ["errors", "chunks", "environment", "metrics", "stats", "evaluation", "peers"],
    [
        *("conv_products", "batch_norm", "config", "dataset", "lock", "tables", "json_files", "cifar10_pickle"),
        "cifar10_download",
    ],
    [
        *("conv", "augment", "optim", "published", "synthetic", "markdown", "results", "measurement"),
        *("evaluation_file", "cifar10_files", "splits", "processes", "precision"),
    ],
    ["model", "compilation", "experiment", "figure", "findings", "tree", "cifar10_archive", "cifar10_cache", "launch"],
    [
        *("state", "summary", "torch_weights", "options", "page", "reproduction", "figure_evaluation"),
        *("figure_models", "cifar10_tfds"),
    ],
    ["packing", "checkpoint", "figure_reproduction", "cifar10_source"],
    ["steps", "resume", "predict", "cifar10"],
    ["parallel", "evaluate_runs", "weight_files"],
    ["shared_run", "model_table"],
    ["train", "report"],
    ["progress", "teams"],
    ["compare", "exits"],
    ["cli"],
    ["__init__", "__main__"],
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

# Where each dependency may be imported at all. (What is not listed may be imported anywhere.)
ONLY_IN = {
    "flax": {"model"},
    "markdown_it": {"markdown"},
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"cifar10_tfds"},
    "array_record": {"cifar10_tfds"},
    "matplotlib": {"figure", "figure_reproduction", "figure_evaluation", "figure_models"},
    "tyro": {"options", "__main__"},
    "tensorflow": set(),
    "safetensors": {"weight_files"},
    "torch": {"torch_weights"},
    "socket": {"peers", "launch"},
}
# Slow to import, or needed by few: only inside the functions that use them.
NEVER_AT_IMPORT = {
    *("tensorflow_datasets", "tensorflow", "array_record", "matplotlib", "orbax", "tyro", "rich", "PIL", "scipy"),
    *("markdown_it", "safetensors", "torch"),
}


def imported(node: ast.AST) -> list[str]:
    """Full names, "jaxresnet.optim.optimizers" or "scipy.stats", that an import statement may load; [] for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports are not used here"
        # `from jaxresnet import optim` loads a module, `from jaxresnet import fit` the whole package.
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def all_imports(tree: ast.AST) -> set[str]:
    return {name for node in ast.walk(tree) for name in imported(node)}


def imports_at_import_time(tree: ast.AST) -> set[str]:
    """Without those inside functions, and without those for type checkers."""
    names = set(imported(tree))
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names |= imports_at_import_time(node)
    return names


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


TREES = {path.stem: parse(path) for path in sorted(PACKAGE.glob("*.py"))}


def modules_imported(tree: ast.AST) -> set[str]:
    """The modules of this package that `tree` imports."""
    parts = [name.split(".") for name in all_imports(tree)]
    return {(p[1] if len(p) > 1 and p[1] in TREES else "__init__") for p in parts if p[0] == "jaxresnet"}


def test_every_module_has_one_layer():
    listed = [name for names in LAYERS for name in names]
    assert sorted(listed) == sorted(TREES)


@pytest.mark.parametrize("name", TREES)
def test_imports_point_down(name):
    up = {other for other in modules_imported(TREES[name]) if LAYER[other] >= LAYER[name]}
    assert not up, f"{name} (layer {LAYER[name]}) imports {', '.join(f'{o} (layer {LAYER[o]})' for o in sorted(up))}"


def test_no_layer_is_deeper_than_it_must_be():
    """Each module sits directly above the highest that it imports, so the table says what the imports are."""
    for name in set(TREES) - {"__init__", "__main__"}:
        below = [LAYER[other] for other in modules_imported(TREES[name])]
        assert LAYER[name] == max(below, default=-1) + 1, name


@pytest.mark.parametrize("dependency", ONLY_IN)
def test_dependencies_are_known_to_their_files_only(dependency):
    users = {name for name, tree in TREES.items() if any(n.split(".")[0] == dependency for n in all_imports(tree))}
    assert users <= ONLY_IN[dependency]


@pytest.mark.parametrize("name", TREES)
def test_heavy_libraries_are_imported_where_they_are_used(name):
    assert not {n for n in imports_at_import_time(TREES[name]) if n.split(".")[0] in NEVER_AT_IMPORT}


EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_experiments_use_the_public_surface_only(path):
    tree = parse(path)
    outside = {n for n in all_imports(tree) if n.split(".")[0] not in sys.stdlib_module_names}
    public = {f"jaxresnet.{name}" for name in jr.__all__}
    others = {other.stem for other in EXPERIMENTS}  # run_all imports the scripts that it runs
    assert outside <= {"jaxresnet"} | public | others
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "jaxresnet"
    }
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    }
    assert used <= set(jr.__all__)


def test_there_are_experiments():
    assert EXPERIMENTS


def test_the_checks_see_what_they_are_for():
    tree = ast.parse(
        "import a.b\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import c\n"
        "try:\n    from d import e\nexcept ImportError:\n    pass\n"
        "class C:\n    import f\n    def method(self):\n        import g\n"
        "from jaxresnet import optim, fit\n"
    )
    at_import_time = {"a.b", "typing.TYPE_CHECKING", "d.e", "f", "jaxresnet.optim.optimizers", "jaxresnet.fit"}
    assert imports_at_import_time(tree) == at_import_time
    assert all_imports(tree) == at_import_time | {"c", "g"}
    assert modules_imported(tree) == {"optim", "__init__"}
