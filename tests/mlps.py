"""Two joined networks of three layers, for tests of how a forward runs."""

import torch
from helpers import PLAIN, stir_
from torch import nn

from auxnas_layers import AuxNAS, AuxNASWrapper


class Mlp(nn.Module):
    """Two tapped layers; `around` is entered around the first one."""

    def __init__(self, around=None):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.around = around

    def forward(self, x):
        if self.around is None:
            x = self.a(x)
        else:
            with self.around():
                x = self.a(x)
        return self.head(self.b(x.relu().float()))


class Noisy(nn.Module):
    """With all that a forward in train mode leaves behind."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop, self.last = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


def wrap(primary=None, aux=None, search=None, **options):
    wrapper = AuxNASWrapper(
        primary or Mlp(),
        aux or Mlp(),
        taps=["a", "b"],
        search=search or AuxNAS(own_share=0.5, start="scaled", aux_to_primary_start=0.5),
        **{"example_inputs": torch.randn(3, 4), **options},
    )
    if search is not PLAIN:
        stir_(wrapper)
    return wrapper


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
