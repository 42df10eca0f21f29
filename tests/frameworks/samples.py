"""What a user has before a framework comes in: two small networks, data and losses; and what must hold at the end."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from helpers import assert_same
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from auxnas_layers import AuxNASOutput, AuxNASWrapper

EPOCHS, STEPS, BATCH = 6, 12, 8  # two steps an epoch
STATES = ["primary_net", "aux_net", "fusions", "gates"]


class Net(nn.Module):
    """A primary or auxiliary network."""

    def __init__(self, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.second(self.dropout(self.first(inputs).relu())).relu())


def wrap(seed: int = 0, dropout: float = 0.0) -> AuxNASWrapper:
    torch.manual_seed(seed)
    return AuxNASWrapper(Net(2, dropout), Net(3, dropout), taps=["first", "second"], example_inputs=INPUTS[:2])


_DRAW = torch.Generator().manual_seed(1)
INPUTS = torch.randn(16, 6, generator=_DRAW)
LABELS, OTHERS = (INPUTS.sum(1) > 0).long(), INPUTS[:, :3].argmax(1)


def batches(batch: int = BATCH, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(INPUTS, LABELS, OTHERS), batch_size=batch, shuffle=shuffle)


class Rows(Dataset[dict[str, Tensor]]):
    """The same data, as dictionaries."""

    def __init__(self, labelled: bool = True) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        labels = {"labels": LABELS[row], "others": OTHERS[row]} if self.labelled else {}
        return {"inputs": INPUTS[row], **labels}


def loss_of(out: AuxNASOutput, labels: Tensor, others: Tensor) -> Tensor:
    return F.cross_entropy(out.primary, labels) + F.cross_entropy(out.aux, others)


# What must hold at the end


def assert_trained(wrapper: AuxNASWrapper, seed: int = 0, dropout: float = 0.0) -> None:
    """Every network and the edges have moved, the primary has learned, and no edge into it is open."""
    before = wrap(seed, dropout)
    for name in STATES:
        old, new = (getattr(one, name).state_dict() for one in (before, wrapper))
        assert any(not torch.equal(old[key], new[key]) for key in old), name
    losses = [F.cross_entropy(copy.deepcopy(one.primary_net).eval()(INPUTS), LABELS) for one in (before, wrapper)]
    assert losses[1] < losses[0]
    assert not any(edge.open for edge in wrapper.architecture() if edge.direction.inward)


def assert_exports(wrapper: AuxNASWrapper, dropout: float = 0.0) -> None:
    """A plain network of the plain class, with plain keys, which computes what the wrapper's primary does."""
    exported = wrapper.export_primary()
    plain = Net(2, dropout)
    assert wrapper.export_report is not None and wrapper.export_report.exact
    assert type(exported) is Net and list(exported.state_dict()) == list(plain.state_dict())
    assert [vars(m).keys() for m in exported.modules()] == [vars(m).keys() for m in plain.modules()]
    assert not any(parts for parts in hooks(exported))
    plain.load_state_dict(exported.state_dict())
    wrapper.eval()
    assert_same(plain.eval()(INPUTS), exported.eval()(INPUTS))
    assert_same(plain(INPUTS), type(wrapper).forward(wrapper, INPUTS).primary)


def hooks(net: nn.Module) -> Iterator[Any]:
    for module in net.modules():
        yield from (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)


def assert_equal_states(found: dict[str, Tensor], wanted: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    assert found.keys() == wanted.keys()
    assert not [key for key in wanted if key not in but and not torch.equal(found[key], wanted[key])]


def assert_close_states(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Equal up to rounding; but for gates that are closed, whose numbers mean nothing."""
    assert found.keys() == wanted.keys()
    for key in wanted:
        if not key.endswith("aux_to_primary.alpha"):
            torch.testing.assert_close(
                found[key], wanted[key], atol=1e-4, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}"
            )
