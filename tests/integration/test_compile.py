"""torch.compile, of a wrapper, of its networks, of their blocks."""

import pytest
import torch
from helpers import assert_same, loss_of, workers
from torch import nn
from ways import Mlp, X, assert_gradients_close, backward, every_way, run, wrap

from auxnas_layers import MTLNAS, Alignment, AuxNAS, AuxNASWrapper

ignores_dynamos_look_at_grad = pytest.mark.filterwarnings("ignore:The .grad attribute")


@pytest.fixture
def compiler():
    """Torch's own helpers of tests; imported here, since the engine does without a compiler as long as nobody has."""
    from torch._dynamo import testing

    torch.compiler.reset()
    yield testing
    torch.compiler.reset()


def inexactly(module, inputs):
    """A compiler whose code differs from what was written in the last digits, as most do."""
    return lambda *args: [value * (1 + 1e-6) if value.is_floating_point() else value for value in module(*args)]


class Layer(nn.Linear):  # of our own: torch 2.13 compiles no frames of its own layers
    def forward(self, x):
        return super().forward(x)


@ignores_dynamos_look_at_grad
@pytest.mark.parametrize(
    "search, part",
    [
        pytest.param(AuxNAS(), "", id="aux-nas-network"),
        pytest.param(MTLNAS(), "1", id="mtl-nas-block"),
        pytest.param(AuxNAS(), "1", id="aux-nas-block", marks=pytest.mark.slow),
        pytest.param(MTLNAS(), "", id="mtl-nas-network", marks=pytest.mark.slow),
    ],
)
def test_compiled_networks_are_exported_as_they_were_written(search, part, compiler):
    primary, aux = (nn.Sequential(nn.Linear(5, 8), Layer(8, 8), nn.Linear(8, 2)) for _ in range(2))
    wrapper = AuxNASWrapper(primary, aux, ["1"], search=search, example_inputs=X)
    before = primary(X)
    for net in (primary, aux):
        net.get_submodule(part).compile(backend=inexactly)
    wrapper(X)
    wrapper.search_penalty(1.0)
    assert not torch.equal(primary(X), before)
    if isinstance(search, AuxNAS):
        assert_same(wrapper.export_primary()(X), before)
    else:
        wrapper.discretize_()
        wrapper.export_multitask()(X)
    assert wrapper.export_report.max_difference == 0


@ignores_dynamos_look_at_grad
@pytest.mark.parametrize("way", ["aux-nas", pytest.param("mtl-nas", marks=pytest.mark.slow)])
def test_a_compiled_step_may_hold_the_penalty(way, compiler):
    found = []
    for backend in (None, "eager"):
        torch.manual_seed(0)
        wrapper = wrap(way)

        def step(progress, wrapper=wrapper):
            return loss_of(wrapper(X)) + wrapper.search_penalty(progress)

        step = torch.compile(step, backend=backend) if backend else step
        found.append([step(i / 8).item() for i in range(8)])
    assert found[0] == pytest.approx(found[1])


@ignores_dynamos_look_at_grad
def test_alignment_is_measured_through_compiled_blocks(compiler):
    cosines = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)) for _ in range(2)]
        for net in nets if backend else ():
            net.compile(backend=backend)
        primary, aux = (nn.Sequential(nn.Linear(5, 8), net, nn.Linear(8, 2)) for net in nets)
        wrapper = AuxNASWrapper(primary, aux, ["1"], example_inputs=X)
        loss_of(wrapper(X)).backward()
        alignment = Alignment(wrapper)
        alignment.measure(lambda w=wrapper: loss_of(w.primary_net(X)), lambda w=wrapper: loss_of(w(X).aux))
        cosines += alignment.cosines["aux"]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-5)


@pytest.mark.parametrize("way", ["mtl-nas", pytest.param("aux-g", marks=pytest.mark.slow)])
@ignores_dynamos_look_at_grad
def test_networks_with_compiled_blocks_train_as_they_do_without(way, compiler):
    wrapper = wrap(way)
    expected = run(wrapper)
    gradient = backward(wrapper, loss_of(expected))
    counter = compiler.CompileCounterWithBackend("aot_eager")
    for net in (wrapper.primary_net, wrapper.aux_net):
        net.a.compile(backend=counter)
        net.b.compile(backend=counter)
    compiled = []
    for _ in range(3):
        output = run(wrapper)
        torch.testing.assert_close(tuple(output), tuple(expected))
        loss_of(output).backward()
        assert_gradients_close(wrapper, gradient)
        wrapper.zero_grad()
        compiled.append(counter.frame_count)
    assert compiled == [2, 2, 2]  # a and b, whose code serves both networks, and never again


@pytest.mark.parametrize("way", ["aux-g", pytest.param("mtl-nas", marks=pytest.mark.slow)])
@ignores_dynamos_look_at_grad
def test_networks_compiled_as_a_whole_after_wrapping_train_as_without_and_validate_in_between(way, compiler):
    wrapper = wrap(way)
    expected, alone = run(wrapper), wrapper.primary_net(X)
    gradient = backward(wrapper, loss_of(expected))
    counter = compiler.CompileCounterWithBackend("eager")
    for net in (wrapper.primary_net, wrapper.aux_net):
        net.compile(backend=counter)
    compiled = []
    for _ in range(3):
        output = run(wrapper.train())
        torch.testing.assert_close(tuple(output), tuple(expected))
        loss_of(output).backward()
        assert_gradients_close(wrapper, gradient)
        wrapper.zero_grad()
        with torch.no_grad():
            torch.testing.assert_close(wrapper.eval().primary_net(X), alone)
        compiled.append(counter.frame_count)
    assert compiled[0] > 0 and compiled[1] == compiled[2]


@every_way
@ignores_dynamos_look_at_grad
def test_a_compiled_wrapper_trains_as_it_does_without(way, compiler):
    wrapper = wrap(way)
    expected = run(wrapper)
    gradient = backward(wrapper, loss_of(expected))
    compiled = torch.compile(wrapper, backend="aot_eager")
    output = run(compiled)
    assert_same(tuple(output), tuple(expected))
    loss_of(output).backward()
    assert_gradients_close(wrapper, gradient)


@every_way
def test_one_graph_of_the_whole_wrapper_is_refused(way, compiler):
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable|exception handler"):
        torch.compile(wrap(way), backend="eager", fullgraph=True)(X)
    assert not workers()


@every_way
@ignores_dynamos_look_at_grad
def test_one_graph_of_a_tapped_block_is_refused_and_of_one_between_taps_is_not(way, compiler):
    primary = Mlp()
    primary.b, primary.head = Layer(8, 8), Layer(8, 2)
    wrapper = wrap(way, primary).eval()
    expected = wrapper(X)
    wrapper.primary_net.head.compile(backend="eager", fullgraph=True)
    assert_same(tuple(wrapper(X)), tuple(expected))
    wrapper.primary_net.b.compile(backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
        wrapper(X)
    assert not workers()


@pytest.mark.parametrize("way", ["mtl-nas", pytest.param("aux-g", marks=pytest.mark.slow)])
@ignores_dynamos_look_at_grad
def test_both_networks_of_a_compiled_step_run_under_the_same_compiler(way, compiler):
    """Which compiler a thread runs is a state of that thread; its settings are those of the whole program."""
    from torch._C._dynamo.eval_frame import get_eval_frame_callback

    found = {}

    class Looks(Mlp):
        def __init__(self, role):
            super().__init__()
            self.role = role

        def forward(self, x):
            now = get_eval_frame_callback(), torch._dynamo.config.cache_size_limit
            found.setdefault(self.role, []).append(now)
            return super().forward(x)

    wrapper = wrap(way, Looks("primary"), Looks("aux"))
    found.clear()
    with torch._dynamo.config.patch(cache_size_limit=3):
        torch.compile(lambda x: loss_of(wrapper(x)), backend="eager")(X).backward()
    loss_of(run(wrapper)).backward()
    assert found["primary"] == found["aux"] and found["aux"][0][1] == 3 != found["aux"][1][1]
