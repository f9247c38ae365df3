"""The graphs of a bundle: encoder, prompt text encoder, U-Net step, VAE or tiny decoder.

All are written by `torch.onnx.export(dynamo=True)`, also the two that optimum knows. Optimum's
exporter gives a text encoder with a pooled output that nobody reads, a VAE without its scaling
factor, dynamic axes and the older tracing path; every one of these would have to be undone, and a
wrapper of five lines gives the contract directly. Opset 20: native Gelu, and attention in the parts
that every backend accepts in float32. Shapes are static.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from .cross_attention import projections, take_keys_values
from .half_weights import halve_weights
from .norm_outputs import split_norm_outputs
from .time_table import take_time_embedding

OPSET = 20
_SINGLE_FILE_BYTES = 1_800_000_000  # protobuf ends at 2 GiB


class PromptEncoder(nn.Module):
    """The diffusion model's text encoder, as the pipeline calls it (no mask, last hidden state),
    and what the U-Net's cross-attentions make of its states."""

    def __init__(self, model: Any, unet: Any) -> None:
        super().__init__()
        self.model = model
        self.projections = nn.ModuleList(projections(unet))

    def forward(self, input_ids: Tensor) -> Tensor:
        """(1, L) int64 -> (1, L, W) float32, keys and values of every layer."""
        states = self.model(input_ids)[0]
        return torch.cat([project(states) for project in self.projections], dim=-1)


class UNetStep(nn.Module):
    """One evaluation of the U-Net; what is done with its output stands in the schedule tables.

    Changes the model in place: its cross-attentions take keys and values from the prompt encoder,
    and time comes as a row of `time_table`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        take_keys_values(model)
        take_time_embedding(model)
        self.model = model

    def forward(self, sample: Tensor, time: Tensor, states: Tensor, class_labels: Tensor) -> Tensor:
        """(B, 4, h, w), (1, E), (B, L, W), (B, 2 D) float32 -> (B, 4, h, w) float32; B is 2 with
        guidance."""
        return self.model(
            sample,
            time,
            encoder_hidden_states=states,
            class_labels=class_labels,
            return_dict=False,
        )[0]


class VAEDecoder(nn.Module):
    """Latent in the diffusion model's units -> picture; divides by the scaling factor inside.

    Takes an AutoencoderKL, or an AutoencoderTiny (TAESD), whose scaling factor is 1.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: Tensor) -> Tensor:
        """(1, 4, h, w) float32 -> (1, 3, H, W) float32, nominally in [-1, 1]."""
        return self.model.decode(latent / self.model.config.scaling_factor, return_dict=False)[0]


def export_graph(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path
) -> Path:
    """Write one module as a static float32 ONNX graph, weights in half the bytes where exact.

    Parameters
    ----------
    module : nn.Module
        Called with `inputs` by position; computes in float32.
    inputs : mapping of str to Tensor
        Example inputs; their names, shapes and types become the graph's.
    outputs : sequence of str
        Names of the outputs, in order.
    path : Path
        The `.onnx` file. Weights beyond what protobuf can hold go to `<path>.data` beside it.

    Returns
    -------
    path : Path
    """
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns about torchvision's absence and about its own deprecated calls.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns a program")
    model = program.model
    _strip(model)
    split_norm_outputs(model)
    halve_weights(model)
    return save_graph(model, path)


def save_graph(model: ir.Model, path: Path) -> Path:
    """Write a graph; weights beyond what protobuf can hold go to `<path>.data` beside it."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    external = f"{path.name}.data" if size > _SINGLE_FILE_BYTES else None
    ir.save(model, path, external_data=external)
    return path


def _strip(model: ir.Model) -> None:
    """Drop the exporter's notes: they hold stack traces with paths of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values.extend(node.outputs)
    for value in values:
        value.metadata_props.clear()
