"""The kernels in PTX are taken by the assembler of every architecture that the driver may have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scanside.runtime.engines import arithmetic, pixels

triton_nvidia = pytest.importorskip("triton.backends.nvidia", reason="brings ptxas")
PTXAS = Path(triton_nvidia.__path__[0]) / "bin" / "ptxas"


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_90", "sm_120"])
@pytest.mark.parametrize("text", [arithmetic.PTX, pixels.PTX], ids=["arithmetic", "pixels"])
def test_a_text_is_assembled(tmp_path: Path, text: str, target: str) -> None:
    source = tmp_path / "kernels.ptx"
    source.write_text(text)
    command = [PTXAS, f"-arch={target}", "-v", source, "-o", tmp_path / "kernels.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "spill stores" in done.stderr
    assert done.stderr.count(" 0 bytes spill stores, 0 bytes spill loads") == text.count(".entry")
