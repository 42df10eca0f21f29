"""NYU v2: 795 training and 654 test images of rooms, with 40 classes, surface normals and depth.

DIR/nyu_depth_v2_labeled.mat         "Labeled dataset" of the NYU Depth Dataset V2
DIR/splits.mat                       "Train/test splits" of the same page
DIR/classMapping40.mat               40 classes of Gupta et al., CVPR 2013
DIR/normals_gt/normals/0000.png ...  surface normals of Ladicky/Eigen & Fergus, "normals_gt.tgz"; only for this task
DIR/normals_gt/masks/0000.png ...    where they are known
"""

from pathlib import Path
from typing import Any

import torch
from files import missing, picture
from maps import UNKNOWN_CLASS, Depth, Normals
from tasks import DEPTH, NORMALS, segmentation
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.tv_tensors import Image, Mask

LABELLED, SPLITS, CLASSES = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
SOURCES = {
    LABELLED: 'the "Labeled dataset" of the NYU Depth Dataset V2',
    SPLITS: 'the "Train/test splits" of the NYU Depth Dataset V2',
    CLASSES: "the 40 classes of Gupta et al., CVPR 2013 (classMapping40.mat)",
    "normals_gt": "the surface normals of NYU v2 as images (normals_gt.tgz, with masks)",
}
TASKS = {task.name: task for task in (segmentation(40), NORMALS, DEPTH)}
RESOLUTION = (480, 640)  # of images, before they are cropped or judged; its own


class Samples(Dataset[dict[str, Any]]):
    """Samples of ``"image"`` and the labels of some tasks.

    Args:
        root: The folder above.
        train: The 795 training images, or the 654 test images.
        tasks: Of "segmentation", "normals", "depth".

    Raises:
        FileNotFoundError: If files are missing; it names all, and what they are.
        ValueError: If normals are not encoded as images of ``(v + 1) / 2``.
    """

    def __init__(self, root: Path, train: bool, tasks: tuple[str, ...]) -> None:
        from scipy.io import loadmat

        needed = [LABELLED, SPLITS] + [CLASSES] * ("segmentation" in tasks) + ["normals_gt"] * ("normals" in tasks)
        missing(root, {name: SOURCES[name] for name in needed})
        self.root, self.tasks = root, tasks
        split = loadmat(root / SPLITS)["trainNdxs" if train else "testNdxs"]
        self.numbers = [int(number) - 1 for number in split.flatten()]  # from 1 in the file
        if "segmentation" in tasks:
            classes = torch.as_tensor(loadmat(root / CLASSES)["mapClass"].astype("int64")).flatten() - 1
            self.classes = torch.cat([torch.tensor([UNKNOWN_CLASS]), classes])  # 0 is unlabelled
        self.file: Any = None  # opened by each worker of a loader

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> dict[str, Any]:
        import h5py

        number = self.numbers[place]
        self.file = self.file or h5py.File(self.root / LABELLED)
        sample: dict[str, Any] = {"image": Image(self._upright("images", number))}
        if "segmentation" in self.tasks:
            sample["segmentation"] = Mask(self.classes[self._upright("labels", number).long()])
        if "depth" in self.tasks:
            sample["depth"] = Depth(self._upright("depths", number).unsqueeze(0))
        if "normals" in self.tasks:
            sample["normals"] = self._normals(number)
        return sample

    def _upright(self, key: str, number: int) -> Tensor:
        """Columns first in the file, as in MATLAB."""
        return torch.as_tensor(self.file[key][number].astype("int64" if key == "labels" else self.file[key].dtype)).mT

    def _normals(self, number: int) -> Normals:
        folder = self.root / "normals_gt"
        encoded = picture(folder / "normals" / f"{number:04d}.png")
        known = picture(folder / "masks" / f"{number:04d}.png")[0] > 0
        return decode(encoded, known, f"{number:04d}.png")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"file": None}  # an open file is not for another process


def decode(encoded: Tensor, known: Tensor, name: str) -> Normals:
    """Unit vectors from an image ``(3, h, w)`` of ``(v + 1) / 2`` with x right, z forward, y up as its channels.

    Raises:
        ValueError: If its vectors are not of length 1.
    """
    right, forward, up = encoded.float() / 127.5 - 1
    vectors = torch.stack([right, up, forward])
    length = vectors.norm(dim=0)
    known = known & (encoded != 255).any(0) & (length > 0.5)  # some are grey: no vector
    if known.any() and not 0.9 < (middle := length[known].median().item()) < 1.1:
        raise ValueError(f"{name}: normals must be encoded as 127.5 (v + 1), of length 1; their length is {middle:.2f}")
    return Normals(vectors / length.clamp(min=1e-6) * known)
