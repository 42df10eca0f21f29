"""Small nasty networks: each has one way in which real networks break naive hooks. One list drives every law's test."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from auxnas_layers import AuxNASWrapper, Inputs, Tap


class Cnn(nn.Module):
    """Plain convolutions with batch norm."""

    def __init__(self, width: int = 6, out: int = 2) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Conv2d(2 * width, out, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.layer2(self.layer1(x)))


class InplaceAfterTap(nn.Module):
    """The layer after each tap overwrites the tapped feature."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.relu2(self.conv2(self.relu1(self.conv1(x)))))


class Block(nn.Module):
    """A transformer block with attention written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(x)


class Vit(nn.Module):
    """Patches, a class token and blocks in a ModuleList."""

    def __init__(self, width: int = 8, patch: int = 4) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, patch, patch), nn.Parameter(torch.zeros(1, 1, width))
        self.blocks, self.head = nn.ModuleList([Block(width) for _ in range(3)]), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Wrapped(nn.Module):
    """A layer that returns its tensor inside something else, by `pack`."""

    def __init__(self, layer: nn.Module, pack: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.pack = layer, pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.layer(x))


class Pair(NamedTuple):
    feature: Tensor
    length: int


@dataclass
class Record:
    feature: Tensor
    note: str = "kept"


class Hidden(dict[str, Any]):
    """A dict of its own class, as model outputs of some libraries are."""


def as_pair(x: Tensor) -> Any:
    return Pair(x, x.shape[1])


def as_record(x: Tensor) -> Any:
    return Record(x)


def as_hidden(x: Tensor) -> Any:
    return Hidden(feature=x, mask=torch.ones(1, dtype=torch.bool))


def as_nested(x: Tensor) -> Any:
    return [None, (x, x.detach().mean(), {"count": 3})]


class Packed(nn.Module):
    """Layers return tuples, dicts or dataclasses, and so does the network."""

    def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.first = Wrapped(nn.Linear(5, 8), pack)
        self.second = Wrapped(nn.Linear(8, 6), pack)
        self.unpack = unpack

    def forward(self, x: Tensor) -> Any:
        return self.second(self.unpack(self.first(x)).relu())


def from_pair(output: Any) -> Tensor:
    assert isinstance(output, Pair) and isinstance(output.length, int)
    return output.feature


def from_record(output: Any) -> Tensor:
    assert type(output) is Record and output.note == "kept"
    return output.feature


def from_hidden(output: Any) -> Tensor:
    assert type(output) is Hidden and output["mask"].all()
    return output["feature"]


def from_nested(output: Any) -> Tensor:
    assert output[0] is None and output[1][2] == {"count": 3}
    return output[1][0]


class ReusedActivation(nn.Module):
    """One activation module called after every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.a, self.b, self.c = nn.ReLU(), nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.b(self.act(self.a(x)))))


class TiedWeights(nn.Module):
    """The head uses the embedding's weight, and one block stands under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(11, 8), Block(8)
        self.alias = self.block
        self.norm = nn.LayerNorm(8)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.norm(self.block(self.embed(ids))), self.embed.weight)


class FrozenStem(nn.Module):
    """The first tap runs under no_grad, with frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1)
        self.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return self.head(self.body(x.relu()).relu())


class FixedDropout(nn.Module):
    """Dropout whose draws depend on its own seed alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(self.seed)) > 0.3)


class RandomPaths(nn.Module):
    """Drops whole layers at random in training, by Python's random numbers of its own, and features by dropout."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        self.seed, self.first, self.last = seed, nn.Linear(5, 8), nn.Linear(8, 8)
        self.middle, self.drop, self.head = nn.Linear(8, 8), FixedDropout(seed), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x))
        if not self.training or random.Random(self.seed).random() < 0.5:
            x = self.middle(x)
        return self.head(self.last(x))


class ControlFlow(nn.Module):
    """Looks at its data, loops, and returns more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.step, self.leave = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        x, steps = self.enter(x), 0
        while steps < 3 and x.abs().mean() < 10:
            x, steps = self.step(x).tanh() + x, steps + 1
        return {"out": self.leave(x), "steps": steps, "nothing": None}


class Keywords(nn.Module):
    """Takes its inputs by keyword, a dict among them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, *, batch: dict[str, Tensor], scale: float = 1.0) -> Tensor:
        return self.head(self.b(self.a(batch["x"]).relu() * scale) + batch["bias"])


class Conv1d(nn.Module):
    """A time series, channels first."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, width, 3, padding=1), nn.Conv1d(width, width, 3, 2, 1)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu().mean(-1))


class Conv3d(nn.Module):
    """A volume."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 6, 3, 2, 1), nn.Conv3d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu())


class ChannelsLast(nn.Module):
    """Maps with channels at the end, as in Swin."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.a = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.b, self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width)), nn.Linear(2 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.embed(x).permute(0, 2, 3, 1))).relu())


class Recurrent(nn.Module):
    """An LSTM returns its output and its state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.norm, self.head = (
            nn.LSTM(4, 5, batch_first=True, bidirectional=True),
            nn.LayerNorm(10),
            nn.Linear(10, 2),
        )

    def forward(self, x: Tensor) -> Any:
        y, (h, _) = self.lstm(x.mT)
        return self.head(self.norm(y)), h


class SideEffects(nn.Module):
    """Counts its calls in a buffer, and keeps running statistics."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(self.norm(self.a(x)).relu())


class Checkpointed(nn.Module):
    """Recomputes its blocks in backward instead of keeping activations."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False).tanh()
        return self.head(x)


class CheckpointedRegion(Checkpointed):
    """The same, with all blocks in one region."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self._blocks, self.enter(x), use_reentrant=False))

    def _blocks(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return x


class Unchecked(CheckpointedRegion):
    """The same, without checkpoints."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._blocks(self.enter(x)))


class Precise(nn.Module):
    """Double precision, and a forward that switches to another dtype by autocast inside."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.to(self.dtype)).relu()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype is torch.float32):
            x = self.b(x)
        return self.head(x.to(self.dtype))


class UNet(nn.Module):
    """Skips around its middle, and taps inside a tapped block."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(2, width), nn.SiLU())
        self.middle, self.up = nn.Conv2d(width, width, 3, 2, 1), nn.ConvTranspose2d(width, width, 2, 2)
        self.head = nn.Conv2d(2 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.head(torch.cat([skip, self.up(self.middle(skip).relu())], 1))


class Flattening(nn.Module):
    """A map, then a vector."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4 * (size // 2) ** 2, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(self.conv(x).flatten(1)).relu())


class Normalised(nn.Module):
    """Weights computed by parametrisations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(5, 8))
        self.b = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).tanh()))


class UserHooked(nn.Module):
    """Has forward hooks of its user's, which change features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.a.register_forward_hook(double)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).relu())


def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


class Loss(nn.Module):
    """Returns its own loss, and takes labels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.b(self.a(x)).relu())
        return logits if labels is None else (F.cross_entropy(logits, labels), logits)


class Encoder(nn.Module):
    """Torch's own encoder, which has a fast path that calls no submodules."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)
        self.enter = nn.Linear(5, width)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.enter(x)))


class TimeFirst(nn.Module):
    """Sequences with time before the batch, as torch's own layers take them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.lstm, self.norm, self.head = nn.LSTM(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(self.block(x.transpose(0, 1)))[0]).mean(0))


class Odd(nn.Module):
    """Parameters used without their module, a complex step, and a float that autograd sees through."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scale, self.loose = nn.Parameter(torch.ones(())), nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft(self.a(x)).abs() * self.scale
        return F.linear(self.b(F.pad(x, (0, 3))), self.loose)


@dataclass
class Case:
    """A pair of networks, how to tap them and how to call them."""

    name: str
    primary: Callable[[], nn.Module]
    aux: Callable[[], nn.Module]
    taps: list[Any]
    inputs: Callable[[], Any]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def nets(self) -> tuple[nn.Module, nn.Module]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.primary(), self.aux()

    def example(self) -> Inputs:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            given = self.inputs()
        return given if isinstance(given, Inputs) else Inputs((given,))

    def wrapper(self, **options: Any) -> AuxNASWrapper:
        primary, aux = self.nets()
        return AuxNASWrapper(primary, aux, self.taps, **{"example_inputs": self.example(), **self.kwargs, **options})

    def __repr__(self) -> str:
        return self.name


def rows() -> Tensor:
    return torch.randn(4, 5)


def tokens() -> Tensor:
    return torch.randn(4, 7, 5)


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8)


def series() -> Tensor:
    return torch.randn(4, 4, 9)


def ids() -> Tensor:
    return torch.randint(11, (4, 6))


def keywords() -> Inputs:
    return Inputs(kwargs={"batch": {"x": rows(), "bias": torch.randn(4, 8)}, "scale": 0.5})


def labelled() -> Inputs:
    return Inputs((rows(),), {"labels": torch.tensor([0, 1, 2, 0])})


def own_inputs() -> Inputs:
    return Inputs((images(),), {"aux_inputs": (torch.randn(4, 3, 12, 16),)})


def time_and_series() -> Inputs:
    return Inputs((torch.randn(4, 7, 8),), {"aux_inputs": (series(),)})


def packed(pack: Any, unpack: Any) -> Callable[[], nn.Module]:
    return lambda: Packed(pack, unpack)


def same(name: str, make: Callable[[], nn.Module], taps: list[Any], inputs: Callable[[], Any]) -> Case:
    return Case(name, make, make, taps, inputs)


LSTM = Tap("lstm", primary_select=0, aux_select=0)

CASES = [
    same("cnn", Cnn, ["layer1", "layer2"], images),
    Case("widths", Cnn, lambda: Cnn(4), ["layer1", "layer2"], images),
    same("inner-layers", Cnn, ["layer1.0", "layer1.1", "layer1", "layer2.0"], images),
    same("inplace-after-tap", InplaceAfterTap, ["conv1", "conv2"], images),
    same("vit", Vit, ["blocks.0", "blocks.1", "blocks.2"], images),
    same("namedtuple", packed(as_pair, from_pair), ["first", "second"], rows),
    same("dataclass", packed(as_record, from_record), ["first", "second"], rows),
    same("dict", packed(as_hidden, from_hidden), ["first", "second"], rows),
    same("nested", packed(as_nested, from_nested), ["first", "second"], rows),
    same("reused-activation", ReusedActivation, ["a", "b"], rows),
    same("tied-weights", TiedWeights, ["embed", "alias"], ids),
    same("frozen-stem", FrozenStem, ["stem", "body"], images),
    same("random-paths", RandomPaths, ["first", "last"], rows),
    same("control-flow", ControlFlow, ["enter", "leave"], rows),
    same("keywords", Keywords, ["a", "b"], keywords),
    same("conv1d", Conv1d, ["a", "b"], series),
    same("conv3d", Conv3d, ["a", "b"], lambda: torch.randn(2, 1, 6, 6, 6)),
    same("channels-last", ChannelsLast, ["a", "b"], images),
    same("lstm", Recurrent, [LSTM, "norm"], series),
    same("side-effects", SideEffects, ["a", "norm"], rows),
    same("checkpointed", Checkpointed, ["enter", "blocks.0", "blocks.1"], rows),
    same("checkpointed-region", CheckpointedRegion, ["enter", "blocks.0", "blocks.1.0"], rows),
    same("float64", Precise, ["a", "b"], rows),
    same("inner-autocast", lambda: Precise(torch.float32), ["a", "b"], rows),
    same("unet", UNet, ["down.0", "down", "middle", "up"], images),
    same("flattening", Flattening, ["conv", "fc"], images),
    same("parametrised", Normalised, ["a", "b"], rows),
    same("user-hooks", UserHooked, ["a", "b"], rows),
    same("own-loss", Loss, ["a", "b"], labelled),
    same("fast-path", Encoder, ["encoder.layers.0", "encoder.layers.1"], tokens),
    same("time-first", TimeFirst, ["block", "norm"], lambda: torch.randn(4, 7, 8)),
    Case("time-first-x-conv1d", TimeFirst, lambda: Conv1d(4), [("block", "a"), ("norm", "b")], time_and_series),
    same("odd", Odd, ["a", "b"], lambda: torch.randn(4, 8)),
    Case("vit-x-cnn", Vit, Cnn, [("blocks.0", "layer1"), ("blocks.2", "layer2")], images),
    Case("cnn-x-vit", Cnn, Vit, [("layer1", "blocks.0"), ("layer2", "blocks.2")], images),
    Case("cnn-x-channels-last", Cnn, ChannelsLast, [("layer1", "a"), ("layer2", "b")], images),
    Case("flattening-x-vit", Flattening, Vit, [("conv", "blocks.0"), ("fc", "blocks.1")], images),
    Case("conv1d-x-lstm", Conv1d, Recurrent, [Tap("a", "lstm", aux_select=0), ("b", "norm")], series),
    Case("depths", Cnn, lambda: UNet(4), [("layer1", "down"), ("layer2", "up")], images),
    Case("own-inputs", Cnn, Cnn, ["layer1", "layer2"], own_inputs),
    Case("lazy", Cnn, Cnn, ["layer1", "layer2"], images, {"example_inputs": None}),
]
