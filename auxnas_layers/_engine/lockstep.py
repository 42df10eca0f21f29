"""Lock-step: each auxiliary forward is a coroutine in a worker thread; exactly one thread runs at any time."""

import contextvars
import queue
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from auxnas_layers._engine.ambient import Ambient
from auxnas_layers._engine.branch import PRIMARY, Branch, Exchange, PrimaryVisits, tapped


class _Cancelled(BaseException):
    """Unwinds an auxiliary forward after another one has failed; no user code should catch it."""


class _Coroutine:
    """An auxiliary forward that stops at each of its taps until the primary has come as far.

    Args:
        branch: The auxiliary network.
        ambient: Torch's state at the wrapper's call, which the worker thread takes on.
    """

    def __init__(self, branch: Branch, ambient: Ambient) -> None:
        self._branch, self._ambient, self._live = branch, ambient, False
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._context = contextvars.copy_context()
        self._thread = threading.Thread(target=self._main, name=f"auxnas-{branch.role}", daemon=True)
        self._message: Any = None
        self._reply: Tensor | None = None

    def start(self) -> None:
        """Run it up to its first tap; raise what it raised."""
        self._live = True
        self._thread.start()
        self._message = self._receive()

    def at_tap(self) -> tuple[str, Tensor]:
        """Run it up to its next tap, and return the tap's name and feature; raise what it raised."""
        if self._reply is not None:
            self._message = self._resume()
        name, feature = self._message
        return name, feature

    def hand_on(self, feature: Tensor) -> None:
        """Set the feature with which it goes on from the tap at which it stands, once it is its turn."""
        self._reply = feature

    def output(self) -> Any:
        """Run it to its end, and return what its network returned; raise what it raised."""
        return self._resume()

    def _resume(self) -> Any:
        feature, self._reply = self._reply, None
        self._inbox.put((feature, None))
        return self._receive()

    def close(self) -> None:
        """End it if it is still alive, and wait until it has ended."""
        if self._live:
            self._inbox.put((None, _Cancelled()))  # also for a thread whose start was interrupted before it ran
        while self._live and self._thread.is_alive():
            self._thread.join(0.05)
            self._inbox.put((None, _Cancelled()))  # a forward may swallow the cancellation: repeat
        self._live = False

    def _receive(self) -> Any:
        message, error = self._outbox.get()  # Ctrl-C can interrupt this wait
        if error is not None:
            self._live = False
            self._thread.join()
            try:
                raise error  # with the auxiliary's own frames in the traceback
            finally:
                del error
        return message

    def _main(self) -> None:
        result: tuple[Any, BaseException | None]
        try:
            with self._ambient.installed():
                result = self._context.run(self._forward), None
        except BaseException as error:
            result = None, error
        self._outbox.put(result)
        del result

    def _forward(self) -> Any:
        visits = self._branch.visits()

        def stop(name: str, feature: Tensor) -> Tensor:
            visits.arrive(name)
            self._outbox.put(((name, feature), None))
            fused: Tensor
            fused, error = self._inbox.get()
            if error is not None:
                raise error
            return fused

        with tapped(self._branch, self._ambient, stop):
            output = self._branch.inputs.call(self._branch.net)
        visits.finish()
        return output


def run_lockstep(primary: Branch, auxes: Mapping[str, Branch], exchange: Exchange) -> tuple[Any, dict[str, Any]]:
    """Run all networks at once, each waiting at its taps for the others, fusing in this thread."""
    ambient, visits = Ambient(), PrimaryVisits(auxes)
    coroutines = {aux: _Coroutine(branch, ambient) for aux, branch in auxes.items()}

    def meet(name: str, feature: Tensor) -> Tensor:
        met = {aux: coroutines[aux].at_tap() for aux in visits.arrive(name)}
        with ambient.fusing():  # not under what the primary has set around its tap, such as no_grad
            exchange.hear(PRIMARY, name, feature)
            for aux, (aux_name, aux_feature) in met.items():
                exchange.hear(aux, aux_name, aux_feature)
            for aux, (aux_name, aux_feature) in met.items():
                coroutines[aux].hand_on(exchange.fuse(aux, aux_name, aux_feature))
            return exchange.fuse(PRIMARY, name, feature)

    try:
        for coroutine in coroutines.values():
            coroutine.start()
        with tapped(primary, ambient, meet):
            primary_output = primary.inputs.call(primary.net)
        visits.finish()
        return primary_output, {aux: coroutine.output() for aux, coroutine in coroutines.items()}
    finally:
        _close(list(coroutines.values()))


def _close(coroutines: list[_Coroutine]) -> None:
    """End all workers, also if ending one is interrupted."""
    try:
        if coroutines:
            coroutines[0].close()
    finally:
        if coroutines:
            _close(coroutines[1:])
