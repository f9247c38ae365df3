"""The language stage of an export: the file that `--quantize` asks for, and what is known of it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

from scanside.export.quantize import MATRIX_TYPES
from scanside.export.stages import StageReports, projector_sha256, write_language
from scanside.export.torch_chain import TorchChain
from scanside.runtime.llama import LlamaModel


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q5_k_m", "q4_k_m"])
def test_every_quantization_is_exported_as_it_is_named(
    name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    chain = TorchChain.open(tiny_checkpoint)
    reports = StageReports(language={"projector_sha256": projector_sha256(chain)})
    prefix = np.random.default_rng(0).standard_normal((1, 12, 256), np.float32)
    texts = write_language(chain, tmp_path, prefix, name, reports)
    path = tmp_path / "language.gguf"
    assert list(tmp_path.iterdir()) == [path]
    tensors = gguf.GGUFReader(path).tensors
    matrices = {t.tensor_type.name for t in tensors if len(t.shape) == 2}
    assert matrices == MATRIX_TYPES[name]
    assert {t.tensor_type.name for t in tensors if len(t.shape) == 1} == {"F32"}
    with closing(LlamaModel(path)) as model:
        assert model.metadata("scanside.projector_sha256") == projector_sha256(chain)
        seen = model.metadata("scanside.importance_tokens")
    # the prefix, three instructions, and the answers to them
    assert seen is None if name == "q8_0" else int(seen or 0) > 12 + 3 * 20
    assert set(texts) == {"caption", "prompt"}
    assert reports.language["quantization"] == reports.precision["language.gguf"] == name
    assert 0 < reports.parity["language"].relative < 0.6
