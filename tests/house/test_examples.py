"""The examples run, and their networks are what their papers say."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, assert_same
from torch import nn

from auxnas_layers import AuxNASWrapper

QUICKSTART = "examples/quickstart.py"
SHORT = ["--data", "rooms", "--frames", "2", "--steps", "12", "--seeds", "1", "--picture", "picture.png"]


class OneAfterTheOther:
    """Stands for a pool of processes."""

    def __init__(self, workers: int) -> None:
        self.map = map

    def __enter__(self) -> "OneAfterTheOther":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def assert_quickstart(printed: str, picture: Path) -> None:
    assert "exported == primary: True (largest difference 0)" in printed
    assert printed.count("closed") == 9
    assert picture.stat().st_size > 10_000


def test_the_quickstart_runs(printed, tmp_path, monkeypatch):
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", OneAfterTheOther)
    assert_quickstart(printed(QUICKSTART, *SHORT), tmp_path / "picture.png")


@pytest.mark.slow
def test_the_quickstart_runs_by_its_command(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / QUICKSTART), *SHORT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_quickstart(done.stdout, tmp_path / "picture.png")


# The baselines


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    import baselines
    import nets

    return baselines, nets


FRAMES = torch.rand(2, 3, 60, 80, generator=torch.Generator().manual_seed(0))


def test_a_shared_backbone_is_the_network_with_two_heads(examples):
    baselines, nets = examples
    net = nets.SharedBackbone(1, 6)
    primary, aux = nets.Net(1), nets.Net(6)
    state = net.state_dict()
    primary.load_state_dict({k: v for k, v in state.items() if not k.startswith("aux_head")})
    aux.head.load_state_dict({k.removeprefix("aux_head."): v for k, v in state.items() if k.startswith("aux_head")})
    wrapper = baselines.shared_backbone(primary, aux, [*baselines.TAPS, "up"], baselines.TAPS, FRAMES)
    assert_same(tuple(wrapper.eval()(FRAMES)), net.eval()(FRAMES))
    assert sum(p.numel() for p in wrapper.parameters()) == sum(p.numel() for p in net.parameters())


def test_a_cross_stitch_network_is_what_its_paper_says(examples):
    baselines, nets = examples
    a, b = nets.Net(1).eval(), nets.Net(6).eval()
    wrapper = baselines.cross_stitch(a, b, baselines.TAPS, FRAMES).eval()
    x = y = FRAMES
    fine = x, y
    for name in ("stage1", "stage2", "stage3", "stage4"):
        fa, fb = a.get_submodule(name)(x), b.get_submodule(name)(y)
        x, y = 0.9 * fa + 0.1 * fb, 0.9 * fb + 0.1 * fa
        fine = (x, y) if name == "stage2" else fine
    outs = []
    for net, coarse, kept in ((a, x, fine[0]), (b, y, fine[1])):
        up = nn.functional.interpolate(net.up(coarse), size=kept.shape[-2:], mode="bilinear", align_corners=False)
        outs.append(net.predict(kept + up))
    torch.testing.assert_close(tuple(wrapper(FRAMES)), tuple(outs), atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in wrapper.fusion_parameters()) == 2 * 4 * 2


def test_nddr_cnn_has_one_convolution_over_both_features_at_each_tap(examples):
    baselines, nets = examples
    wrapper = baselines.nddr_cnn(nets.Net(1), nets.Net(6), baselines.TAPS, FRAMES)
    widths = [16, 32, 64, 64]
    assert sum(p.numel() for p in wrapper.fusion_parameters()) == sum(2 * (2 * w * w + 2 * w) for w in widths)
    assert not list(wrapper.arch_parameters())


def test_a_light_auxiliary_costs_half(examples):
    baselines, nets = examples
    light = baselines.light_auxiliary(nets.Net(1), baselines.ListeningHead(6), baselines.HEARS, FRAMES).cost(FRAMES)
    whole = AuxNASWrapper(nets.Net(1), nets.Net(6), baselines.TAPS, example_inputs=FRAMES).cost(FRAMES)
    extra = [cost.training.flops - cost.primary.flops for cost in (light, whole)]
    assert extra[0] < 0.55 * extra[1]
