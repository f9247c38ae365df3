"""Every variant for every target, compiled here: no GPU, and triton without torch."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanside.kernels.ahead_of_time import assemble, cached_kernels, compile_kernels
from scanside.kernels.compiled import CompiledKernels
from scanside.kernels.variants import ARCHITECTURES, ARGUMENTS, SCRATCH, VARIANTS, Variant

MOST_BYTES = 2_000_000
ELF_CUDA = b"\x7fELF"
WIDTHS = {"u64": 8, "s64": 8, "b64": 8, "u32": 4, "s32": 4, "b32": 4, "f32": 4}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All variants for all targets. Read only."""
    return compile_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def folder(compiled: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(compiled, tmp_path / "kernels")


def test_there_are_at_most_twelve_variants():
    assert len(VARIANTS) == 12
    assert len({variant.name for variant in VARIANTS}) == 12


def test_every_variant_has_code_for_every_target(compiled: Path):
    kernels = CompiledKernels.open(compiled)
    assert kernels.targets == (*(f"sm_{sm}" for sm in ARCHITECTURES), "ptx")
    for target in kernels.targets:
        for variant in VARIANTS:
            image = kernels.image(variant, target)
            assert image.code.startswith(b"//" if target == "ptx" else ELF_CUDA)
    assert kernels.check() == 12 * (len(ARCHITECTURES) + 1)


def test_all_of_them_together_are_small(compiled: Path):
    assert sum(file.stat().st_size for file in compiled.iterdir()) <= MOST_BYTES


def test_ptx_takes_the_arguments_of_the_contract_and_a_driver_of_2022(compiled: Path):
    kernels = CompiledKernels.open(compiled)
    wanted = [
        8 if "*" in kind or kind == "i64" else 4
        for _, kind, count in ARGUMENTS
        for _ in range(count)
    ]
    for variant in VARIANTS:
        image = kernels.image(variant, "ptx")
        ptx = image.code.decode()
        assert ".version 8.0" in ptx
        assert ".target sm_80" in ptx
        entry = ptx[ptx.index(f".entry {image.symbol}(") : ptx.index("\n)")]
        found = [WIDTHS[kind] for kind in re.findall(r"\.param \.(\w+)", entry)]
        assert found == wanted + [8] * len(SCRATCH)
        (threads,) = re.findall(r"\.(?:reqntid|maxntid) (\d+)", ptx)
        assert int(threads) == 32 * image.warps


def test_stored_and_written_types_are_those_of_the_variant(compiled: Path):
    kernels = CompiledKernels.open(compiled)
    for variant in VARIANTS:
        ptx = kernels.image(variant, "ptx").code.decode()
        width = 8 * np.dtype("uint16" if variant.tokens == "bfloat16" else variant.tokens).itemsize
        assert re.findall(r"st\.global\.b(\d+)", ptx) == [str(width)] * ptx.count("st.global")
        assert ("cvt.rn.f16.f32" in ptx) == (variant.tokens == "float16")
        assert ("cvt.rn.bf16" in ptx) == (variant.tokens == "bfloat16")
        assert ("cvt.rn.f32.s16" in ptx) == (variant.volume == "int16")
        assert ("cvt.rn.f32.u16" in ptx) == (variant.volume == "uint16")


def test_no_argument_is_specialised(compiled: Path):
    for entry in json.loads((compiled / "kernels.json").read_text())["arguments"]:
        assert entry["count"] >= 1
    ptx = CompiledKernels.open(compiled).image(VARIANTS[0], "ptx").code.decode()
    total = sum(count for *_, count in ARGUMENTS) + len(SCRATCH)
    used = {int(n) for n in re.findall(r"\[resample_kernel_param_(\d+)\]", ptx)}
    assert used == set(range(total - len(SCRATCH)))


def test_torch_is_not_needed(tmp_path: Path):
    """In a fresh process, in which torch cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from scanside.kernels.ahead_of_time import compile_kernels\n"
        "from scanside.kernels.variants import Variant\n"
        f"compile_kernels({str(tmp_path)!r}, [Variant('int16', 'float16')], [90])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert CompiledKernels.open(tmp_path).targets == ("sm_90", "ptx")


def test_the_same_source_gives_the_same_bytes(compiled: Path, tmp_path: Path):
    some = VARIANTS[3]
    again = compile_kernels(tmp_path, [some], [86])
    expected, found = (
        CompiledKernels.open(folder).image(some, "sm_86") for folder in (compiled, again)
    )
    assert found == expected


def test_compiled_kernels_are_kept_for_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: list[Path] = []

    def compile_one(folder: Path) -> Path:
        made.append(folder)
        return compile_kernels(folder, VARIANTS[:1], [90])

    monkeypatch.setattr("scanside.kernels.ahead_of_time.compile_kernels", compile_one)
    first, second = cached_kernels(tmp_path), cached_kernels(tmp_path)
    assert first == second
    assert len(made) == 1
    assert CompiledKernels.open(first).check() == 2
    assert list((tmp_path / "kernels").iterdir()) == [first]


def test_the_assemblers_complaint_is_shown():
    with pytest.raises(RuntimeError, match="ptxas refused .* sm_90: .*Missing .version"):
        assemble("no such instruction", "sm_90")


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((8, 0), "sm_80"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((11, 0), "ptx"),
        ((12, 1), "sm_120"),
        ((13, 0), "ptx"),
    ],
)
def test_a_device_gets_the_newest_code_of_its_own_generation(
    compiled: Path, capability: tuple[int, int], target: str
):
    assert CompiledKernels.open(compiled).target(*capability) == target


def test_a_device_without_code_is_refused_in_a_sentence(compiled: Path):
    with pytest.raises(ValueError, match=r"code for sm_80, .*, ptx, none of which runs on .* 7\.5"):
        CompiledKernels.open(compiled).target(7, 5)


def edit(folder: Path, change: str, value: object) -> None:
    document = json.loads((folder / "kernels.json").read_text())
    document[change] = value
    (folder / "kernels.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("contract", 2),
        ("block", 512),
        ("arguments", [{"name": "volumes_ptr", "type": "i32*", "count": 1}]),
        ("scratch_pointers", ["global_scratch"]),
    ],
)
def test_a_changed_contract_is_refused(folder: Path, key: str, value: object):
    edit(folder, key, value)
    with pytest.raises(ValueError, match=f"another launch contract: its {key} differ"):
        CompiledKernels.open(folder)


def test_a_kernel_that_needs_scratch_memory_is_refused(folder: Path):
    document = json.loads((folder / "kernels.json").read_text())
    document["variants"]["int16_to_float32"]["scratch_bytes"]["global_scratch"] = 128
    edit(folder, "variants", document["variants"])
    with pytest.raises(ValueError, match="int16_to_float32 needs scratch memory"):
        CompiledKernels.open(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"images": {}}'])
def test_a_description_of_something_else_is_refused(folder: Path, text: str):
    (folder / "kernels.json").write_text(text)
    with pytest.raises(ValueError, match="does not describe kernels"):
        CompiledKernels.open(folder)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda d: d["variants"]["int16_to_float32"].pop("symbol"), "'symbol'"),
        (lambda d: d["variants"]["int16_to_float32"].update(warps=0), "cannot be launched"),
        (lambda d: d["variants"]["int16_to_float32"].update(tokens="float16"), "not what it says"),
        (lambda d: d["variants"].pop("int16_to_float32"), "sm_80 does not hold the variants"),
        (lambda d: d["images"]["ptx"].pop("capability"), "'capability'"),
        (lambda d: d["images"].update(gfx90=d["images"]["sm_90"]), "gfx90 is no architecture"),
        (lambda d: d.update(variants=3), "has no attribute 'items'"),
    ],
)
def test_a_contract_that_lacks_a_part_is_refused(folder: Path, damage: Any, sentence: str):
    document = json.loads((folder / "kernels.json").read_text())
    damage(document)
    (folder / "kernels.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"lacks a part of the launch contract.*{sentence}"):
        CompiledKernels.open(folder)


def test_a_variant_that_was_not_compiled_is_refused_by_name(tmp_path: Path):
    some = compile_kernels(tmp_path, [Variant("int16", "float32")], [90])
    with pytest.raises(
        ValueError, match=r"has no kernel float32_to_float16.*; it has int16_to_flo"
    ):
        CompiledKernels.open(some).image(Variant("float32", "float16"), "sm_90")


def test_a_damaged_description_and_a_missing_one(folder: Path):
    (folder / "kernels.json").write_text("{")
    with pytest.raises(ValueError, match=r"kernels.json is not JSON"):
        CompiledKernels.open(folder)
    (folder / "kernels.json").unlink()
    with pytest.raises(ValueError, match="'kernels' must be a folder with kernels.json"):
        CompiledKernels.open(folder)


def test_other_code_under_the_same_name_is_refused(folder: Path):
    (folder / "sm_89.tar.xz").write_bytes((folder / "sm_86.tar.xz").read_bytes())
    with pytest.raises(ValueError, match="int16_to_float32 is not the code that kernels.json"):
        CompiledKernels.open(folder).image(Variant("int16", "float32"), "sm_89")


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_archive_is_refused(folder: Path, content: bytes | None):
    path = folder / "sm_90.tar.xz"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sm_90.tar.xz holds no readable int16_to_float32"):
        CompiledKernels.open(folder).image(Variant("int16", "float32"), "sm_90")
