"""A torch network as layer specifications, so that it can be written as a prototxt.

    layers = module_layers(timm.create_model("resnet34"), (3, 224, 224))
    text = to_text(layers, (3, 224, 224))

Layers have the names of the modules they come from, so that the weights of the network fit its description. Only what
:mod:`polyptych.backbones._caffe.layers` can express is written; the rest is refused by name, never approximated.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import fx, nn

from polyptych.backbones._caffe import layers as spec
from polyptych.backbones._caffe.layers import Layer, Pair
from polyptych.errors import InputError

ADDITIONS = (operator.add, operator.iadd, torch.add)
PRODUCTS = (operator.mul, operator.imul, torch.mul)
FUNCTIONS = (*ADDITIONS, *PRODUCTS, torch.cat, torch.flatten, F.relu, "flatten", "relu")


def module_layers(module: nn.Module, shape: Sequence[int], input: str = "data") -> list[Layer]:
    """The layers of a network for one image, found by torch.fx.

    Args:
        shape: shape of the image, (c, h, w).
        input: name of the image in the layers.

    Raises:
        InputError: something that no layer can express.
    """
    try:
        graph = _Tracer().trace(module.eval())
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError("the network", f"a forward pass that torch.fx cannot trace ({reason})",
                         "one without branches that depend on values", "use the network as a module") from None
    traced = fx.GraphModule(module, graph)
    fx.passes.shape_prop.ShapeProp(traced).propagate(torch.zeros(1, *shape))
    writer = _Writer(traced, input)
    for node in graph.nodes:
        writer.write(node)
    return writer.layers


class _Tracer(fx.Tracer):
    """Treats a fused normalization as one module, from which two layers are made."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, BatchNormAct2d) or super().is_leaf_module(module, name)


class _Writer:
    def __init__(self, traced: fx.GraphModule, input: str):
        self.modules, self.input = dict(traced.named_modules()), input
        self.tops: dict[fx.Node, str] = {}
        self.layers: list[Layer] = []

    def write(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.tops[node] = self.input
        elif node.op == "call_module":
            self.call(node, self.modules[str(node.target)])
        elif node.op in ("call_function", "call_method") and node.target in FUNCTIONS:
            self.function(node)
        elif node.op != "output":
            raise _strange(node, f"{node.op} of {node.target}")

    def call(self, node: fx.Node, module: nn.Module) -> None:
        """Write a module by its type; a module that only passes its input on makes no layer."""
        name, source = str(node.target), self.top(node.args[0])
        if any(layer.name == name for layer in self.layers):  # a module that is called again
            if any(True for _ in module.parameters()):
                raise _strange(node, "a module with weights that is called twice")
            name = f"{name}_{node.name}"
        if isinstance(module, (nn.Identity, nn.Dropout2d)) or (isinstance(module, nn.Dropout) and not module.p):
            self.tops[node] = source
            return
        if isinstance(module, BatchNormAct2d):
            source = self.add(spec.BatchNorm(name, bottom=source, **_norm(module)))
            for part, inner in (("drop", module.drop), ("act", module.act)):
                if not isinstance(inner, nn.Identity):
                    source = self.add(_simple(inner, f"{name}_{part}", source, node))
            self.tops[node] = source
            return
        self.tops[node] = self.add(_simple(module, name, source, node))

    def function(self, node: fx.Node) -> None:
        name, arguments = node.name, node.args
        if node.target in (*ADDITIONS, *PRODUCTS):
            tops = tuple(self.top(argument) for argument in arguments)
            shapes = [cast(fx.Node, argument).meta["tensor_meta"].shape for argument in arguments]
            if node.target in PRODUCTS and shapes[0] != shapes[1]:
                self.tops[node] = self.add(spec.Scale(name, bottom=tops))
            else:
                operation: Any = "SUM" if node.target in ADDITIONS else "PROD"
                self.tops[node] = self.add(spec.Eltwise(name, bottom=tops, operation=operation))
        elif node.target is torch.cat:
            axis = arguments[1] if len(arguments) > 1 else node.kwargs.get("dim", 0)
            sources = tuple(self.top(argument) for argument in cast("list[Any]", arguments[0]))
            self.tops[node] = self.add(spec.Concat(name, bottom=sources, axis=cast(int, axis)))
        elif node.target in (torch.flatten, "flatten"):
            axes = [*arguments[1:], *node.kwargs.values()]
            if axes not in ([1], [1, -1]):
                raise _strange(node, f"flatten over the axes {axes}")
            self.tops[node] = self.add(spec.Flatten(name, bottom=self.top(arguments[0])))
        else:
            self.tops[node] = self.add(spec.ReLU(name, bottom=self.top(arguments[0])))

    def add(self, layer: Layer) -> str:
        self.layers.append(layer)
        return layer.name

    def top(self, argument: Any) -> str:
        if not isinstance(argument, fx.Node):
            raise InputError("the network", f"the constant {argument}", "what layers make", "write it as a layer")
        return self.tops[argument]


def _simple(module: nn.Module, name: str, bottom: str, node: fx.Node) -> Layer:
    """A module that is one layer."""
    for kind, make in MODULES.items():
        if isinstance(module, kind):
            try:
                return make(name, bottom, module)
            except _NotSaid as error:
                raise _strange(node, f"{type(module).__name__} with {error}") from None
    raise _strange(node, f"a {type(module).__name__}")


class _NotSaid(Exception):
    """An option of a module that a layer has no field for."""


def _say(holds: bool, what: str) -> None:
    if not holds:
        raise _NotSaid(what)


def _sliding(name: str, bottom: str, module: Any) -> Layer:
    kind: Any = spec.Convolution if isinstance(module, nn.Conv2d) else spec.Deconvolution
    _say(module.padding_mode == "zeros", f"padding by {module.padding_mode}")
    _say(not isinstance(module.padding, str), f"padding '{module.padding}'")
    _say(max(getattr(module, "output_padding", (0,))) == 0, "output padding")
    return kind(name, bottom=bottom, num_output=module.out_channels, kernel_size=_pair(module.kernel_size),
                stride=_pair(module.stride), pad=_pair(module.padding), dilation=_pair(module.dilation),
                group=module.groups, bias_term=module.bias is not None)


def _norm(module: Any) -> dict[str, Any]:
    _say(module.momentum is not None, "a cumulative average")
    return {"eps": module.eps, "momentum": module.momentum, "affine": module.affine,
            "track_running_stats": module.track_running_stats}


def _pool(name: str, bottom: str, module: Any) -> Layer:
    maximum = isinstance(module, nn.MaxPool2d)
    _say(not maximum or module.dilation in (1, (1, 1)), "dilation")
    _say(maximum or (module.count_include_pad or not any(_both(module.padding))), "a mean that excludes the padding")
    _say(maximum or module.divisor_override is None, "a divisor of its own")
    return spec.Pooling(name, bottom=bottom, pool="MAX" if maximum else "AVE", kernel_size=_pair(module.kernel_size),
                        stride=_pair(module.stride), pad=_pair(module.padding),
                        round_mode="CEIL" if module.ceil_mode else "FLOOR")


def _global(name: str, bottom: str, module: Any) -> Layer:
    _say(module.output_size in (1, (1, 1)), f"output size {module.output_size}")
    return spec.Pooling(name, bottom=bottom, global_pooling=True,
                        pool="MAX" if isinstance(module, nn.AdaptiveMaxPool2d) else "AVE")


def _flatten(name: str, bottom: str, module: Any) -> Layer:
    return spec.Flatten(name, bottom=bottom, axis=module.start_dim, end_axis=module.end_dim)


MODULES: dict[type[nn.Module], Callable[[str, str, Any], Layer]] = {
    nn.Conv2d: _sliding,
    nn.ConvTranspose2d: _sliding,
    nn.BatchNorm2d: lambda name, bottom, module: spec.BatchNorm(name, bottom=bottom, **_norm(module)),
    nn.ReLU: lambda name, bottom, module: spec.ReLU(name, bottom=bottom),
    nn.LeakyReLU: lambda name, bottom, module: spec.ReLU(name, bottom=bottom, negative_slope=module.negative_slope),
    nn.Sigmoid: lambda name, bottom, module: spec.Sigmoid(name, bottom=bottom),
    nn.Dropout: lambda name, bottom, module: spec.Dropout(name, bottom=bottom, dropout_ratio=module.p),
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _global,
    nn.AdaptiveMaxPool2d: _global,
    nn.Flatten: _flatten,
    nn.Linear: lambda name, bottom, module: spec.InnerProduct(
        name, bottom=bottom, num_output=module.out_features, bias_term=module.bias is not None),
}
"""The first type that a module is an instance of determines its layer."""


def _pair(value: Any) -> Pair:
    height, width = _both(value)
    return height if height == width else (height, width)


def _both(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _strange(node: fx.Node, what: str) -> InputError:
    return InputError(f"'{node.target if node.op == 'call_module' else node.name}' of the network", what,
                      f"one of the layers {', '.join(spec.TYPES)}", "replace it, for instance by create_model(..., "
                      "act_layer=torch.nn.ReLU), or use the network as a module")
