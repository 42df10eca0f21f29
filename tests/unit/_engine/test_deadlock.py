"""Networks that wait for each other are told so, with the place of the lock, and nothing hangs."""

import functools
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import workers
from mlps import Mlp, X, wrap

from auxnas_layers import AuxNASError
from auxnas_layers._engine import deadlock

LOCK = threading.RLock()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(deadlock, "LOOK", 0.05)
    monkeypatch.setattr(deadlock, "SURELY", 0.5)
    monkeypatch.setattr(deadlock, "PERHAPS", 3.0)


class Global(Mlp):
    def forward(self, x):
        with LOCK:
            return super().forward(x)


class Attribute(Mlp):
    def __init__(self, lock):
        super().__init__()
        self.lock = lock

    def forward(self, x):
        self.lock.acquire()
        try:
            return super().forward(x)
        finally:
            self.lock.release()


class Entered(Mlp):
    def __init__(self, condition):
        super().__init__()
        self.condition = condition

    def forward(self, x):
        with self.condition:
            return super().forward(x)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: (Global(), Global()), "LOCK"),
        (lambda lock=threading.RLock(): (Attribute(lock), Attribute(lock)), "self.lock"),  # noqa: B008
        (lambda lock=threading.Lock(): (Attribute(lock), Attribute(lock)), "self.lock"),  # noqa: B008
        (lambda lock=threading.Condition(): (Entered(lock), Entered(lock)), "self._lock"),  # noqa: B008
    ],
    ids=["with", "acquire", "no owner", "condition"],
)
def test_one_lock_in_both_forwards_is_an_error_that_names_it(make, name):
    primary, aux = make()
    wrapper = wrap(primary, aux)
    with pytest.raises(
        AuxNASError, match=rf"one wants the lock {name} at .*test_deadlock.py:\d+, while the other"
    ) as caught:
        wrapper(X)
    assert "Take a lock around the call of the wrapper" in str(caught.value)
    del caught
    assert not workers()
    torch.testing.assert_close(wrapper.primary_net(X), primary(X))  # the lock is free again


def test_a_lock_of_the_caller_is_an_error():
    with LOCK, pytest.raises(AuxNASError, match="one wants the lock LOCK"):
        wrap(Mlp(), Global())(X)
    assert not workers()
    wrapper = wrap(Mlp(), Global())
    wrapper(X)  # without it all is well


def test_a_lock_of_somebody_else_is_waited_for():
    """Also for longer than a lock without an owner would be taken for a deadlock, if the owner is known."""
    wrapper, ready = wrap(Mlp(), Global()), threading.Event()

    def hold():
        with LOCK:
            ready.set()
            time.sleep(1.0)

    with ThreadPoolExecutor() as pool:
        done = pool.submit(hold)
        ready.wait()
        wrapper(X)
        done.result()


def test_a_plain_lock_that_another_thread_may_hold_is_waited_for_longer():
    lock, held = threading.Lock(), threading.Event()

    def hold():
        with lock:
            held.set()
            time.sleep(1.0)

    class Short(Mlp):
        def forward(self, x):
            with lock:
                x = x + 0
            return super().forward(x)

    wrapper = wrap(Short(), Short())
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    wrapper(X)
    thread.join()


def test_a_forward_that_waits_for_a_thread_is_waited_for():
    class Waits(Mlp):
        def forward(self, x):
            with ThreadPoolExecutor() as pool:
                pool.submit(time.sleep, 1.0).result()
            return super().forward(x)

    wrap(Waits(), Waits())(X)


def test_a_cached_property_that_reaches_a_tap_works_in_both_networks():
    """Python 3.10 and 3.11 have one lock for the property in all objects of a class."""

    class Cached(Mlp):
        @functools.cached_property
        def table(self):
            return self.a(torch.eye(4))

        def forward(self, x):
            y = self.head(self.b(x @ self.table))
            del self.table
            return y

    x = torch.randn(4, 4)
    wrapper = wrap(Cached(), Cached(), example_inputs=x)
    assert wrapper(x).primary.shape == (4, 2)


def test_an_import_in_a_forward_while_the_caller_is_imported_is_an_error(tmp_path):
    code = """
import torch
from torch import nn
from auxnas_layers import AuxNASWrapper
from auxnas_layers._engine import deadlock
deadlock.LOOK = 0.1

class Aux(nn.Sequential):
    def forward(self, x):
        import training
        return super().forward(x)

x = torch.ones(2, 3)
nets = [kind(nn.Linear(3, 4), nn.Linear(4, 1)) for kind in (nn.Sequential, Aux)]
AuxNASWrapper(*nets, ["0"], example_inputs=x)(x)
"""
    (tmp_path / "training.py").write_text(code)
    command = [sys.executable, "-c", "import training"]
    done = subprocess.run(command, cwd=tmp_path, timeout=60, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "AuxNASError: the networks wait for each other: one wants the import lock of 'training' at" in done.stderr
    assert "training.py:10, while the other holds it" in done.stderr
