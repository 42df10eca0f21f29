"""Taskonomy: indoor images with probabilities of objects and of scenes, as other networks gave them.

DIR/rgb/[taskonomy/]BUILDING/point_P_view_V_domain_rgb.png
DIR/class_object/[taskonomy/]BUILDING/point_P_view_V_domain_class_object.npy  1,000 probabilities
DIR/class_scene/[taskonomy/]BUILDING/point_P_view_V_domain_class_scene.npy    365 probabilities
DIR/train_val_test_tiny.csv                                                   buildings: id,train,val,test
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from files import missing, picture
from tasks import classification
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.tv_tensors import Image

SPLITS = "train_val_test_tiny.csv"
SOURCES = {
    "rgb": "rgb of the Taskonomy data set",
    "class_object": "class_object of the Taskonomy data set",
    "class_scene": "class_scene of the Taskonomy data set",
    SPLITS: 'the "tiny" split of its buildings, in splits_taskonomy.zip',
}
CLASSES = {"class_object": 1000, "class_scene": 365}
TASKS = {name: classification(name, classes) for name, classes in CLASSES.items()}
RESOLUTION = (512, 512)  # of images, before they are cropped or judged; its own


class Samples(Dataset[dict[str, Any]]):
    """Samples of ``"image"`` and the labels of some tasks: probabilities.

    Args:
        root: The folder above.
        train: The buildings for training, or those for validation, on which methods are compared.
        tasks: Of "class_object", "class_scene".

    Raises:
        FileNotFoundError: If folders or labels are missing; it names all, and what they are.
    """

    def __init__(self, root: Path, train: bool, tasks: tuple[str, ...]) -> None:
        missing(root, {name: SOURCES[name] for name in ("rgb", *tasks, SPLITS)})
        with (root / SPLITS).open(newline="") as file:
            chosen = {row["id"] for row in csv.DictReader(file) if row["train" if train else "val"] == "1"}
        self.root, self.tasks = root, tasks
        self.images = sorted(file for file in (root / "rgb").rglob("*.png") if file.parent.name in chosen)
        if not self.images:
            raise FileNotFoundError(f"{root / 'rgb'} has no image of the {len(chosen)} buildings of {SPLITS}")
        labels = {str(self._labels(file, task)): SOURCES[task] for file in self.images for task in tasks}
        missing(root, labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Any]:
        file = self.images[place]
        sample: dict[str, Any] = {"image": Image(picture(file))}
        sample |= {task: probabilities(self.root / self._labels(file, task)) for task in self.tasks}
        return sample

    def _labels(self, image: Path, task: str) -> Path:
        """Of an image, from the root."""
        folders = image.relative_to(self.root / "rgb").parent
        return Path(task) / folders / image.name.replace("domain_rgb.png", f"domain_{task}.npy")


def probabilities(file: Path) -> Tensor:
    """That sum to 1."""
    found = torch.from_numpy(np.load(file).astype("float32")).flatten()
    return found / found.sum()
