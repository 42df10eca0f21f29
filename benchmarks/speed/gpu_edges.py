"""Ways to compute the three edges into one feature, forward and backward, with nothing around them."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from gpu_counts import Step
from torch import Tensor

from auxnas_layers.fusion import project

Form = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Tensor]
"""From the feature that receives, the sources, their weights and their gates: the fused feature."""
LOW = torch.bfloat16


def library(x: Tensor, sources: Sequence[Tensor], weights: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """A projection for each source, as `CrossTaskFusion` adds them; channels by the number of dimensions."""
    out = x
    for source, weight, gate in zip(sources, weights, gates):
        out = out + project(source, gate * weight, -1 if x.dim() == 3 else 1).to(x.dtype)
    return out


def addmm(x: Tensor, sources: Sequence[Tensor], weights: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """A chain of products, each of which adds to the one before."""
    last = x if x.dim() == 3 else x.movedim(1, -1)
    out = last.flatten(0, -2).to(LOW)
    for source, weight, gate in zip(sources, weights, gates):
        rows = (source if x.dim() == 3 else source.movedim(1, -1)).flatten(0, -2).to(LOW)
        out = torch.addmm(out, rows, (gate * weight).to(LOW).mT)
    out = out.view(last.shape).to(x.dtype)
    return out if x.dim() == 3 else out.movedim(-1, 1)


def concatenated(x: Tensor, sources: Sequence[Tensor], weights: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """One product over the channels of all sources."""
    weight = torch.cat([gate * weight for weight, gate in zip(weights, gates)], 1).to(LOW)
    if x.dim() == 3:
        return x + F.linear(torch.cat([source.to(LOW) for source in sources], -1), weight).to(x.dtype)
    return x + F.conv2d(torch.cat([source.to(LOW) for source in sources], 1), weight[..., None, None]).to(x.dtype)


def baddbmm(x: Tensor, sources: Sequence[Tensor], weights: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """Batched products that add to the one before; rows of tokens as columns of a matrix, places as they are."""
    out = (x.mT if x.dim() == 3 else x.flatten(2)).to(LOW)
    for source, weight, gate in zip(sources, weights, gates):
        columns = (source.mT if x.dim() == 3 else source.flatten(2)).to(LOW)
        out = torch.baddbmm(out, (gate * weight).to(LOW).expand(len(x), -1, -1), columns)
    return (out.mT if x.dim() == 3 else out.view(x.shape)).to(x.dtype)


def linear(x: Tensor, sources: Sequence[Tensor], weights: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
    """Linear layers over the last dimension, to which channels are moved: of channels_last a view."""
    out = x if x.dim() == 3 else x.movedim(1, -1)
    for source, weight, gate in zip(sources, weights, gates):
        rows = source if x.dim() == 3 else source.movedim(1, -1)
        out = out + F.linear(rows, gate * weight).to(x.dtype)
    return out if x.dim() == 3 else out.movedim(-1, 1)


FORMS: dict[str, Form] = {
    "as the library": library,
    "chain of addmm": addmm,
    "one product": concatenated,
    "baddbmm": baddbmm,
    "linear": linear,
}
PLACES = {
    "tokens, fp32": ((197, 768), torch.float32, torch.contiguous_format),
    "tokens, bf16": ((197, 768), LOW, torch.contiguous_format),
    "places, NCHW": ((512, 28, 28), LOW, torch.contiguous_format),
    "places, channels_last": ((512, 28, 28), LOW, torch.channels_last),
}
TINY = {3: (5, 48), 4: (16, 4, 4)}


def edge_steps(place: str, device: torch.device, batch: int, tiny: bool) -> dict[str, Step]:
    """Forward and backward of each form, under autocast, on the same tensors; checks that all give the same."""
    torch.manual_seed(0)
    shape, dtype, layout = PLACES[place]
    shape = TINY[len(shape) + 1] if tiny else shape
    width = shape[-1] if len(shape) == 2 else shape[0]
    x, *sources = (
        torch.randn(batch, *shape, device=device, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
        for _ in range(4)
    )
    weights = [torch.randn(width, width, device=device).mul_(width**-0.5).requires_grad_() for _ in range(3)]
    gates = torch.full((3,), 0.5, device=device, requires_grad=True)
    leaves, steps, wanted = [x, *sources, *weights, gates], {}, None
    for name, form in FORMS.items():

        def step(form: Form = form) -> Tensor:
            with torch.autocast(device.type, LOW):
                out = form(x, sources, weights, gates.unbind())
            torch.autograd.grad(out, leaves, torch.ones_like(out))
            return out.detach()

        found = step()
        wanted = found if wanted is None else wanted
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.15)
        steps[name] = step
    return steps
