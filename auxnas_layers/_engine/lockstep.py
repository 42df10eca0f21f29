"""Lock-step: each auxiliary forward is a coroutine in a worker thread; exactly one thread runs at any time."""

import contextvars
import queue
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from auxnas_layers._engine.deadlock import patient, unlock_cached_properties
from auxnas_layers._engine.taps import Branch, Exchange, PrimaryVisits, tapped
from auxnas_layers._engine.workers import Worker, WorkerPool
from auxnas_layers._torch.state import CallState, ThreadState, thread_state
from auxnas_layers.errors import AuxNASError
from auxnas_layers.features.taps import Layer


class _Cancelled(BaseException):
    """Unwinds an auxiliary forward after another one has failed; user code should not catch it."""


class _Coroutine:
    """An auxiliary forward that stops at each of its taps until the primary has come as far.

    Args:
        branch: The auxiliary network.
        state: Torch's state at the wrapper's call, which the worker sets first.
        workers: Where to take the worker from.
        most: How many workers may stay idle there afterwards.
        threads: The threads of the lock-step; this one adds its own.
    """

    def __init__(
        self, branch: Branch, state: CallState, workers: WorkerPool, most: int, threads: list[threading.Thread]
    ) -> None:
        self._branch, self._state, self._workers, self._most = branch, state, workers, most
        self._threads = threads
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._context = contextvars.copy_context()
        self._ended = threading.Event()
        self._worker: Worker | None = None
        self._reusable = self._stuck = False
        self._message: Any = None
        self._reply: Tensor | None = None

    def start(self) -> None:
        """Run it up to its first tap; raise what it raised."""
        self._worker = self._workers.take()
        self._threads.append(self._worker.thread)
        self._worker.run(self._main)
        self._message = self._receive()

    def at_tap(self) -> tuple[Layer, Tensor]:
        """Run it up to its next tap, and return the layer and its feature; raise what it raised."""
        if self._reply is not None:
            self._message = self._resume()
        layer, feature = self._message
        return layer, feature

    def reply(self, feature: Tensor) -> None:
        """Set the feature with which it goes on from the tap at which it stands, once it is its turn."""
        self._reply = feature

    def output(self) -> Any:
        """Run it to its end, and return what its network returned; raise what it raised."""
        return self._resume()

    def close(self) -> None:
        """End it if it still runs, wait until it has ended, and give its worker back.

        One that waits for a lock of this thread is left: it ends at its next tap, after it has got the lock.
        """
        worker, self._worker = self._worker, None  # an error may keep this object alive, and not the worker with it
        if worker is None:
            return
        if self._stuck:
            self._inbox.put((None, _Cancelled()))
            return worker.stop()
        if not self._ended.is_set():
            worker.run(lambda _: self._ended.set())  # ends this wait, too, if Ctrl-C came before the forward was queued
        while not self._ended.is_set():
            self._inbox.put((None, _Cancelled()))  # a forward may swallow the cancellation: repeat
            self._ended.wait(0.05)
        if self._reusable:
            self._workers.give_back(worker, self._most)
        else:
            worker.stop()

    def _others(self) -> list[int]:
        """The threads that wait while the worker runs."""
        return [one.ident or 0 for one in self._threads if self._worker and one is not self._worker.thread]

    def _resume(self) -> Any:
        feature, self._reply = self._reply, None
        self._inbox.put((feature, None))
        return self._receive()

    def _receive(self) -> Any:
        assert self._worker
        try:
            message, error = patient(self._outbox, self._worker.thread, self._others)  # Ctrl-C can interrupt this
        except AuxNASError:
            self._stuck = True
            raise
        if error is not None:
            try:
                raise error  # with the auxiliary's own frames in the traceback
            finally:
                del error
        return message

    # In the worker

    def _main(self, new: ThreadState) -> None:
        result: tuple[Any, BaseException | None] | None
        try:
            with self._state.installed():
                result = self._context.run(self._forward), None
        except _Cancelled:
            result = None  # nobody waits for it
        except BaseException as error:
            result = None, error
        self._reusable = thread_state() == new  # a network may have changed its thread's state for good
        self._ended.set()
        if result is not None:
            self._outbox.put(result)
        del result  # an error in it refers to this frame

    def _forward(self) -> Any:
        visits = self._branch.visits()

        def stop(layer: Layer, feature: Tensor) -> Tensor:
            visits.arrive(layer.name)
            self._outbox.put(((layer, feature), None))
            fused: Tensor
            fused, error = patient(self._inbox, self._threads[0], lambda: [threading.get_ident()])
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # whose traceback refers to this frame
            return fused

        with tapped(self._branch, self._state, stop):
            output = self._branch.inputs.call(self._branch.net)
        visits.finish()
        return output


def run_lockstep(
    primary: Branch, auxes: Mapping[str, Branch], exchange: Exchange, workers: WorkerPool
) -> tuple[Any, dict[str, Any]]:
    """Run all networks at once, each waiting at its taps for the others, and fuse in this thread."""
    for branch in (primary, *auxes.values()):
        unlock_cached_properties(branch.net)
    state, visits = CallState(), PrimaryVisits(auxes)
    threads = [threading.current_thread()]
    coroutines = {aux: _Coroutine(branch, state, workers, len(auxes), threads) for aux, branch in auxes.items()}

    def meet(layer: Layer, feature: Tensor) -> Tensor:
        met = {aux: coroutines[aux].at_tap() for aux in visits.arrive(layer.name)}
        with state.restored():  # not under what the primary has set around its tap, such as no_grad
            exchange.keep(layer, feature)
            for aux_layer, aux_feature in met.values():
                exchange.keep(aux_layer, aux_feature)
            for aux, (aux_layer, aux_feature) in met.items():
                coroutines[aux].reply(exchange.fuse(aux_layer, aux_feature))
            return exchange.fuse(layer, feature)

    with ExitStack() as stack:
        for coroutine in coroutines.values():
            stack.callback(coroutine.close)
            coroutine.start()
        with tapped(primary, state, meet):
            primary_output = primary.inputs.call(primary.net)
        visits.finish()
        return primary_output, {aux: coroutine.output() for aux, coroutine in coroutines.items()}
