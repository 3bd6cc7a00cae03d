"""A network as one graph: image bytes in, a raw prediction for every task out; normalization and padding are inside."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from polyptych.networks import Network
from polyptych.tasks._base import resize

INPUT = "image"
Size = tuple[int, int]


class Graph(nn.Module):
    """A network with outputs in the order of the tasks, without a branch on the size of the image.

    It computes the same as :class:`polyptych.networks.Network` in evaluation. Rows and columns are repeated by
    indexing, which equals padding with border values and needs no branch if there is nothing to pad.
    """

    def __init__(self, network: Network, tasks: tuple[str, ...], size: Size | None):
        super().__init__()
        self.network, self.tasks, self.size = network, tasks, size

    def forward(self, image: UInt8[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b _ h w"], ...]:
        network, multiple = self.network, self.network.encoder.multiple
        if self.size is not None:
            final = network(image).final
            return tuple(final[task].float() for task in self.tasks)
        height, width = image.shape[-2:]
        rows, columns = ((side + multiple - 1) // multiple * multiple for side in (height, width))
        padded = image if multiple == 1 else image.index_select(2, _repeated(height, rows, image)).index_select(
            3, _repeated(width, columns, image))
        final = network.decoder(network.encoder(network.normalize(padded))).final
        return tuple((final[task] if task in network.whole else resize(final[task], (rows, columns))[
            ..., :height, :width]).float() for task in self.tasks)


def _repeated(size: int | torch.SymInt, padded: int | torch.SymInt, image: Tensor) -> Tensor:
    return torch.arange(padded, device=image.device).clamp(max=size - 1)


def capture(graph: Graph) -> torch.export.ExportedProgram:
    """Capture the graph for any batch size, and for any image size unless the graph has a fixed one."""
    multiple = graph.network.encoder.multiple
    height, width = graph.size or (3 * multiple + 1 if multiple > 1 else 67, 4 * multiple + 3 if multiple > 1 else 93)
    dimensions = {0: torch.export.Dim.DYNAMIC}
    if graph.size is None:
        dimensions |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    example = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    with quiet(), torch.no_grad():
        program = torch.export.export(graph.eval(), (example,), dynamic_shapes=(dimensions,), strict=False,
                                      prefer_deferred_runtime_asserts_over_guards=True)
    if graph.size is None:
        _drop_assertions(program)
    return program


def _drop_assertions(program: torch.export.ExportedProgram) -> None:
    """Remove the tracer's assertions about sizes. Most concern memory strides (an operation that is a view at one size
    and a copy at another), on which no result depends; the comparison with the eager network at several sizes would
    reveal any that matters."""
    nodes = program.graph.nodes
    for node in [node for node in nodes if node.target is torch.ops.aten._assert_scalar.default]:
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    for symbol in program.range_constraints:  # also of strides: "at least 65", because a map had more than one row
        program.range_constraints[symbol] = ValueRanges(1, int_oo)


def write_onnx(program: torch.export.ExportedProgram, tasks: tuple[str, ...], path: Path,
               metadata: dict[str, str]) -> None:
    """Write the program as one ONNX file, with named input, outputs and dimensions."""
    import onnx

    names = ["output_" + task for task in tasks]  # a node may already have the name of a task
    with quiet():
        exported = torch.onnx.export(program, input_names=[INPUT], output_names=names, dynamo=True, verbose=False,
                                     optimize=True)
    assert exported is not None
    model = exported.model_proto
    rename(model, dict(zip(names, tasks, strict=True)))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(b"")
    onnx.save(model, str(path))


def rename(model, names: dict[str, str]) -> None:
    """Rename the outputs of a graph after the tasks. Duplicate outputs, and names in use, get an Identity node."""
    import onnx

    graph = model.graph
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    used |= {tensor.name for tensor in graph.initializer} | {INPUT}
    taken = {new for new in names.values() if new in used - set(names)}
    aside = {name: f"inner_{name}" for name in taken if name != INPUT}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = aside.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = aside.get(name, name)
    for tensor in graph.initializer:
        tensor.name = aside.get(tensor.name, tensor.name)
    for info in graph.value_info:
        info.name = aside.get(info.name, info.name)
    for output, new in zip(graph.output, names.values(), strict=True):
        graph.node.append(onnx.helper.make_node("Identity", [output.name], [new], name=f"output_of_{new}"))
        output.name = new


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context that suppresses the output and logs of the exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
