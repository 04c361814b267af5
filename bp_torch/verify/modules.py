"""A module whose parameters and buffers are other tensors for the time of a check."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def lent(module: nn.Module, names: Sequence[str]) -> Iterator[tuple[Callable[..., Any], list[str]]]:
    """The module as a function of its inputs and of the parameters called ``names``; it is itself again afterwards.

    They stay in it when the call is over, as a backward that computes the forward again needs them. Also yields a list:
    when all is done, the classes of the modules in it with a method ``backward`` that was never called.
    """
    known = {id(t): name for name, t in [*module.named_parameters(), *module.named_buffers()]}
    owners = [(m, kind) for m in module.modules() for kind in (m._parameters, m._buffers)]
    slots = [(m, kind, key, t) for m, kind in owners for key, t in kind.items() if t is not None]
    stray = [m for m in module.modules() if callable(getattr(type(m), "backward", None))]
    uncalled = [type(m).__name__ for m in stray]

    def put(m: nn.Module, kind: dict[str, Any], key: str, t: Tensor) -> None:
        kind[key] = t
        if isinstance(m, nn.RNNBase) and key in m._flat_weights_names:  # it has the same in a list
            m._flat_weights[m._flat_weights_names.index(key)] = t

    def function(*arguments: Any) -> Any:
        split = len(arguments) - len(names)
        given = dict(zip(names, arguments[split:], strict=True))
        like = next(t for t in arguments if isinstance(t, Tensor) and t.is_floating_point())
        others = dict[int, Tensor]()  # a tensor in two places stays one
        for m, kind, key, t in slots:
            if known[id(t)] not in given and id(t) not in others:
                others[id(t)] = t.detach().to(like.device, like.dtype if t.is_floating_point() else None, copy=True)
            put(m, kind, key, given[known[id(t)]] if known[id(t)] in given else others[id(t)])
        return module(*arguments[:split])

    def noted(m: nn.Module) -> Callable[..., Any]:
        own: Any = m.backward

        def backward(*arguments: Any, **named: Any) -> Any:
            if type(m).__name__ in uncalled:
                uncalled.remove(type(m).__name__)
            return own(*arguments, **named)

        return backward

    try:
        for m in stray:
            m.__dict__["backward"] = noted(m)
        yield function, uncalled
    finally:
        for m in stray:
            m.__dict__.pop("backward", None)
        for slot in slots:
            put(*slot)
