"""Exports are compared bit for bit; a network that does not repeat itself is no reason to refuse one."""

import pytest
import torch
from gpu_pairs import CUDA, DEVICE, Scatter, cast, images, kinds, nets, train_, wrap

from auxnas_layers import MTLNAS, AuxG, AuxNASWrapper

benchmarks = pytest.mark.parametrize("benchmark", [False, True], ids=["", "benchmark"])
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
dtypes = pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])


@kinds
@dtypes
@modes
@benchmarks
def test_the_exported_primary_is_exact(kind, dtype, training, benchmark):
    wrapper, x = wrap(nets(kind), images()), images()
    train_(wrapper, x, 4)
    wrapper.train(training)
    with cast(dtype), torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=False):
        net = wrapper.export_primary(x)
    assert wrapper.export_report.exact and net.training == training
    assert {p.device for p in net.parameters()} == {DEVICE}
    with torch.no_grad():
        assert net.eval()(x).equal(wrapper.primary_net.eval()(x))


@modes
@benchmarks
def test_exported_networks_with_their_edges_are_exact(training, benchmark):
    wrapper, x = wrap(nets("cnn"), images(), MTLNAS()), images()
    train_(wrapper, x, 2)
    wrapper.discretize_()
    wrapper.train(training)
    with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=False):
        both = wrapper.export_multitask(x)
    assert wrapper.export_report.exact
    with torch.no_grad():
        found, wanted = both.eval()(x), wrapper.eval()(x)
    assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))


def test_a_network_that_does_not_repeat_itself_is_exported_and_its_noise_is_reported():
    torch.manual_seed(0)
    both = [Scatter().to(DEVICE) for _ in range(2)]
    x = torch.randn(400_000 if CUDA else 2000, 8, device=DEVICE)
    wrapper = AuxNASWrapper(*both, ["layer"], search=AuxG(), example_inputs=x).eval()
    with torch.no_grad():
        repeats = all(both[0](x).equal(both[0](x)) for _ in range(3))
    wrapper.export_primary(x)
    assert repeats == (wrapper.export_report.noise == 0.0)
    assert repeats or f"{wrapper.export_report.noise:g}" in str(wrapper.export_report)
