"""Detection: class maps of all images help a torchvision Faster R-CNN that has boxes for 24; on CPU or GPU."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import box_iou
from tqdm import tqdm

from auxnas_layers import AuxG, AuxNASWrapper, Listener

SIZE, LABELLED = 64, 24
device = "cuda" if torch.cuda.is_available() else "cpu"


def samples(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images of a square among discs; the box of the square (primary); the class of each pixel (auxiliary)."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIZE) + 0.5] * 2, indexing="xy"))
    centres, half = 8 + (SIZE - 16) * torch.rand(count, 4, 2), 6 + 4 * torch.rand(count, 4, 1)
    away = (grid - centres[..., None, None]).abs()  # (count, 4 shapes, 2, SIZE, SIZE)
    square, discs = away[:, 0].amax(1) < half[:, 0, :, None], (away[:, 1:].norm(dim=2) < half[:, 1:, :, None]).any(1)
    images = 0.5 * (square | discs)[:, None] + 0.2 * torch.randn(count, 3, SIZE, SIZE)
    boxes = torch.cat([centres - half, centres + half], 2)[:, :1].clamp(0, SIZE)
    return images.to(device), boxes.to(device), torch.where(square, 1, 2 * discs).to(device)


def detector() -> nn.Module:
    """A small Faster R-CNN: images and targets to losses in train mode, images to boxes in eval mode."""
    stages = [(nn.Conv2d(channels, 32, 3, 2, 1), nn.GroupNorm(8, 32), nn.ReLU()) for channels in (3, 32, 32)]
    backbone = nn.Sequential(*[nn.Sequential(*layers) for layers in stages])  # to an eighth of the resolution
    backbone.out_channels = 32
    sizes = {"min_size": SIZE, "max_size": SIZE, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    heads = {"box_head": TwoMLPHead(32 * 7 * 7, 64), "box_predictor": FastRCNNPredictor(64, 2)}
    numbers = {"rpn_pre_nms_top_n_train": 50, "rpn_post_nms_top_n_train": 16, "box_batch_size_per_image": 16}
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    return FasterRCNN(backbone, rpn_anchor_generator=anchors, **sizes, **heads, **numbers)


class MapHead(nn.Module):
    """A light auxiliary: a head on the backbone's features, which come in at the listener; three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.listener, self.head = Listener(32), nn.Sequential(nn.Conv2d(32, 3 * 64, 1), nn.PixelShuffle(8))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.listener(images, SIZE // 8, SIZE // 8))


def targets_of(boxes: Tensor) -> list[dict[str, Tensor]]:
    """Targets as torchvision takes them, from boxes ``(images, boxes, 4)``; all of the one class."""
    labels = torch.ones(boxes.shape[:2], dtype=torch.long, device=device)
    return [{"boxes": some, "labels": of_some} for some, of_some in zip(boxes, labels)]


def train(wrapper: AuxNASWrapper, images: Tensor, boxes: Tensor, classes: Tensor, steps: int, weight: float) -> None:
    """Under weight 0 the detector alone: without its loss the auxiliary changes nothing in the primary."""
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=2e-3))
    for step in tqdm(range(steps), "with auxiliary" if weight else "alone"):
        some, others = torch.randint(LABELLED, (4,)), torch.randint(LABELLED, len(images), (4,))
        loss = wrapper.search_penalty(step / steps)
        out = wrapper(list(images[some]), targets_of(boxes[some]), aux_inputs=(images[some],))
        loss = loss + sum(out.primary.values()) + weight * F.cross_entropy(out.aux, classes[some])
        if weight:  # in train mode the detector wants targets; its losses on images without boxes are left out
            out = wrapper(list(images[others]), targets_of(boxes[others, :0]), aux_inputs=(images[others],))
            loss = loss + weight * F.cross_entropy(out.aux, classes[others])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Train without and with the auxiliary; print how well the boxes fit, and whether the export is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="two steps")
    steps, tests = (2, 4) if parser.parse_args().fast else (200, 60)
    data, (images, boxes, _) = samples(LABELLED + 200), samples(tests)
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        nets, taps = (detector().to(device), MapHead().to(device)), [("backbone.2", "listener")]
        example = {"example_inputs": (list(images[:2]),), "aux_inputs": (images[:2],)}  # in eval mode without targets
        wrapper = AuxNASWrapper(*nets, taps, search=AuxG(), **example)
        train(wrapper, *data, steps, weight)
        net = wrapper.eval().export_primary()
        with torch.no_grad():
            found, inside = net(list(images)), wrapper(list(images), aux_inputs=(images,)).primary
        fits = [box_iou(box, ours["boxes"][:1]).sum() for box, ours in zip(boxes, found)]  # 0 where none is found
        print(f"overlap of the best box with the true one, auxiliary loss times {weight}: {sum(fits) / tests:.2f}")
    print(f"exported == primary: {all(torch.equal(a[key], b[key]) for a, b in zip(found, inside) for key in a)}")


if __name__ == "__main__":
    main()
