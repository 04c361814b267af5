"""A candidate in a process of its own, with limits of time and memory; what is judged is the tensors that come back.

    candidate = Process("kernel.py:Attention", seconds=60, memory=8)
    verify.check_layer(candidate.forward, inputs, candidate.backward, reference=attention)

The candidate is imported there and nowhere else. Memory is mirrored: strides, writes into inputs and dy, and results
that a later call overwrites are seen as if it ran here. This is no sandbox: the process has the rights of its user, and
what it does with them is not watched.
"""

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from bp_torch.verify.worker import Channel

WINDOWS = os.name == "nt"
ROOT = str(Path(__file__).parents[2])
CODE = f"import sys; sys.path.append({ROOT!r}); from {__package__}.worker import main; main()"
STARTS_WITHIN = 120.0  # seconds, in which torch is imported
MOST_OUTPUT, LONGEST_LINE = 4000, 200  # bytes of what it prints that are kept, and of its last line that are told
WIDE = (torch.float64, torch.complex128)
STAGES = {"ready": "at its import", "load": "at its import", "gradients": "in the backward"}


class Died(BaseException):
    """The process ended, or was ended: no ``except Exception`` on the way goes on without it."""


class RaisedError(RuntimeError):
    """The candidate raised an exception."""


class Process:
    """The candidate ``place``, FILE:NAME or FILE:FORWARD,BACKWARD; ``as_functions`` says what it may be.

    ``forward`` calls it there, ``backward`` its backward; None if autograd goes through the forward. The forward of a
    module takes its ``parameters`` after the inputs. Each check (``renew``) may run for ``seconds``, with ``memory``
    GiB more than torch takes (on Linux).
    """

    def __init__(self, place: str, *, seconds: float = 60.0, memory: float = 8.0) -> None:
        """Start it. Raises Died, and RaisedError for what the import raises."""
        self.place, self.seconds, self.memory, self.death = place, seconds, memory, "is not started"
        self.renew()

    def renew(self) -> None:
        """Begin another check, with all of its time; if the process has died, in a new one."""
        self.left = self.seconds
        if not self.death:
            return
        self.death, self.late, self.calls, self.output = "", False, 0, bytearray()
        self.end, theirs = socket.socketpair()
        self.channel = Channel(self.end, 1)
        theirs.set_inheritable(True)
        # Windows takes no list of what is passed on: there the child has all that is inheritable, which is this socket.
        passed: dict[str, Any] = {"close_fds": False} if WINDOWS else {"pass_fds": [theirs.fileno()]}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", CODE, str(theirs.fileno()), str(self.memory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **passed,
        )
        theirs.close()
        weakref.finalize(self, _end, self.process)
        self.listener = threading.Thread(target=_listen, args=(self.process.stdout, self.output), daemon=True)
        self.listener.start()
        self.left = STARTS_WITHIN
        self.call("ready", torch.get_num_threads())
        self.left = self.seconds
        self.parameters, is_pair = self.call("load", self.place)
        self.left = self.seconds
        self.backward: Callable[..., Any] | None = functools.partial(self.call, "backward") if is_pair else None

    def close(self) -> None:
        """End it."""
        self.death = self.death or "is closed"
        _end(self.process)
        with suppress(OSError):
            self.end.close()
            self.channel.stream.close()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the candidate; where autograd is needed, as a step of it."""
        leaves, form = tree_flatten((args, kwargs))
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in leaves):
            return Remote.apply(self, form, *leaves)
        return self.call("forward", *args, **kwargs)

    def call(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """Let it do something. Raises Died, and RaisedError."""
        if self.death:
            raise Died(self.death)
        self.calls += 1
        stage = STAGES.get(what, f"in the {what}")
        place = stage if "import" in stage else f"{stage}, in call {self.calls - 2}"
        wide = any(isinstance(t, Tensor) and t.dtype in WIDE for t in tree_leaves((args, kwargs)))
        call = {"what": what, "args": args, "kwargs": kwargs, "number": self.calls, "wide": wide}
        call |= {"grad": torch.is_grad_enabled(), "random": torch.get_rng_state()}
        told, start = self.channel.told(call), time.monotonic()
        timer = threading.Timer(self.left, self._stop)
        timer.start()
        try:
            self.channel.send(told)
            answer = self.channel.receive(self.memory * 2**30)
            number, value, error = answer["number"], answer.get("value"), answer.get("error")
            if number != self.calls:
                raise ValueError("an answer to another call")
            for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
                if torch.finfo(dtype).eps == answer.get("eps"):
                    torch.zeros((), dtype=dtype).abs()  # it computed in this dtype: DtypesSeen is to see it here too
            if answer.get("drew"):
                torch.rand(())  # so that the next call begins elsewhere, and it is seen here
        except (EOFError, OSError):
            timer.cancel()
            self._die(f"{self._how_it_ended()} {place}")
        except Exception:  # whatever came
            self._die(f"sends what is no answer {place}")
        finally:
            timer.cancel()
            self.left = max(0.0, self.left - (time.monotonic() - start))
        if error is None:
            return value
        kind, text, is_memory = error
        if is_memory:
            self._die(f"wants more than {self.memory:g} GiB {place}", and_last_words=False)
        raise RaisedError(f"raises {kind} {stage}: {text}")

    def _stop(self) -> None:
        self.late = True
        _end(self.process)
        with suppress(OSError):
            self.end.shutdown(socket.SHUT_RDWR)  # what it has started may hold on to the other end

    def _how_it_ended(self) -> str:
        if self.late:
            return f"has not ended after {self.seconds:g} s"
        try:
            code = self.process.wait(2)
        except subprocess.TimeoutExpired:
            return "closes its connection"
        return f"is ended by a signal ({signal.strsignal(-code)})" if code < 0 else f"exits with code {code}"

    def _die(self, text: str, and_last_words: bool = True) -> NoReturn:
        self.close()
        self.listener.join(1.0)
        lines = [line.strip() for line in self.output.decode(errors="replace").splitlines() if line.strip()]
        last = [lines[-1][-LONGEST_LINE:]] if lines and and_last_words else []
        self.death = "; the last that it printed: ".join([text, *last])
        raise Died(self.death)


def _listen(pipe: Any, output: bytearray) -> None:
    with pipe:
        while chunk := pipe.read1(1 << 16):
            output += chunk
            del output[:-MOST_OUTPUT]


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says the second of a process that has ended
        if WINDOWS:
            process.kill()  # not what it has started
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Remote(torch.autograd.Function):
    """The forward there as a step of autograd here. Its way back leads through autograd there."""

    @staticmethod
    def forward(ctx: Any, process: Process, form: Any, *leaves: Any) -> Any:
        """Call the forward, and keep the number of its graph."""
        args, kwargs = tree_unflatten(list(leaves), form)
        with torch.enable_grad():
            outputs, inside = process.call("forward", *args, **kwargs)
        ctx.process, ctx.graph = process, process.calls
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[y for y, known in zip(outputs, inside, strict=True) if not known])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor | None) -> Any:
        """Call autograd there."""
        return None, None, *ctx.process.call("gradients", ctx.graph, list(dys))


@contextmanager
def replacements_undone() -> Iterator[None]:
    """Put back what code that is imported within has replaced: functions and classes of modules, methods of ours."""
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    ours = [module for module in modules if module.__name__.startswith(f"{__package__}.")]
    kinds = [each for module in ours for each in vars(module).values() if isinstance(each, type)]
    owners: list[Any] = [*modules, *kinds]
    before = [(owner, dict(vars(owner))) for owner in owners]
    yield
    for owner, values in before:
        for name, value in values.items():
            if vars(owner).get(name) is not value and (callable(value) or isinstance(value, property)):
                setattr(owner, name, value)
