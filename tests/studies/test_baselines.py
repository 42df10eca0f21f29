"""The known ways to learn two tasks that benchmarks/evidence/baselines.py makes of the library's parts."""

import baselines
import nets
import torch
import torch.nn.functional as F

from auxnas_layers import AuxNASWrapper

FRAMES = torch.rand(2, 3, 60, 80, generator=torch.Generator().manual_seed(0))


def test_a_shared_backbone_is_the_network_with_two_heads():
    net = nets.SharedBackbone(1, 6)
    primary, aux = nets.Net(1), nets.Net(6)
    state = net.state_dict()
    primary.load_state_dict({k: v for k, v in state.items() if not k.startswith("aux_head")})
    aux.head.load_state_dict({k.removeprefix("aux_head."): v for k, v in state.items() if k.startswith("aux_head")})
    wrapper = baselines.shared_backbone(primary, aux, [*baselines.TAPS, "up"], baselines.TAPS, FRAMES)
    pairs = zip(wrapper.eval()(FRAMES), net.eval()(FRAMES), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert sum(p.numel() for p in wrapper.parameters()) == sum(p.numel() for p in net.parameters())


def test_a_cross_stitch_network_is_what_its_paper_says():
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
        up = F.interpolate(net.up(coarse), size=kept.shape[-2:], mode="bilinear", align_corners=False)
        outs.append(net.predict(kept + up))
    torch.testing.assert_close(tuple(wrapper(FRAMES)), tuple(outs), atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in wrapper.fusion_parameters()) == 2 * 4 * 2


def test_nddr_cnn_has_one_convolution_over_both_features_at_each_tap():
    wrapper = baselines.nddr_cnn(nets.Net(1), nets.Net(6), baselines.TAPS, FRAMES)
    widths = [16, 32, 64, 64]
    assert sum(p.numel() for p in wrapper.fusion_parameters()) == sum(2 * (2 * w * w + 2 * w) for w in widths)
    assert not list(wrapper.arch_parameters())


def test_a_light_auxiliary_costs_half():
    light = baselines.light_auxiliary(nets.Net(1), baselines.ListeningHead(6), baselines.HEARS, FRAMES).cost(FRAMES)
    whole = AuxNASWrapper(nets.Net(1), nets.Net(6), baselines.TAPS, example_inputs=FRAMES).cost(FRAMES)
    extra = [cost.training.flops - cost.primary.flops for cost in (light, whole)]
    assert extra[0] < 0.55 * extra[1]
