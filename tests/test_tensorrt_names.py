"""Every class, method and flag of TensorRT that the engines use is one that the bindings have.

TensorRT itself cannot be installed here, so nothing of it runs. What is read: the source of the
modules that call it, for names; the classes of TensorRT-RTX, which are the same API, alive; and the
bindings of TensorRT 11 as a file, whose names stand in it as text.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from scanside.runtime.engines import (
    native_engine,
    plan_builder,
    rtx,
    rtx_builder,
    tensorrt_builder,
    tensorrt_library,
)
from scanside.runtime.engines.tensorrt_library import Library, library
from scanside.runtime.errors import DeviceError, MissingExtraError

SHARED = (plan_builder, native_engine, tensorrt_builder, tensorrt_library)
"""What TensorRT 10 and 11 are called by."""
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "config": ("IBuilderConfig", "IRuntimeConfig"),
    "kinds": "ExecutionContextAllocationStrategy",
    "cache": ("ITimingCache",),
    "_cache": ("IRuntimeCache",),
    "context": "IExecutionContext",
}
"""Names of variables that hold an object of the library, with its class."""
OWN = {"launch", "close", "save", "context"}
"""Methods of our own objects, which are also called `engine` and `cache`."""


def used(modules: tuple[ModuleType, ...]) -> set[tuple[str, ...]]:
    """(class, ..., name) of everything that is taken from the library; class "" for the module."""
    found: set[tuple[str, ...]] = set()
    for module in modules:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if name == "api":
                found.add(("", node.attr))
            elif isinstance(owner, ast.Attribute) and ends_in_api(owner.value):
                found.add((owner.attr, node.attr))
            elif name in OBJECTS and node.attr not in OWN:
                classes = OBJECTS[name]
                found.add((*((classes,) if isinstance(classes, str) else classes), node.attr))
    return found - {("", "__version__"), ("", "__name__")}


def ends_in_api(node: ast.expr) -> bool:
    return getattr(node, "attr", getattr(node, "id", "")) == "api"


def test_the_names_are_found() -> None:
    found = used((*SHARED, rtx, rtx_builder))
    for expected in (
        ("", "OnnxParser"),
        ("Builder", "build_serialized_network"),
        ("ICudaEngine", "get_tensor_dtype"),
        ("IExecutionContext", "execute_async_v3"),
        ("BuilderFlag", "VERSION_COMPATIBLE"),
        ("ITimingCache", "serialize"),
        ("IRuntimeCache", "deserialize"),
        ("ParserError", "node_operator"),
        ("Runtime", "get_engine_validity"),
    ):
        assert expected in found
    assert len(found) > 35


@pytest.mark.parametrize(
    "name", sorted(used((*SHARED, rtx, rtx_builder))), ids=lambda name: ".".join(name)
)
def test_tensorrt_rtx_has_it(name: tuple[str, ...]) -> None:
    api = library("rtx").api
    *classes, attribute = name
    owners = [api if owner == "" else getattr(api, owner) for owner in classes]
    assert any(hasattr(owner, attribute) for owner in owners)


@pytest.fixture(scope="module")
def binary() -> bytes:
    """The bindings of TensorRT 11."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    assert spec is not None
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "tensorrt.so").read_bytes()


def holds(binary: bytes, name: str) -> bool:
    """Whether a name stands there as text, or as the end of a longer one: linkers store a text that
    another one ends in only once."""
    return name.encode() + b"\0" in binary


@pytest.mark.parametrize("name", sorted(used(SHARED)), ids=lambda name: ".".join(name))
def test_tensorrt_11_has_it(name: tuple[str, ...], binary: bytes) -> None:
    *classes, attribute = name
    assert holds(binary, attribute)
    assert classes == [""] or any(holds(binary, owner) for owner in classes)


GONE = ("EXPLICIT_BATCH", "OBEY_PRECISION_CONSTRAINTS", "int8_calibrator", "platform_has_fast_fp16")


@pytest.mark.parametrize("name", GONE)
def test_what_tensorrt_11_has_no_more_is_not_used(name: str, binary: bytes) -> None:
    assert not holds(binary, name)
    assert name not in {found[-1] for found in used(SHARED)}


def test_no_precision_is_asked_for_but_in_the_graph() -> None:
    assert not {"FP16", "BF16", "INT8", "FP8"} & {found[-1] for found in used(SHARED)}


def test_bindings_without_their_libraries_say_what_to_install() -> None:
    """Which is what the package index gives."""
    said = r"TensorRT is not .*whole \(lib.*pip install tensorrt,"
    with pytest.raises(MissingExtraError, match=said):
        library("tensorrt")


def test_a_tensorrt_of_another_major_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    api = ModuleType("tensorrt_bindings")
    api.__version__ = "8.6.1"  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(tensorrt_library, "_imported", lambda _: api)
    with pytest.raises(DeviceError, match=r"TensorRT 8\.6\.1 is installed, .*TensorRT 10 and 11"):
        library("tensorrt")


def test_the_lean_runtime_builds_nothing() -> None:
    lean = Library(
        backend="tensorrt", api=ModuleType("tensorrt_lean"), version="11.4", cuda_major=13
    )
    assert not lean.builds
    assert library("rtx").builds
    options = tensorrt_builder.BuildOptions()
    with pytest.raises(DeviceError, match="lean runtime, which runs engines and builds none"):
        tensorrt_builder.build_tensorrt(lean, "unet", Path("unet.onnx"), None, options)  # pyright: ignore[reportArgumentType]
