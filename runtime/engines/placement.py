"""Where ONNX Runtime put every node of a graph, and that it is where it was asked to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import DeviceError


def node_placement(assigned: Iterable[Any]) -> dict[str, Counter[str]]:
    """Operators by execution provider.

    Parameters
    ----------
    assigned : iterable of OrtEpAssignedSubgraph
        What `get_provider_graph_assignment_info` of a session gives, where the session was opened
        with session.record_ep_graph_assignment_info.

    Returns
    -------
    placed : dict
        Number of nodes of each operator, by provider.
    """
    placed: dict[str, Counter[str]] = {}
    for part in assigned:
        counts = placed.setdefault(str(part.ep_name), Counter())
        counts.update(str(node.op_type) for node in part.get_nodes())
    return placed


def check_placement(stage: str, placed: Mapping[str, Counter[str]], provider: str) -> int:
    """How many nodes run, all of them on one provider.

    Raises
    ------
    DeviceError
        A node that runs elsewhere, or no record of any node.
    """
    elsewhere = {name: operators for name, operators in placed.items() if name != provider}
    if elsewhere:
        listed = "; ".join(
            f"{name}: " + ", ".join(f"{op} x {n}" for op, n in sorted(operators.items()))
            for name, operators in sorted(elsewhere.items())
        )
        raise DeviceError(
            f"the {stage} graph was asked for on {provider}, but part of it would run elsewhere "
            f"({listed}); export the bundle again, or run {stage} on the CPU: '{stage}=cpu'"
        )
    count = sum(placed.get(provider, Counter()).values())
    if not count:
        raise DeviceError(
            f"ONNX Runtime does not say where it runs the {stage} graph, so it is not trusted to "
            f"be on {provider}; install the onnxruntime that pip install 'scanside[gpu]' brings"
        )
    return count
