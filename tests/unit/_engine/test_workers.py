"""Worker threads: they last, none is left busy, nor any object, and several threads may use one wrapper."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import assert_same, assert_unchanged, loss_of, snapshot, workers
from mlps import Mlp, X, wrap
from torch.overrides import BaseTorchFunctionMode

from auxnas_layers import AuxG, AuxNASWrapper
from auxnas_layers._engine.workers import pool_of


@pytest.mark.filterwarnings("ignore:after 200 training forwards")
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


# Workers last from one forward to the next


def idle(wrapper):
    return [worker.thread for worker in pool_of(wrapper)._idle]


@pytest.fixture
def started(monkeypatch):
    """All threads that are started."""
    start, threads = threading.Thread.start, []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (threads.append(thread), start(thread)))
    return threads


@pytest.mark.parametrize("auxes", [1, 3])
def test_fifty_forwards_start_one_thread_for_each_auxiliary(auxes, started):
    nets = {name: Mlp() for name in "abc"[:auxes]}
    wrapper = AuxNASWrapper(Mlp(), nets, {name: ["a", "b"] for name in nets}, example_inputs=X)
    assert not started and not idle(wrapper)
    for _ in range(50):
        loss_of(tuple(wrapper(X))).backward()
    assert len(started) == auxes == len(idle(wrapper))


def test_no_thread_is_started_as_long_as_nothing_runs_in_lock_step(started):
    wrapper = wrap(search=AuxG())
    for _ in range(3):
        wrapper(X)
    assert not started and not idle(wrapper)


def test_the_auxiliary_finds_its_thread_again():
    """As whatever keeps something for each thread does: convolution plans, an OpenMP team, compiled graphs."""
    local, found = threading.local(), []

    class Remembers(Mlp):
        def forward(self, x):
            local.calls = getattr(local, "calls", 0) + 1
            found.append((threading.current_thread(), local.calls))
            return super().forward(x)

    wrapper = wrap(aux=Remembers())
    found.clear()
    local.calls = 0
    for _ in range(3):
        wrapper(X)
    assert len({thread for thread, _ in found}) == 1 and [calls for _, calls in found] == [1, 2, 3]


def test_idle_workers_end_with_their_wrapper():
    wrapper = wrap()
    wrapper(X)
    (thread,) = idle(wrapper)
    assert thread.is_alive() and thread.daemon
    del wrapper
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_an_auxiliary_that_leaves_takes_its_worker_along():
    nets = {name: Mlp() for name in "ab"}
    wrapper = AuxNASWrapper(Mlp(), nets, {name: ["a", "b"] for name in nets}, example_inputs=X)
    wrapper(X)
    assert len(idle(wrapper)) == 2
    wrapper.remove_aux_("b", allow_open=True)
    wrapper(X)
    assert len(idle(wrapper)) == 1


def test_threads_that_call_one_wrapper_at_once_leave_one_idle_worker():
    wrapper = wrap()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: wrapper(X), range(40)))
    assert len(idle(wrapper)) <= 1 and not workers()


def test_workers_are_no_part_of_copies_and_pickles():
    wrapper = wrap()
    expected = wrapper(X)
    for other in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        assert not idle(other)
        assert_same(other(X), expected)
        assert len(idle(other)) == 1 and idle(other) != idle(wrapper)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_has_workers_of_its_own():
    wrapper = wrap().eval()
    expected = wrapper(X)
    read, write = os.pipe()
    if not (child := os.fork()):
        signal.alarm(60)  # ends a child that hangs
        os.write(write, b"equal" if wrapper(X).primary.equal(expected.primary) else b"other")
        os._exit(0)
    os.close(write)
    assert os.read(read, 5) == b"equal"
    assert os.waitpid(child, 0)[1] == 0
    assert_same(wrapper(X), expected)


def test_idle_workers_do_not_hold_up_the_end_of_a_process():
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\nfrom mlps import X, wrap\nwrap()(X); w = wrap(); w(X); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "done", "")


LEFT = {
    "gradients": lambda: torch.set_grad_enabled(False),
    "device": lambda: torch.set_default_device("meta"),
    "function mode": lambda: BaseTorchFunctionMode().__enter__(),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
    "hooks": lambda: torch.autograd.graph.save_on_cpu().__enter__(),
    "no hooks": lambda: torch._C._autograd._saved_tensors_hooks_disable("none here"),
    "forward gradients": lambda: torch._C._set_fwd_grad_enabled(False),
    "threads of the backward": lambda: torch.autograd.set_multithreading_enabled(False),
}


@pytest.mark.parametrize("left", LEFT)
def test_what_a_network_leaves_in_its_thread_does_not_reach_the_next_forward(left):
    class Leaves(Mlp):
        leaves = False

        def forward(self, x):
            x = super().forward(x)
            if self.leaves:
                LEFT[left]()
            return x

    wrapper = wrap(aux=Leaves())
    expected = wrapper(X)
    (first,) = idle(wrapper)
    wrapper.aux_net.leaves = True
    wrapper(X)
    wrapper.aux_net.leaves = False
    output = wrapper(X)
    assert_same(output, expected)
    assert output.aux.requires_grad and idle(wrapper) != [first]


def test_a_lasting_worker_computes_with_as_many_threads_as_the_call():
    found = []

    class Counts(Mlp):
        def forward(self, x):
            found.append(torch.get_num_threads())
            return super().forward(x)

    wrapper = wrap(aux=Counts())
    before = torch.get_num_threads()
    try:
        for count in (2, 1, 3):
            torch.set_num_threads(count)
            wrapper(X)
    finally:
        torch.set_num_threads(before)
    assert found[-3:] == [2, 1, 3]
