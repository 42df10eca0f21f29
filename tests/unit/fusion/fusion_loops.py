"""Fusions as plain loops over numbers, to compare with."""

import io
import itertools
import math

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

NORMS = [None, nn.LayerNorm, nn.BatchNorm1d]
ACTIVATIONS = {None: lambda v: v, F.relu: lambda v: max(v, 0.0), F.gelu: lambda v: v * (1 + math.erf(v / 2**0.5)) / 2}


def rows_of(x, channel_dim):
    """Every place of a feature: its index with a slice for the channels, and its channels."""
    channel_dim %= x.dim()
    others = [range(size) if dim != channel_dim else [slice(None)] for dim, size in enumerate(x.shape)]
    return [(index, x[index].tolist()) for index in itertools.product(*others)]


def normalised(rows, norm, training):
    """LayerNorm or BatchNorm1d over rows, as torch documents them."""
    if norm is None:
        return rows
    scale, shift = norm.weight.tolist(), norm.bias.tolist()
    if isinstance(norm, nn.LayerNorm):
        moments = []
        for row in rows:
            mean = sum(row) / len(row)
            moments.append([(mean, sum((v - mean) ** 2 for v in row) / len(row))] * len(row))
    elif training:
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        spread = [sum((row[c] - m) ** 2 for row in rows) / len(rows) for c, m in enumerate(means)]
        moments = [list(zip(means, spread, strict=True))] * len(rows)
    else:
        moments = [list(zip(norm.running_mean.tolist(), norm.running_var.tolist(), strict=True))] * len(rows)
    return [
        [(row[c] - m) / math.sqrt(var + norm.eps) * scale[c] + shift[c] for c, (m, var) in enumerate(at)]
        for row, at in zip(rows, moments, strict=True)
    ]


def stir_(fusion):
    """Give weights, norms and running statistics values that matter."""
    for name, tensor in itertools.chain(fusion.named_parameters(), fusion.named_buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor.data, 0.5, 1.5) if "running_var" in name else nn.init.normal_(tensor.data)
    return fusion


def feature(channels, places, channel_dim, batch=2):
    shape = [batch, *places]
    shape.insert(1 if channel_dim == 1 else len(shape), channels)
    return torch.randn(shape, dtype=torch.float64)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def mixed(weight, row):
    return [sum(w * v for w, v in zip(line, row, strict=True)) for line in weight.tolist()]


def summed(fusion, x, sources, gates, own, edge):
    """own(row of x) + sum_j gate_j * edge(j, row of source_j), row by row."""
    rows = [own(row) for _, row in rows_of(x, fusion.channel_dim)]
    for j, (source, gate) in enumerate(zip(sources, gates, strict=True)):
        for sums, (_, row) in zip(rows, rows_of(source, fusion.channel_dim), strict=True):
            for c, v in enumerate(edge(j, row) if gate else []):
                sums[c] += gate * v
    return rows


def as_feature(fusion, x, rows):
    result = torch.empty_like(x)
    for (index, _), row in zip(rows_of(x, fusion.channel_dim), rows, strict=True):
        result[index] = torch.tensor(row, dtype=x.dtype)
    return result


@st.composite
def settings_of(draw):
    channel_dim = draw(st.sampled_from([1, -1]))
    places = draw(st.lists(st.integers(1, 3), max_size=3).filter(lambda p: math.prod(p) <= 12))
    gates = draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), max_size=3))
    return draw(st.integers(1, 4)), channel_dim, places, gates
