"""Worker threads: none is left, nor any object, and several threads may use one wrapper."""

import gc
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import assert_same, assert_unchanged, loss_of, snapshot, workers
from mlps import Mlp, X, wrap

from auxnas_layers import AuxNASWrapper


def test_hundreds_of_forwards_leave_no_thread_and_no_object():
    wrapper = wrap()
    for _ in range(100):
        loss_of(wrapper(X).primary).backward()
    gc.collect()
    before = len(gc.get_objects()), threading.active_count()
    for _ in range(300):
        wrapper(X)
    gc.collect()
    assert len(gc.get_objects()) - before[0] < 100
    assert threading.active_count() == before[1]


def test_a_forward_leaves_no_reference_cycle_around_activations():
    wrapper = wrap()
    gc.collect()
    gc.disable()
    try:
        output = wrapper(X)
        alive = weakref.ref(output.aux)
        del output
        assert alive() is None
        wrapper.aux_net.b.register_forward_hook(raise_value_error)
        with pytest.raises(ValueError):
            wrapper(X)
    finally:
        gc.enable()
    assert not workers()


def raise_value_error(*_):
    raise ValueError("user's")


def test_four_threads_may_use_one_wrapper_while_a_fifth_uses_its_networks():
    wrapper, failures = wrap().eval(), []
    inputs = [torch.randn(3, 4) for _ in range(4)]
    expected = [wrapper(x) for x in inputs]
    plain = wrapper.primary_net(X)

    def call(i):
        try:
            for _ in range(50):
                if i == 4:
                    assert_same(wrapper.primary_net(X), plain)
                else:
                    assert_same(wrapper(inputs[i]), expected[i])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_interrupting_a_forward_leaves_nothing_behind():
    class Slow(Mlp):
        def forward(self, x):
            time.sleep(1)  # long enough for a late timer on a busy machine
            return super().forward(x)

    wrapper = wrap()
    wrapper.aux_net.__class__ = Slow
    before = snapshot(wrapper.primary_net)
    timer = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start a job without one
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            wrapper(X)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not workers()
    assert_unchanged(wrapper.primary_net, before)
    wrapper(X)


def test_a_thread_whose_start_was_interrupted_before_it_ran_ends_by_itself(monkeypatch):
    start = threading.Thread.start

    def interrupted(thread):
        late = threading.Timer(0.2, start, (thread,))
        start(late)
        raise KeyboardInterrupt

    wrapper = wrap()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threading.Thread, "start", interrupted)
        wrapper(X)
    time.sleep(0.4)
    for _ in range(100):
        if not workers():
            break
        time.sleep(0.05)
    assert not workers()
    wrapper(X)


def test_several_threads_may_make_the_first_forward():
    for _ in range(5):
        wrapper = AuxNASWrapper(Mlp(), Mlp(), ["a", "b"])
        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(lambda _, w=wrapper: w(X).primary, range(8)))
        assert all(torch.equal(output, outputs[0]) for output in outputs)
        assert all(module.training for module in wrapper.modules())
