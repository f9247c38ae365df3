"""What holds over the whole repository: packages, pins, versions, and who may import what."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import scanside

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("export", "kernels", "runtime")
EXPORT_ONLY = {"torch", "transformers", "diffusers", "optimum", "onnx", "onnxscript", "gguf"}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def packages_on_disk() -> set[str]:
    inits = (path for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py"))
    return {"scanside", *(".".join(("scanside", *p.relative_to(ROOT).parts[:-1])) for p in inits)}


def modules(*folders: str) -> list[Path]:
    """Examples are data: scripts for other programs, which use the package from outside."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if path.parent.name != "examples")


def imports(path: Path) -> set[str]:
    """Collect the top-level names that a file imports; a relative import counts as ".folder"."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            top = (*base, *(node.module or "").split("."))[0]
            names.add(f".{top}" if node.level else top)
    return names


def test_packages_are_the_folders_on_disk():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_folder_with_modules_is_a_package():
    bare = {path.parent for path in modules(*FOLDERS) if not (path.parent / "__init__.py").exists()}
    assert not bare, "a folder without __init__.py is missing from the wheel"


@pytest.mark.parametrize("name", sorted(packages_on_disk()))
def test_all_names_what_is_there(name: str):
    package = importlib.import_module(name)
    listed = getattr(package, "__all__", [])
    tree = ast.parse(Path(package.__file__).read_text())
    faces = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert {a.asname or a.name for n in faces for a in n.names} <= set(listed)
    assert [name for name in listed if not hasattr(package, name)] == []
    assert len(listed) == len(set(listed))


def test_runtime_loads_nothing_of_the_exporter():
    """In a fresh process, since the other tests of this one may have loaded torch."""
    code = "import scanside.runtime, scanside.runtime.cli, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {module.split(".")[0] for module in done.stdout.split()}
    assert loaded & EXPORT_ONLY == set()


@pytest.mark.parametrize("path", modules("runtime", "kernels"), ids=lambda p: p.stem)
def test_runtime_and_kernels_never_import_the_exporter(path: Path):
    assert imports(path) & EXPORT_ONLY == set()
    assert ".export" not in imports(path), "arrows run export -> runtime -> kernels"


@pytest.mark.parametrize("path", modules("kernels"), ids=lambda p: p.stem)
def test_kernels_import_neither_runtime_nor_export(path: Path):
    assert imports(path) & {".export", ".runtime"} == set()


@pytest.mark.parametrize("path", modules(*FOLDERS), ids=lambda p: "-".join(p.parts[-2:]))
def test_package_imports_itself_relatively(path: Path):
    """An absolute import would be unresolved for type checkers in a checkout of another name."""
    assert imports(path) & {"scanside", *FOLDERS} == set()


def test_constraints_pin_all_that_is_asked_for():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *(r for rows in extras.values() for r in rows)]
    names = {normalise(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in asked}
    assert names <= {normalise(name) for name in pins}


def test_the_changelog_opens_with_this_version():
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == scanside.__version__
