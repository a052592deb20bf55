"""The rooms of the package and the imports that are allowed between them, read from the source text."""

import ast
from pathlib import Path

import pytest

import jaxresnet as jr

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxresnet"

# Each room may import the files of the package's own folder (config, errors, files and so on), itself, and these.
ALLOWED = {
    "base": set(),
    "data": set(),
    "nn": set(),
    "optim": set(),
    "training": {"data", "nn", "optim"},
    "results": set(),
    "reporting": {"results"},
    "interop": {"nn", "training"},
    "comparison": {"data", "nn", "training", "results", "reporting"},
    "cli": {"data", "nn", "training", "results", "reporting", "interop", "comparison"},
}
# The files that may know a library at all. What is not listed may be imported anywhere.
ONLY_IN = {
    "flax": "nn",
    "orbax": "training/checkpoint",
    "optax": "optim training",
    "tensorflow_datasets": "data/tfds",
    "array_record": "data/tfds",
    "matplotlib": "reporting",
    "jinja2": "reporting",
    "markdown_it": "reporting",
    "safetensors": "interop",
    "torch": "interop",
    "tyro": "cli",
    "tensorflow": "",
    "socket": "",
}


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, inside functions too; not what only type checkers read."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return names


FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): imports(path) for path in PACKAGE.rglob("*.py")}


def room(module: str) -> str:
    """Of "training/fit" or "training.fit": "training"; of a file that is in no room: "base"."""
    first, *rest = module.replace(".", "/").split("/")
    return first if rest or first in ALLOWED else "base"


@pytest.mark.parametrize("file", [file for file in FILES if file not in ("__init__", "__main__")])
def test_imports_point_one_way(file):
    ours = {name.removeprefix("jaxresnet.") for name in FILES[file] if name.startswith("jaxresnet.")}
    assert {room(name.rpartition(".")[0]) for name in ours} <= ALLOWED[room(file)] | {"base", room(file)}


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_are_known_to_their_files_only(library):
    users = {file for file, names in FILES.items() if any(name.split(".")[0] == library for name in names)}
    assert all(file.startswith(tuple(ONLY_IN[library].split()) or "nowhere") for file in users), users


@pytest.mark.parametrize("room", ["results", "reporting"])
def test_redrawing_needs_no_jax(room):
    for file, names in FILES.items():
        if file.startswith(room):
            assert not {n for n in names if n.split(".")[0] in ("jax", "jaxlib", "flax", "optax")}, file


def test_nothing_private_is_imported():
    for file, names in FILES.items():
        private = {n for n in names if any(part.startswith("_") and part[:2] != "__" for part in n.split("."))}
        assert not private, file


def test_no_module_is_long():
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert max(lengths.values()) <= 300, {name: n for name, n in lengths.items() if n > 300}


def test_experiments_use_the_public_surface():
    """The exported names, or what a subpackage's module is documented to offer."""
    for path in (ROOT / "experiments").glob("*.py"):
        others = {
            n for n in imports(path) if n.startswith("jaxresnet.") and n.removeprefix("jaxresnet.") not in jr.__all__
        }
        assert {room(name.removeprefix("jaxresnet.").rpartition(".")[0] or "x") for name in others} <= {
            "comparison",
            "base",
        }, path.name


def test_the_checks_see_what_they_are_for(tmp_path):
    (tmp_path / "x.py").write_text(
        "import a.b\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import c\n"
        "def f():\n    from jaxresnet.nn import resnet\n"
    )
    assert imports(tmp_path / "x.py") == {"a.b", "typing.TYPE_CHECKING", "jaxresnet.nn.resnet"}
    assert (room("training/fit"), room("config"), room("nn")) == ("training", "base", "nn")
