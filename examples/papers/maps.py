"""Dense labels that know what a flip, a rotation or a zoom does to them, and the transforms of the papers.

A label that is not known is 0 in a map of vectors, depths or disparities, and 255 in a map of classes.
"""

from math import cos, radians, sin
from typing import Any

import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.tv_tensors import Image, Mask, wrap

UNKNOWN_CLASS = 255


class Normals(Mask):
    """Unit vectors ``(3, h, w)``: x to the right, y up, z forward; zero where unknown."""


class Depth(Mask):
    """Distances ``(1, h, w)`` in metres; 0 where unknown."""


class Disparity(Mask):
    """Shifts ``(1, h, w)`` between two cameras in pixels of this map; 0 where unknown."""


FILL = {Image: 0, Mask: UNKNOWN_CLASS, Normals: 0, Depth: 0, Disparity: 0}


@F.register_kernel("horizontal_flip", Normals)
def flip_normals(normals: Normals, *args: Any, **kwargs: Any) -> Normals:
    """Mirrored in x: the left wall of a room becomes its right wall."""
    return wrap(normals.flip(-1) * normals.new_tensor([-1, 1, 1]).view(3, 1, 1), like=normals)


@F.register_kernel("rotate", Normals)
def rotate_normals(normals: Normals, angle: float, *args: Any, **kwargs: Any) -> Normals:
    """Turned with the image, counter-clockwise by degrees."""
    x, y, z = F.rotate(Mask(normals), angle, *args, **kwargs).unbind(-3)
    turn = radians(angle)
    return wrap(torch.stack([cos(turn) * x - sin(turn) * y, sin(turn) * x + cos(turn) * y, z]), like=normals)


class Resize(T.Transform):
    """The whole picture at another resolution ``(h, w)``; a disparity counts pixels, so it shrinks with them."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = list(size)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Images bilinearly, labels from the nearest pixel."""
        resized = F.resize(inpt, self.size, antialias=True)
        if isinstance(inpt, Disparity):
            resized = wrap(resized * (self.size[1] / inpt.shape[-1]), like=inpt)
        return resized


class RandomZoom(T.Transform):
    """Zoom by a random factor, then a random crop of a fixed size; what is missing at the borders is unknown.

    Args:
        size: ``(h, w)`` of the crop.
        zoom: Range of the factor, over the picture as it comes.
        p: Probability of a zoom; otherwise the picture is only cropped.
    """

    def __init__(self, size: tuple[int, int], zoom: tuple[float, float], p: float = 1.0) -> None:
        super().__init__()
        self.size, self.zoom, self.p = size, zoom, p

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The factor, the zoomed size, and where the crop begins."""
        height, width = next(inpt.shape[-2:] for inpt in flat_inputs if isinstance(inpt, tv_tensors.TVTensor))
        chance, place = torch.rand(()).item(), torch.rand(2).tolist()
        zoom = torch.empty(()).uniform_(*self.zoom).item() if chance < self.p else 1.0
        zoomed = [max(1, round(zoom * height)), max(1, round(zoom * width))]
        top, left = (round(share * (have - want)) for share, have, want in zip(place, zoomed, self.size))
        return {"zoom": zoom, "zoomed": zoomed, "top": top, "left": left}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """A zoomed scene looks nearer: its depth shrinks, and its disparity grows."""
        found = F.resize(inpt, params["zoomed"], antialias=True)
        if isinstance(inpt, Depth):
            found = wrap(found / params["zoom"], like=inpt)
        if isinstance(inpt, Disparity):
            found = wrap(found * params["zoom"], like=inpt)
        height, width = self.size
        top, left = -params["top"], -params["left"]  # of the zoomed picture in the crop
        borders = [left, top, width - left - params["zoomed"][1], height - top - params["zoomed"][0]]
        return F.pad(found, borders, fill=FILL[type(inpt)])  # a negative border crops


class Normalise(T.Transform):
    """Images to ``(value - mean) / std`` by channel, of values in [0, 1]; labels as they are."""

    _transformed_types = (Image,)

    def __init__(self, mean: Tensor | float, std: Tensor | float) -> None:
        super().__init__()
        self.mean, self.std = (torch.as_tensor(value).view(-1, 1, 1) for value in (mean, std))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """In float32."""
        return wrap((F.to_dtype(inpt, torch.float32, scale=True) - self.mean) / self.std, like=inpt)
