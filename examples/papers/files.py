"""Files of data sets: which are missing, and pictures as tensors."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor


def missing(root: Path, needed: Mapping[str, str]) -> None:
    """Check that files or folders are there.

    Args:
        root: Where.
        needed: What they are, by name.

    Raises:
        FileNotFoundError: It names all that are missing, and what to fetch.
    """
    absent = [f"  {name}: {what}" for name, what in needed.items() if not (root / name).exists()]
    if absent:
        raise FileNotFoundError(
            f"{root} lacks files; fetch them by their names and put them there:\n" + "\n".join(absent)
        )


def picture(file: Path) -> Tensor:
    """RGB ``(3, h, w)``, or grey repeated, in uint8."""
    with Image.open(file) as opened:
        return pil_to_tensor(opened.convert("RGB"))
