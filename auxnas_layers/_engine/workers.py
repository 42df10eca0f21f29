"""Worker threads that last: a pool of idle ones for each wrapper, taken up again by its next forward pass."""

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, finalize

from auxnas_layers._torch.state import ThreadState, thread_state

Task = Callable[[ThreadState], None]
"""Is called with the state of a new thread."""


WORKER = "auxnas-worker"
"""The name of all worker threads."""


class Worker:
    """A thread that runs one task after the other.

    A network finds the same thread in each forward pass, with its OpenMP team, convolution plans and allocator arena.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=_work, args=(self._tasks,), name=WORKER, daemon=True)
        finalize(self, self._tasks.put, None)  # ends it, also at exit, or if Ctrl-C comes before anybody has it
        self.thread.start()

    def is_alive(self) -> bool:
        """Whether it still runs tasks; after a fork the child's copy does not."""
        return self.thread.is_alive()

    def run(self, task: Task) -> None:
        """Run a task, which must not raise, after those before it."""
        self._tasks.put(task)

    def stop(self) -> None:
        """End the thread once its tasks are done."""
        self._tasks.put(None)


def _work(tasks: "queue.SimpleQueue[Task | None]") -> None:
    new = thread_state()
    while (task := tasks.get()) is not None:
        task(new)
        del task  # what it holds, networks and features, must not live until the next one


class WorkerPool:
    """The idle workers of one wrapper: none before the first lock-step, then at most one for each auxiliary.

    They end with the pool, and with the process. Adding and taking need no lock, which a fork might find held.
    """

    def __init__(self) -> None:
        self._idle: deque[Worker] = deque()

    def take(self) -> Worker:
        """An idle worker, or a new one."""
        while True:
            try:
                worker = self._idle.pop()
            except IndexError:
                return Worker()
            if worker.is_alive():
                return worker

    def give_back(self, worker: Worker, most: int) -> None:
        """Keep a worker for the next forward pass, unless there would be more than `most` idle ones."""
        self._idle.append(worker)
        while len(self._idle) > most:
            try:
                self._idle.popleft().stop()
            except IndexError:  # another thread took it
                return


_POOLS: "WeakKeyDictionary[Any, WorkerPool]" = WeakKeyDictionary()  # no attributes, which copies and pickles contain


def pool_of(owner: Any) -> WorkerPool:
    """The pool of an object, which ends with it."""
    return _POOLS.get(owner) or _POOLS.setdefault(owner, WorkerPool())
