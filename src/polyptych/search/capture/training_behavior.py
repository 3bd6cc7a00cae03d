"""How a network's training differs from a graph of its evaluation, found by running it rather than reading its code.

The graph is traced in evaluation mode. Layers are its nodes and keep their own code, but the functions that an opened
module calls itself are frozen in evaluation mode. So :func:`watch` runs the network in each mode and records every
function that an opened module calls. If the two lists differ, the module must stay whole: functional dropout, batch
norm, or stochastic depth, random numbers, another branch. A graph has no custom backward either: modules whose
gradients come from a ``torch.autograd.Function`` or from hooks stay whole if the gradients differ.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from polyptych.search.capture.node_values import tensors_in

DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
MODE = "it does otherwise in training, by code of its own"
SWITCHES = "it sets the mode of its layers itself"
GRADIENTS = "it does otherwise where gradients are computed, by code of its own"
DRAWS = "it draws random numbers by code of its own"
BACKWARD = "its gradients are those of a function of its own (torch.autograd.Function)"
HOOKS = "hooks change its gradients"


class Watch(TorchFunctionMode):
    """Watches a run of a network.

    Attributes:
        called: for every opened module, the functions that its own code calls, with their arguments.
        drawing: opened modules whose own code draws random numbers.
        switching: opened modules whose own code changes between training and evaluation (``self.norm.eval()``).
        own_backward: opened modules that run a function with its own backward.
        hooked: opened modules that register hooks on tensors.
    """

    def __init__(self, root: nn.Module, opened: Collection[str], training: bool):
        super().__init__()
        self.training = training
        self.paths = {id(module): path for path, module in root.named_modules()}
        self.tensors = {id(tensor): name for name, tensor in (*root.named_parameters(), *root.named_buffers())}
        self.opened = set(opened) | {""}
        self.called: dict[str, list[Any]] = {path: [] for path in self.opened}
        self.drawing, self.switching, self.own_backward, self.hooked = set[str](), set[str](), set[str](), set[str]()
        self._modules = tuple(root.modules())
        self._stack: list[str | None] = []  # None: within a layer
        self._seen: set[Any] = set()  # autograd nodes; kept alive, because torch would make new objects for lost ones
        self._state, self._modes = _random_state(), [module.training for module in self._modules]

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watch all calls of modules inside the context."""
        original = nn.Module.__call__
        watch = self

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return watch._call(lambda: original(module, *args, **kwargs), module)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            with self:
                yield self
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    def _call(self, run: Callable[[], Any], module: nn.Module) -> Any:
        self._note_state()
        path = self.paths.get(id(module))
        inside = bool(self._stack) and self._stack[-1] is None
        self._stack.append(None if inside or path not in self.opened else path)
        try:
            result = run()
            self._note_state()
            self._note_backward(result)
        finally:
            self._stack.pop()
        return result

    def _note_state(self) -> None:
        """Attribute changes since the last look to the running module."""
        if not self.training:
            return
        with torch._C.DisableTorchFunction():  # reading the state is not a call of the network
            state, modes = _random_state(), [module.training for module in self._modules]
        if self._stack and self._stack[-1] is not None:
            if state != self._state:
                self.drawing.add(self._stack[-1])
            if modes != self._modes:
                self.switching.add(self._stack[-1])
        self._state, self._modes = state, modes

    def _note_backward(self, result: Any) -> None:
        """Attribute new autograd functions behind a result to the module that returned it."""
        waiting = [tensor.grad_fn for tensor in tensors_in(getattr(result, "maps", result))]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._seen:
                continue
            self._seen.add(node)
            if isinstance(node, BackwardCFunction) and self._stack[-1] is not None:
                self.own_backward.add(self._stack[-1])
            waiting += [below for below, _ in node.next_functions]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        path = self._stack[-1] if self._stack else None
        if path is not None:
            name = getattr(function, "__name__", str(function))
            if name in ("register_hook", "register_post_accumulate_grad_hook"):
                self.hooked.add(path)
            if name not in ("__get__", "__set__", *HARMLESS):
                self.called[path].append((name, *map(self._sign, _plain_dropout(name, args, kwargs))))
        return function(*args, **kwargs)

    def _sign(self, value: Any) -> Any:
        """The comparable part of an argument: what stays the same between two runs."""
        if isinstance(value, Tensor):
            return self.tensors.get(id(value), (tuple(value.shape), value.dtype))
        if isinstance(value, list | tuple):
            return tuple(map(self._sign, value))
        if isinstance(value, Mapping):
            return tuple((key, self._sign(part)) for key, part in value.items())
        return value if isinstance(value, bool | int | float | str | None) else type(value).__name__


HARMLESS = {"dim", "size", "numel", "is_floating_point", "is_contiguous", "contiguous", "clone"}


def _plain_dropout(name: str, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Dropout at a rate of zero is the same in both modes."""
    if name in DROPOUTS and not (args[1] if len(args) > 1 else kwargs.get("p", 0.5)):
        return args[:1]
    return args, kwargs


def _random_state() -> Any:
    array: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), array[1].tobytes(), array[2]


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Use the same random numbers each time inside the context, and restore the previous random state afterward."""
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def watch(root: nn.Module, opened: Collection[str], image: Tensor, training: bool, gradients: bool = True) -> Watch:
    """Run a network in its current mode, and watch its opened modules."""
    found = Watch(root, opened, training)
    with torch.set_grad_enabled(gradients), found.watching():
        root(image)
    return found


def gradients(run: Callable[[Tensor], list[Tensor]], root: nn.Module, image: Tensor) -> list[Tensor | None]:
    """Gradients, with respect to the image and all parameters, of a sum that weights every element of the result
    differently."""
    image = image.clone().requires_grad_()
    parameters = [p for p in root.parameters() if p.requires_grad]
    with torch.enable_grad():
        outputs = [x for x in run(image) if x.requires_grad and x.is_floating_point()]
        if not outputs:
            return []
        generator = torch.Generator().manual_seed(0)
        loss = sum((x.double() * torch.rand(x.shape, generator=generator).to(x.device)).sum() for x in outputs)
        return list(torch.autograd.grad(loss, [image, *parameters], allow_unused=True))  # type: ignore[arg-type]


def agree(one: list[Tensor | None], other: list[Tensor | None]) -> bool:
    """Whether gradients are equal up to the order of sums. A different backward is off by a factor or a sign."""
    def size(x: Tensor | None) -> float:
        return 0.0 if x is None else float(x.norm())

    largest = max((size(x) for x in (*one, *other)), default=0.0)
    for x, y in zip(one, other, strict=True):
        away = size(x) if y is None else size(y) if x is None else float((x - y).norm())
        if not away <= 0.02 * max(size(x), size(y)) + 1e-6 * largest:
            return not (largest < float("inf"))  # what is not finite cannot be compared
    return True


def hooked_modules(modules: Mapping[str, nn.Module]) -> set[str]:
    """The modules whose gradients hooks may change."""
    return {path for path, module in modules.items() if module._backward_hooks or module._backward_pre_hooks}
