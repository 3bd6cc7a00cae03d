"""An accelerator that is not there: what a real one would refuse or make the host wait for, found on the CPU.

    with Pretended("cuda", devices=2) as machine:
        network.to("cuda:1")                      # tensors say that they are on cuda:1; the arithmetic is the CPU's
        machine.waits.clear(); step(); machine.waits    # {(what, "file.py:function"): how often}

Every storage carries the device that it pretends to be on. A function mode answers what Python asks (``.device``,
``.to``, factories, ``.numpy()``); a dispatch mode sees every operator, those of backward passes too, and raises where
the device would: tensors of two devices in one operator (but for 0-dim numbers of the host), ``.numpy()`` without
``.cpu()``, a generator of another device, float64 where the kind has none. Each device draws from a state of its own.

Not modeled: kernels of torch that a device lacks (of torchvision's it is known), streams, memory, the lists of its
autocast.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
ANYWHERE = torch.device("meta")  # made inside an operator of the device: goes with everything
WITHOUT_FLOAT64 = {"mps"}

# Operators whose result the host must see: a size, a number, an error.
WAITING = {"nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "bincount", "is_nonzero", "equal",
           "unique_consecutive", "_local_scalar_dense", "item", "_linalg_check_errors", "histc", "_linalg_solve_ex",
           "_linalg_eigh", "_linalg_svd"}
RANDOM = {"native_dropout", "bernoulli", "bernoulli_", "rand", "randn", "randint", "normal_", "uniform_", "rand_like",
          "randn_like", "multinomial", "randperm", "random_", "dropout", "rrelu_with_noise", "normal", "exponential_"}
# Not pointwise by their tag, and still content with a 0-dim number of the host.
LENIENT = {"masked_fill", "masked_fill_", "fill_", "where", "_fused_adamw_", "_amp_update_scale_", "isin",
           "searchsorted", "bucketize", "div", "mul", "add", "sub", "lerp", "copysign", "index_fill", "scatter"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


def where_called(inside: str) -> str:
    """The innermost function of our own: lines move, functions stay."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if inside in code.co_filename:
            return f"{code.co_filename.partition(inside)[2].lstrip('/')}:{code.co_name}"
        frame = frame.f_back
    return "torch"


class _Any(type(torch.Generator)):
    """Modules that are imported meanwhile keep the class in their hints: any generator must be one for them later."""

    def __instancecheck__(cls, other: object) -> bool:
        return isinstance(other, torch._C.Generator)


class Generator(torch.Generator, metaclass=_Any):
    """One that says where it is."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls, device="cpu")
        self.pretended = torch.device(device)
        return self

    def __init__(self, device: Any = "cpu"):
        pass

    @property
    def device(self) -> torch.device:
        return self.pretended


class Pretended:
    """A machine with accelerators of one kind.

    Attributes:
        current: the device that ``torch.device(kind)`` means.
        waits: what the host waited for, and in which of our functions.
        doubles: where float64 came to be on a device.
        started: calls that would have started the accelerator's runtime.
    """

    def __init__(self, kind: str = "cuda", devices: int = 2, inside: str = "/polyptych/"):
        self.kind, self.number, self.inside, self.current = kind, devices, inside, 0
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.doubles: collections.Counter[str] = collections.Counter()
        self.started: list[str] = []
        self.generators = [torch.Generator().manual_seed(k) for k in range(devices)]
        self.calls: list[tuple[torch.device | None, bool]] = []  # factories in progress: their device, any tensor there
        self._places: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self._function, self._dispatch = _Function(self), _Dispatch(self)

    # -- where things are ----------------------------------------------------------------------------------------

    def of(self, tensor: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
                return tensor.device
            storage = tensor.untyped_storage()
            place = self._places.get(storage._cdata)
            if place is None:
                return CPU
            if place[0].expired():  # of a storage that is gone; its address was given away again
                del self._places[storage._cdata]
                return CPU
        return place[1]

    def put(self, tensor: Tensor, device: torch.device) -> None:
        with torch._C.DisableTorchFunction():
            if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
                return
            storage = tensor.untyped_storage()
            if device == CPU:
                self._places.pop(storage._cdata, None)
                return
            self._places[storage._cdata] = StorageWeakRef(storage), device
            double = tensor.dtype == torch.float64
        if double and device.type == self.kind:
            self.doubles[where_called(self.inside)] += 1
            if self.kind in WITHOUT_FLOAT64:
                raise TypeError(f"Cannot convert a {self.kind.upper()} Tensor to float64 dtype as the "
                                f"{self.kind.upper()} framework doesn't support float64")
        if len(self._places) % 4096 == 0:
            self._places = {key: value for key, value in self._places.items() if not value[0].expired()}

    def resolve(self, device: Any) -> torch.device:
        device = torch.device(self.kind, device) if isinstance(device, int) else torch.device(device)
        if device.type == self.kind and device.index is None:
            device = torch.device(self.kind, self.current)
        if device.type == self.kind and device.index >= self.number:
            raise RuntimeError(f"{self.kind} error: invalid device ordinal {device.index}")
        if device.type not in ("cpu", "meta", self.kind):
            raise RuntimeError(f"no {device.type} in this machine")
        return device

    def is_there(self, device: torch.device) -> bool:
        return device.type == self.kind

    def wait(self, what: str) -> None:
        self.waits[what, where_called(self.inside)] += 1

    def move(self, x: Tensor, device: torch.device, blocking: bool, **how: Any) -> Tensor:
        before = self.of(x)
        if device == before:
            return x.to(**how) if how else x
        if device == CPU:
            self.wait("device to host")  # without blocking it would be read before it is there
        elif before == CPU and blocking:
            self.wait("blocking host to device")
        how.pop("copy", None)
        if x.requires_grad and torch.is_grad_enabled():
            return _Move.apply(x, self, device, how)
        y = x.detach().to(copy=True, **how)
        self.put(y, device)
        return y

    # -- entering ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Pretended:
        self._stack = contextlib.ExitStack()
        self._patch_runtime()
        self._patch_torch()
        self._stack.enter_context(self._dispatch)
        self._stack.enter_context(self._function)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _patch(self, where: Any, **values: Any) -> None:
        for name, value in values.items():
            self._stack.enter_context(mock.patch.object(where, name, value, create=True))

    def _starts(self, name: str, answer: Any) -> Any:
        """A function that starts the runtime of the device before it answers."""
        def call(*args: Any, **kwargs: Any) -> Any:
            self.started.append(f"{name} from {where_called(self.inside)}")
            return answer(*args, **kwargs)
        return call

    def _index(self, device: Any = None) -> int:
        return self.resolve(self.kind if device is None else device).index

    def _synchronize(self, device: Any = None) -> None:
        self.wait("synchronize")

    def _patch_runtime(self) -> None:
        starts, index = self._starts, self._index
        self._patch(
            torch.get_device_module(self.kind),
            is_available=lambda: True, device_count=lambda: self.number, is_current_stream_capturing=lambda: False,
            manual_seed_all=lambda seed: [g.manual_seed(seed) for g in self.generators] and None,
            current_device=starts("current_device", lambda: self.current),
            set_device=starts("set_device", lambda device: setattr(self, "current", index(device))),
            synchronize=starts("synchronize", self._synchronize),
            get_device_name=starts("get_device_name", lambda device=None: f"pretended {self.kind}"),
            get_device_properties=starts("get_device_properties", lambda device=None: SimpleNamespace(
                name=f"pretended {self.kind}", total_memory=2**34, major=9, minor=0)),
            get_rng_state=starts("get_rng_state", lambda device=None: self.generators[index(device)].get_state()),
            set_rng_state=starts("set_rng_state", lambda state, device=None:
                                 self.generators[index(device)].set_state(state) and None),
            reset_peak_memory_stats=starts("reset_peak_memory_stats", lambda device=None: None),
            memory_allocated=starts("memory_allocated", lambda device=None: 0),
            max_memory_allocated=starts("max_memory_allocated", lambda device=None: 1),
            device=lambda device: contextlib.nullcontext(), Event=_Event)
        self._patch(
            torch.accelerator,
            is_available=lambda *a, **k: True, current_accelerator=lambda *a, **k: torch.device(self.kind),
            device_count=lambda: self.number, current_stream=lambda *a, **k: _Event(),
            current_device_index=starts("current_device_index", lambda: self.current),
            set_device_index=starts("set_device_index", lambda device: setattr(self, "current", index(device))),
            synchronize=starts("synchronize", self._synchronize),
            reset_peak_memory_stats=lambda device=None: None, memory_allocated=lambda device=None: 0,
            max_memory_allocated=lambda device=None: 1)

    def _patch_torch(self) -> None:
        kinds = functools.partial(_of_the_cpu, self.kind)
        self._patch(torch, Generator=Generator, is_autocast_enabled=kinds(torch.is_autocast_enabled),
                    get_autocast_dtype=kinds(torch.get_autocast_dtype))
        self._patch(torch.amp, is_autocast_available=lambda kind: True)
        begin, kind = torch.amp.autocast_mode.autocast.__init__, self.kind

        def autocast(self: Any, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True,
                     cache_enabled: bool | None = None) -> None:
            if device_type == kind:
                device_type, dtype = "cpu", torch.float16 if dtype is None else dtype
            begin(self, device_type, dtype=dtype, enabled=enabled and dtype is not torch.float32,
                  cache_enabled=cache_enabled)

        self._patch(torch.amp.autocast_mode.autocast, __init__=autocast)
        group = torch._C._group_tensors_by_device_and_dtype

        def grouped(lists: Any, *args: Any) -> Any:
            """By the devices that tensors say they are on: clipping brings its coefficient there."""
            found = {}
            for (_, dtype), group_of in group(lists, *args).items():
                places = {self.of(x) for x in group_of[0][0] if x is not None}
                assert len(places) == 1, f"tensors of one group on {places}"
                found[places.pop(), dtype] = group_of
            return found

        self._patch(torch._C, _group_tensors_by_device_and_dtype=grouped)
        engine = torch.autograd._engine_run_backward

        def run(*args: Any, **kwargs: Any) -> Any:
            """Backward functions written in Python see the pretended devices too."""
            if torch._C._len_torch_function_stack():
                return engine(*args, **kwargs)
            with self._making(None, True), self._function:
                return engine(*args, **kwargs)

        self._patch(torch.autograd, _engine_run_backward=run)

    @contextlib.contextmanager
    def _making(self, device: torch.device | None, there: bool) -> Iterator[None]:
        self.calls.append((device, there))
        try:
            yield
        finally:
            self.calls.pop()


class _Event:
    """Of a stream, and the stream itself."""

    def __init__(self, **_: object):
        pass

    def record(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def is_capturing(self) -> bool:
        return False

    def elapsed_time(self, other: object) -> float:
        return 1.0


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, machine, device, how):
        ctx.machine, ctx.before, ctx.dtype = machine, machine.of(x), x.dtype
        y = x.detach().to(copy=True, **how)
        machine.put(y, device)
        return y

    @staticmethod
    def backward(ctx, gradient):
        y = gradient.detach().clone().to(ctx.dtype)
        ctx.machine.put(y, ctx.before)
        return y, None, None, None


def _of_the_cpu(kind: str, function: Any) -> Any:
    return lambda *args: function(*("cpu" if x == kind else x for x in args))


def _tensors(*values: Any) -> list[Tensor]:
    """Those among the arguments or results of an operator. (Lists are as deep as that goes; dictionaries are not looked
    into: ``copy.deepcopy`` hands over all that it has met.)"""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(*value)
    return found


class _Function(TorchFunctionMode):
    """What Python asks."""

    def __init__(self, machine: Pretended):
        super().__init__()
        self.machine = machine

    def __torch_function__(self, function, types, args=(), kwargs=None):
        machine, kwargs = self.machine, dict(kwargs or {})
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        if name == "__get__" and owner is not None:
            return self._attribute(function, getattr(owner, "__name__", ""), args, kwargs)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        here = machine.of(first) if first is not None else CPU
        if function is torch.Tensor.to:
            return self._to(first, args[1:], kwargs)
        if name in ("cpu", machine.kind) and first is not None:
            target = CPU if name == "cpu" else machine.resolve(args[1] if len(args) > 1 else machine.kind)
            return machine.move(first, target, not kwargs.get("non_blocking", False))
        if name == "pin_memory":
            if machine.is_there(here):
                raise RuntimeError("only dense CPU tensors can be pinned")
            return first
        if name == "get_device":
            return -1 if here == CPU else here.index
        if machine.is_there(here):
            self._note_waits(name, args, here)
            if name == "__deepcopy__":
                made = function(*args, **kwargs)
                machine.put(made, here)
                return made
        if name == "repeat_interleave" and machine.is_there(here) and isinstance(
                kwargs.get("repeats", args[1] if len(args) > 1 else None), Tensor):
            machine.wait("repeat_interleave by a tensor")
        return self._make(function, name, args, kwargs, here)

    def _attribute(self, function, attribute, args, kwargs):
        if attribute == "device":
            found = self.machine.of(args[0])
            return CPU if found == ANYWHERE else found
        if attribute in ("is_cpu", "is_cuda", "is_mps", "is_xpu"):
            return self.machine.of(args[0]).type == attribute.removeprefix("is_")
        return function(*args, **kwargs)

    def _note_waits(self, name, args, here) -> None:
        if name in ("numpy", "__array__"):
            raise TypeError(f"can't convert {here} device type tensor to numpy. Use Tensor.cpu() first")
        if name in ("tolist", "__reduce_ex__", "__contains__"):
            self.machine.wait(name)
        if name in ("__getitem__", "__setitem__"):
            for part in args[1] if isinstance(args[1], tuple) else (args[1],):
                if isinstance(part, list | range):
                    self.machine.wait(f"{name} with a list")

    def _make(self, function, name, args, kwargs, here):
        """A function that may be a factory."""
        machine, explicit = self.machine, None
        kwargs.pop("pin_memory", None)
        if kwargs.get("device") is not None:
            explicit = machine.resolve(kwargs["device"])
            if machine.is_there(explicit):
                kwargs["device"] = CPU
                if name in ("as_tensor", "asarray", "tensor") and args and isinstance(args[0], Tensor):
                    kwargs.pop("device")
                    return machine.move(function(*args, **kwargs).clone(), explicit, True)
                if name in ("tensor", "as_tensor", "new_tensor", "asarray"):
                    machine.wait(f"{name} on a device")
        elif name == "new_tensor" and machine.is_there(here):
            machine.wait("new_tensor on a device")
        generator = kwargs.get("generator")
        if hasattr(generator, "pretended") and generator.pretended.type != (explicit or here).type:
            raise RuntimeError(f"Expected a '{(explicit or here).type}' device type for generator but found "
                               f"'{generator.pretended.type}'")
        there = any(machine.is_there(machine.of(x)) for x in _tensors(args, list(kwargs.values())))
        with machine._making(explicit, there):
            made = function(*args, **kwargs)
        target = explicit or (here if name.startswith("new_") else None)
        if target is not None and isinstance(made, Tensor) and machine.is_there(target):
            machine.put(made, target)
        return made

    def _to(self, x, args, kwargs):
        machine = self.machine
        other = args[0] if args and isinstance(args[0], Tensor) else kwargs.pop("other", None)
        if other is not None:
            options = dict(zip(("non_blocking", "copy"), args[1:], strict=False)) | kwargs
            device, how = machine.of(other), {"dtype": other.dtype}
            blocking, copy = not options.get("non_blocking", False), options.get("copy", False)
        else:
            copy = kwargs.pop("copy", False)
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
            flags = [a for a in args if isinstance(a, bool)]  # non_blocking, copy
            copy, blocking = copy or (len(flags) > 1 and flags[1]), not non_blocking
            how = {k: v for k, v in (("dtype", dtype), ("memory_format", layout)) if v is not None}
            device = machine.of(x) if device is None else machine.resolve(device)
        if device.type == "meta":
            return x.to(**how) if other is not None else x.to(device="meta", **how)
        here = machine.of(x)
        if here not in (device, ANYWHERE):
            return machine.move(x, device, blocking, **how)
        with machine._making(here if here != CPU else None, machine.is_there(here)):
            return x.to(copy=copy, **how)


class _Dispatch(TorchDispatchMode):
    """What every operator does, in backward passes too."""

    def __init__(self, machine: Pretended):
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        machine, kwargs = self.machine, kwargs or {}
        name, given = function.overloadpacket.__name__, _tensors(args, list(kwargs.values()))
        devices = [machine.of(x) for x in given]
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)) if name == "copy_" else True
        device = self._device(function, name, given, devices, blocking)
        there = machine.is_there(device)
        if there and function.namespace == "torchvision" and not torch._C._dispatch_has_kernel_for_dispatch_key(
                f"torchvision::{name}", machine.kind.upper()):
            raise NotImplementedError(f"torchvision::{name} has no kernel for {machine.kind}")
        if there and (name in WAITING or (name.startswith("linalg_") and "norm" not in name)):
            machine.wait(name)
        elif there and name in INDEXING and any(x.dtype == torch.bool for x in given[1:]):
            machine.wait(f"{name} by a mask")
        with self._drawing(device) if there and name in RANDOM and kwargs.get("generator") is None \
                else contextlib.nullcontext():
            made = function(*args, **kwargs)
        if device != CPU:
            old = {self._storage(x) for x in given}
            for x in _tensors(made):
                if self._storage(x) not in old:
                    machine.put(x, device)
        return made

    def _storage(self, x: Tensor) -> int | None:
        with torch._C.DisableTorchFunction():
            return x.untyped_storage()._cdata if x.device.type == "cpu" and x.layout is torch.strided else None

    @contextlib.contextmanager
    def _drawing(self, device: torch.device) -> Iterator[None]:
        own, host = self.machine.generators[device.index], torch.random.default_generator
        with torch._C.DisableTorchFunction():
            before = host.get_state()
            host.set_state(own.get_state())
        try:
            yield
        finally:
            with torch._C.DisableTorchFunction():
                own.set_state(host.get_state())
                host.set_state(before)

    def _device(self, function, name, given, devices, blocking) -> torch.device:
        """Where the operator runs."""
        machine = self.machine
        if not given:
            explicit, inside = machine.calls[-1] if machine.calls else (None, False)
            return explicit or (ANYWHERE if inside else CPU)
        there = {d for d in devices if machine.is_there(d)}
        if name in ("copy_", "_foreach_copy_"):
            if len(set(devices) - {ANYWHERE}) > 1:
                if devices[0] == CPU:
                    machine.wait("device to host (copy_)")
                elif blocking:
                    machine.wait("blocking host to device (copy_)")
            return devices[0]
        if len(there) > 1 and name != "_to_copy":
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {sorted(map(str, there))} "
                               f"in {function}")
        if name in INDEXING:
            indices = [d for x, d in zip(given[1:], devices[1:], strict=True) if not x.is_floating_point()]
            if machine.is_there(devices[0]) and CPU in indices:
                machine.wait(f"{name} by a tensor of the host")
            if devices[0] == CPU and there:
                raise RuntimeError(f"indices should be on the same device as the indexed tensor (cpu) in {function}")
            return devices[0]
        if there and CPU in devices and "foreach" not in name:
            lenient = torch.Tag.pointwise in function.tags or name in LENIENT
            wrong = [tuple(x.shape) for x, d in zip(given, devices, strict=True)
                     if d == CPU and (x.ndim > 0 or not lenient)]
            if wrong:
                raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, "
                                   f"{next(iter(there))} and cpu (shapes {wrong}), in {function}")
        if there:
            return next(iter(there))
        return ANYWHERE if ANYWHERE in devices and CPU not in devices else CPU
