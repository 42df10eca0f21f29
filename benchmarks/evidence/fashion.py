"""Two garments of Fashion-MNIST in one frame: the class of one, helped by the class of the other.

The images come from the Debian package dataset-fashion-mnist.
"""

import gzip
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from demo import Residual, conv
from problem import Aux, Batch, Problem
from torch import Tensor, nn

from auxnas_layers import Listener

FRAMES = {"train": 6000, "validation": 1500, "test": 2500}
FILES = {"train": "train", "test": "t10k"}  # names of the package's files begin so
PACKAGE = "dataset-fashion-mnist"
PLACES = Path("data/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist")
GARMENT, FRAME = 28, 36  # side in pixels
WIDTH = 16

Images = tuple[Tensor, Tensor]
"""Garments ``(n, 28, 28)``, in [0, 255], and their classes ``(n,)``, 0 to 9."""


def load(fast: bool) -> dict[str, Batch]:
    """Frames of two garments: 6000 and 1500 of the training images, 2500 of the test images."""
    if fast:
        return frames(made_up(120), made_up(32), {"train": 32, "validation": 16, "test": 16})
    file = Path("data") / "fashion-images.pt"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        torch.save(read(), file)
    images = torch.load(file, weights_only=True)
    return frames(images["train"], images["test"], FRAMES)


def frames(train: Images, test: Images, counts: dict[str, int]) -> dict[str, Batch]:
    """Frames of pairs of garments; each garment is in one frame."""
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(train[0]), generator=random)
    first = 2 * counts["train"]
    parts = {
        "train": (train, order[:first]),
        "validation": (train, order[first : first + 2 * counts["validation"]]),
        "test": (test, torch.randperm(len(test[0]), generator=random)[: 2 * counts["test"]]),
    }
    return {name: _batch(*images, chosen) for name, (images, chosen) in parts.items()}


def _batch(images: Tensor, classes: Tensor, chosen: Tensor) -> Batch:
    upper, lower = chosen.view(2, -1)
    drawn = compose(images[upper], images[lower]).unsqueeze(1)
    return {"input": drawn.float() / 255, "primary": classes[upper].long(), "lower": classes[lower].long()}


def compose(upper: Tensor, lower: Tensor) -> Tensor:
    """Frames ``(n, 36, 36)``: one garment in the upper left, one in the lower right; the brighter pixel is seen."""
    rest = FRAME - GARMENT
    return torch.maximum(F.pad(upper, (0, rest, 0, rest)), F.pad(lower, (rest, 0, rest, 0)))


def made_up(count: int) -> Images:
    """Noise in the format of the garments."""
    random = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, GARMENT, GARMENT), generator=random, dtype=torch.uint8)
    return images, torch.randint(10, (count,), generator=random, dtype=torch.uint8)


def read() -> dict[str, Images]:
    """Training and test images of the installed package, or of one that is downloaded and not installed."""
    for folder in PLACES:
        if folder.exists():
            return read_folder(folder)
    with tempfile.TemporaryDirectory() as scratch:
        return read_folder(download(Path(scratch)))


def read_folder(folder: Path) -> dict[str, Images]:
    """Training and test images of the four files of the data set."""
    return {
        split: (
            _bytes(folder / f"{name}-images-idx3-ubyte.gz", 16).view(-1, GARMENT, GARMENT),
            _bytes(folder / f"{name}-labels-idx1-ubyte.gz", 8),
        )
        for split, name in FILES.items()
    }


def _bytes(file: Path, header: int) -> Tensor:
    return torch.frombuffer(bytearray(gzip.decompress(file.read_bytes())), dtype=torch.uint8)[header:]


def download(folder: Path) -> Path:
    """Unpack the Debian package in a folder; gives where the data are."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise RuntimeError(_help("there is no apt-get here"))
    apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root"]  # otherwise root's apt warns of the folder
    done = subprocess.run([*apt, "download", PACKAGE], cwd=folder, capture_output=True, text=True)
    if done.returncode:  # the lists of packages may be missing
        subprocess.run([*apt, "update"], capture_output=True)
        done = subprocess.run([*apt, "download", PACKAGE], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(_help(done.stderr.strip()))
    subprocess.run(["dpkg-deb", "-x", next(folder.glob("*.deb")), folder], check=True)
    return folder / PLACES[1].relative_to("/")


def _help(reason: str) -> str:
    return (
        f"cannot get the Debian package {PACKAGE}: {reason}\n"
        f"install it (sudo apt-get update; sudo apt-get install {PACKAGE}),\n"
        f"or put Fashion-MNIST's four files, *-ubyte.gz, into {PLACES[0].resolve()}"
    )


class Frames(nn.Module):
    """Frames ``(b, 1, 36, 36)`` to logits ``(b, 10)``."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(conv(1, width, kernel=5, stride=2), Residual(width))
        self.stage2 = nn.Sequential(conv(width, 2 * width, stride=2), Residual(2 * width))
        self.stage3 = nn.Sequential(conv(2 * width, 4 * width, stride=2), Residual(4 * width))
        self.stage4 = Residual(4 * width)
        self.head = head(4 * width)

    def features(self, images: Tensor) -> Tensor:
        """All but the head: ``(b, 4 * width, 5, 5)``."""
        return self.stage4(self.stage3(self.stage2(self.stage1(images))))

    def predict(self, features: Tensor) -> Tensor:
        """The head's logits."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.features(images))


def head(channels: int) -> nn.Module:
    """From maps to logits of the classes."""
    return nn.Sequential(conv(channels, channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class ListeningHead(nn.Module):
    """The head on two features that it hears."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.fine, self.coarse = Listener(2 * width), Listener(4 * width)
        self.down = conv(2 * width, 4 * width, stride=2)
        self.head = head(4 * width)

    def forward(self, images: Tensor) -> Tensor:
        fine, coarse = (side // 4 for side in images.shape[-2:]), (-(-side // 8) for side in images.shape[-2:])
        return self.head(self.down(self.fine(images, *fine)) + self.coarse(images, *coarse))


def mistakes(logits: Tensor, classes: Tensor) -> Tensor:
    """100 for each frame whose class is wrong, so that the mean is in per cent."""
    return 100 * (logits.argmax(1) != classes).float()


TAPS = "stage1", "stage2", "stage3", "stage4"
HEARS = ("stage2", "fine"), ("stage4", "coarse")
UPPER_BY_LOWER = Problem(
    name="upper garment <- lower garment",
    metric="error rate, %",
    load=load,
    net=Frames,
    loss=F.cross_entropy,
    errors=mistakes,
    auxes={"lower": Aux(Frames, F.cross_entropy, TAPS, head=(ListeningHead, HEARS))},
    batch=16,
)
