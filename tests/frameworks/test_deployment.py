"""The exported network in the files of runtimes; docs/guides/deployment.md shows the functions."""

import io
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss
from zoo import Cnn

from auxnas_layers import AuxNASWrapper


# --8<-- [start:onnx]
def save_onnx(net: nn.Module, images: Tensor, path: str) -> None:
    batch = {0: torch.export.Dim("batch")}  # the file takes any number of samples
    names = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(net, (images,), path, dynamic_shapes=(batch,), verbose=False, **names)


def run_onnx(path: str, images: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


# --8<-- [end:onnx]


# --8<-- [start:script]
def save_script(net: nn.Module, images: Tensor, path: str) -> None:
    torch.jit.trace(net, (images,)).save(path)  # read it by torch.jit.load(path)


# --8<-- [end:script]


# --8<-- [start:int8]
def to_int8(net: nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(net, Int8WeightOnlyConfig())  # in place: the weights of linear layers


# --8<-- [end:int8]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Cnn(out=32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


def draw(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """What a short training exports; its batch norms have seen data, so that the mode matters."""
    torch.manual_seed(0)
    taps = [("body.layer1", "layer1"), ("body.layer2", "layer2")]
    wrapper = AuxNASWrapper(Classifier(), Cnn(), taps, example_inputs=draw(4))
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-2))
    for step in range(10):
        penalty = wrapper.search_penalty(step / 10)
        out = wrapper(draw(8))
        loss = cross_entropy(out.primary, torch.arange(8)) + l1_loss(out.aux, torch.zeros(8, 2, 4, 4)) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    exported = wrapper.export_primary().eval()
    assert wrapper.export_report is not None and wrapper.export_report.exact
    assert not torch.allclose(exported.train()(draw(5)), exported.eval()(draw(5)))
    return exported.requires_grad_(False)


def test_onnxruntime_computes_what_the_exported_network_does(net, tmp_path):
    path = str(tmp_path / "net.onnx")
    save_onnx(net, draw(4), path)
    for count in (1, 4, 7):
        torch.testing.assert_close(run_onnx(path, draw(count)), net(draw(count)))


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch 2.14 advises torch.export instead
def test_a_traced_network_computes_what_the_exported_one_does(net, tmp_path):
    path = str(tmp_path / "net.ts")
    save_script(net, draw(4), path)
    for count in (1, 4, 7):
        torch.testing.assert_close(torch.jit.load(path)(draw(count)), net(draw(count)))


def test_torchao_turns_linear_weights_to_int8_and_the_outputs_stay_close(net):
    small = io.BytesIO()
    torch.save(net, small)
    small.seek(0)
    quantised = torch.load(small, weights_only=False)
    to_int8(quantised)
    assert quantised.head.weight.qdata.dtype is torch.int8
    assert quantised.body.head.weight.dtype is torch.float32  # a convolution
    found, wanted = quantised(draw(7)), net(draw(7))
    assert 0 < (found - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_a_file_of_the_exported_network_does_not_name_the_library(net):
    file = io.BytesIO()
    torch.save(net, file)
    assert b"Classifier" in file.getvalue() and b"auxnas" not in file.getvalue()


def test_the_page_shows_every_function_of_this_file():
    text = (ROOT / "docs" / "guides" / "deployment.md").read_text()
    for line in Path(__file__).read_text().splitlines():
        if line.startswith("# --8<-- [start:"):
            section = line.removeprefix("# --8<-- [start:").removesuffix("]")
            assert f'--8<-- "tests/frameworks/test_deployment.py:{section}"' in text, section
