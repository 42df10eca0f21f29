"""The device, and pairs of networks on it that are large enough for the kernels that real networks get."""

import os

import pytest
import torch
import torch.nn.functional as F
from helpers import loss_of, stir_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from auxnas_layers import AuxNAS, AuxNASWrapper

CHOICE, IN_CHILD = "AUXNAS_DEVICE", "AUXNAS_IN_CHILD"
DEVICE = torch.device(os.environ.get(CHOICE, "cuda:0"))
CUDA = DEVICE.type == "cuda"
RUNS = not CUDA or torch.cuda.is_available()
REASON = f"torch finds no GPU; {CHOICE}=cpu runs these tests on the CPU"
GPUS = torch.cuda.device_count() if CUDA and RUNS else 0

needs_cuda = pytest.mark.skipif(not CUDA, reason="needs CUDA itself")
needs_two = pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
kinds = pytest.mark.parametrize("kind", ["cnn", "vit"])


class ConvBlock(nn.Module):
    """A convolution with batch norm, and a residual where the shape stays."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        return x + y if y.shape == x.shape else y


class AttentionBlock(nn.Module):
    """Attention by torch's fused kernels, and an MLP."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(x)


class Net(nn.Module):
    """A stem, blocks and a head; of convolutions or of tokens."""

    def __init__(
        self, kind: str = "cnn", width: int = 32, blocks: int = 3, out: int = 5, strides: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.kind, self.checkpointed = kind, False
        self.side: torch.cuda.Stream | None = None
        steps = [*strides, *[1] * (blocks - len(strides))]
        self.stem = nn.Conv2d(3, width, 3, padding=1) if kind == "cnn" else nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.ModuleList(ConvBlock(width, s) if kind == "cnn" else AttentionBlock(width) for s in steps)
        self.head = nn.Linear(width, out)

    def begin(self, x: Tensor) -> Tensor:
        return self.stem(x) if self.kind == "cnn" else self.stem(x).flatten(2).mT

    def end(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3) if self.kind == "cnn" else 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        for block in self.blocks:
            if self.checkpointed:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x) if self.side is None else on_side(self.side, block, x)
        return self.end(x)


def on_side(side: "torch.cuda.Stream", block: nn.Module, x: Tensor) -> Tensor:
    """Run a block on a stream of its own, late enough that whoever does not wait for it reads rubbish."""
    now = torch.cuda.current_stream()
    side.wait_stream(now)
    with torch.cuda.stream(side):
        torch.cuda._sleep(2_000_000)
        y = block(x)
    now.wait_stream(side)
    y.record_stream(now)
    return y


class Scatter(nn.Module):
    """Adds by atomics, so that on a GPU its forward does not repeat itself bit for bit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        to = torch.arange(len(y), device=y.device) % 7
        return self.head(torch.zeros(7, 16, device=y.device, dtype=y.dtype).index_add_(0, to, y))


def nets(kind: str = "cnn", **options: int | tuple[int, ...]) -> list[Net]:
    """A primary and an auxiliary of one kind, always with the same weights."""
    torch.manual_seed(0)
    return [Net(kind, out=out, **options).to(DEVICE) for out in (5, 7)]


def taps_of(net: Net) -> list[str]:
    return [f"blocks.{i}" for i in range(len(net.blocks))]


def images(batch: int = 8, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator).to(DEVICE)


def wrap(both: list[Net], x: Tensor, search=None, **options) -> AuxNASWrapper:
    """A wrapper with edges that matter, those into the primary among them."""
    search = search or AuxNAS(aux_to_primary_start=0.5)
    wrapper = AuxNASWrapper(*both, taps_of(both[0]), search=search, example_inputs=x, **options)
    torch.manual_seed(2)
    stir_(wrapper)
    return wrapper


def cast(dtype: torch.dtype | None):
    """Autocast to a dtype; none where it is None."""
    return torch.autocast(DEVICE.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def worst(found: nn.Module, wanted: nn.Module) -> float:
    """Largest relative error of the gradients of one parameter, by norm."""
    others = dict(wanted.named_parameters())
    errors = [0.0]
    for name, parameter in found.named_parameters():
        a, b = parameter.grad, others[name].grad
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            a, b = a.detach().double().cpu(), b.detach().double().cpu()
            errors.append(float((a - b).norm() / b.norm().clamp(min=1e-12)))
    return max(errors)


def train_(wrapper: AuxNASWrapper, x: Tensor, steps: int = 8, dtype: torch.dtype | None = None) -> list[int]:
    """Some steps over the closing of the edges into the primary; how many were open after each."""
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-4, gate_lr=1e-2))
    counts = []
    for step in range(steps):
        with cast(dtype):
            loss = loss_of(wrapper(x)) + wrapper.search_penalty(step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        counts.append(sum(edge.open for edge in wrapper.architecture() if edge.direction.inward))
    return counts
