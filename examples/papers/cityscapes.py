"""Cityscapes: 2,975 training and 500 validation images of streets, with 19 classes and disparity.

DIR/leftImg8bit/train/CITY/*_leftImg8bit.png  "leftImg8bit_trainvaltest.zip"
DIR/gtFine/train/CITY/*_gtFine_labelIds.png   "gtFine_trainvaltest.zip"
DIR/disparity/train/CITY/*_disparity.png      "disparity_trainvaltest.zip"; only for this task
"""

from pathlib import Path
from typing import Any

import torch
from files import missing
from maps import UNKNOWN_CLASS, Disparity
from PIL import Image as Pictures
from tasks import DISPARITY, segmentation
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.tv_tensors import Image, Mask

SOURCES = {
    "leftImg8bit": "leftImg8bit_trainvaltest.zip of the Cityscapes data set",
    "gtFine": "gtFine_trainvaltest.zip of the Cityscapes data set",
    "disparity": "disparity_trainvaltest.zip of the Cityscapes data set",
}
TASKS = {task.name: task for task in (segmentation(19), DISPARITY)}
RESOLUTION = (512, 1024)  # of images, before they are cropped or judged; half its own: ours
IDS = torch.full((256,), UNKNOWN_CLASS)
for city_class in datasets.Cityscapes.classes:
    if 0 <= city_class.train_id < 19:
        IDS[city_class.id] = city_class.train_id


class Samples(datasets.Cityscapes):
    """Samples of ``"image"`` and the labels of some tasks.

    Args:
        root: The folder above.
        train: The training images, or the validation images, on which methods are compared.
        tasks: Of "segmentation", "disparity".

    Raises:
        FileNotFoundError: If folders are missing, or files of disparity; it names all, and what they are.
    """

    def __init__(self, root: Path, train: bool, tasks: tuple[str, ...]) -> None:
        needed = {f"{name}/{'train' if train else 'val'}": what for name, what in SOURCES.items()}
        if "disparity" not in tasks:
            needed = {name: what for name, what in needed.items() if not name.startswith("disparity")}
        missing(root, needed)
        super().__init__(str(root), split="train" if train else "val", target_type="semantic")
        self.tasks = tasks
        if "disparity" in tasks:
            files = {str(self._disparity(name).relative_to(root)): SOURCES["disparity"] for name in self.images}
            missing(root, files)

    def __getitem__(self, index: int) -> Any:
        picture, ids = super().__getitem__(index)
        sample: dict[str, Any] = {"image": Image(picture)}
        if "segmentation" in self.tasks:
            sample["segmentation"] = Mask(IDS[pil_to_tensor(ids)[0].long()])
        if "disparity" in self.tasks:
            sample["disparity"] = decode(pil_to_tensor(Pictures.open(self._disparity(self.images[index]))))
        return sample

    def _disparity(self, image: str) -> Path:
        """Beside an image, in the folder of disparities."""
        file = Path(image)
        split, city = file.parts[-3:-1]
        return Path(self.root) / "disparity" / split / city / file.name.replace("leftImg8bit", "disparity")


def decode(encoded: Tensor) -> Disparity:
    """Pixels from 16 bits, ``256 d + 1``; 0 is unknown, and so is d = 0, which is infinitely far."""
    return Disparity((encoded.float() - 1).clamp(min=0) / 256)
