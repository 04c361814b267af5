"""A stand-in for a GPU: tensors on a device that is not the CPU, which hold their numbers here all the same.

Every operation is checked as a GPU would check it: tensors of two devices do not mix, and ``.numpy()`` of a tensor that
is elsewhere is an error. What makes the CPU wait for the device (``.item()``, ``.tolist()``, ``.cpu()``) is noted. The
device is called meta: torch lets it be used on any machine, and its own tensors, which hold nothing, do not occur.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("meta")
aten = torch.ops.aten


class There(Tensor):
    """A tensor on the device. ``here`` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        return Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:  # torch refuses it for subclasses
            return args[0].cpu().tolist()
        # In inference mode torch refuses a subclass a view of a tensor from outside it; a device's own tensors get one.
        makes_view = func in (Tensor.__getitem__, Tensor.view)
        leaves = makes_view and torch.is_inference_mode_enabled() and not args[0].is_inference()
        with torch.inference_mode(False) if leaves else nullcontext(), torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} was called while no Device was entered")


class Device(TorchDispatchMode):
    """While entered, there is the device.

    Attributes:
        waits: the operations so far for which the CPU waited for it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        with self:  # inference_mode leaves some functions whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [isinstance(tensor, There) for tensor in tensors if tensor.ndim or isinstance(tensor, There)]
        to = kwargs.pop("device", None)
        if func is aten.copy_.default:
            back = isinstance(args[1], There) and not isinstance(args[0], There)
        elif func is aten._to_copy.default:
            back = any(there) and to is not None and to.type == "cpu"
        elif len(set(there)) > 1:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        else:
            back = func is aten._local_scalar_dense.default and any(there)
        if back:
            self.waits.append(str(func))
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        here, options = tree_map_only(There, lambda tensor: tensor.here, (args, kwargs))
        result = func(*here, **options)
        if func is aten.copy_.default:
            return args[0]
        if not (any(there) if to is None else to.type == ELSEWHERE.type):
            return result
        return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, There, result))
