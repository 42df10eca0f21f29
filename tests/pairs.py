"""A pair of small convolutional networks under a search, in one line."""

import torch
from helpers import stir_
from zoo import Cnn

from auxnas_layers import MTLNAS, AuxNASWrapper, NDDRFusion

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TAPS = ["layer1", "layer2"]


def make(search=None, **options):
    options = {"fusion": NDDRFusion, "example_inputs": IMAGES, **options}
    return AuxNASWrapper(Cnn(), Cnn(), TAPS, search=search or MTLNAS(), **options)


def searched(**options):
    wrapper = make(**options)
    stir_(wrapper)
    for numbers, gate in zip(([0.9, 0.1, 0.8], [0.2, 0.7, 0.3]), wrapper.gates.values(), strict=True):
        gate.set_(numbers)
    return wrapper.eval()
