"""Tiny data sets of noise in exactly the formats of the real ones, to try code: a few images each."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Array = np.ndarray
COUNT, SIZE = 6, (48, 64)  # images; of an image, (h, w)


def nyuv2(root: Path) -> None:
    """A MATLAB 7.3 file with axes reversed, splits that count from 1, 894 classes, normals and masks as images."""
    import h5py
    from scipy.io import savemat

    random = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = random.integers(0, 256, (COUNT, 3, *SIZE[::-1]), dtype=np.uint8)
        file["labels"] = random.integers(0, 895, (COUNT, *SIZE[::-1]), dtype=np.uint16)
        file["depths"] = random.uniform(1, 10, (COUNT, *SIZE[::-1])).astype(np.float32)
    with (root / "nyu_depth_v2_labeled.mat").open("r+b") as raw:  # as MATLAB begins such files
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    half = np.arange(1, COUNT + 1, dtype=np.uint16)[:, None]
    savemat(root / "splits.mat", {"trainNdxs": half[: COUNT - 2], "testNdxs": half[COUNT - 2 :]})
    savemat(root / "classMapping40.mat", {"mapClass": random.integers(1, 41, (1, 894), dtype=np.uint8)})
    vectors = random.normal(size=(COUNT, *SIZE, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    for number in range(COUNT):
        known = np.full(SIZE, 255, np.uint8)
        known[:4] = 0
        picture(root / "normals_gt" / "normals" / f"{number:04d}.png", np.round(127.5 * (vectors[number] + 1)))
        picture(root / "normals_gt" / "masks" / f"{number:04d}.png", known)


def cityscapes(root: Path) -> None:
    """Images, ids of classes in 8 bits, disparities in 16 bits."""
    random = np.random.default_rng(0)
    for split, count in (("train", COUNT - 2), ("val", 2)):
        for number in range(count):
            name = f"ulm/ulm_{number:06d}_000019"
            picture(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", random.integers(0, 256, (*SIZE, 3)))
            picture(root / "gtFine" / split / f"{name}_gtFine_labelIds.png", random.integers(0, 34, SIZE))
            disparity = random.integers(0, 32_513, SIZE).astype(np.uint16)
            picture(root / "disparity" / split / f"{name}_disparity.png", disparity)


def taskonomy(root: Path) -> None:
    """Images, and probabilities as NumPy files."""
    random = np.random.default_rng(0)
    for building, count in (("allensville", COUNT - 2), ("collierville", 2)):
        for number in range(count):
            name = f"taskonomy/{building}/point_{number}_view_0_domain"
            picture(root / "rgb" / f"{name}_rgb.png", random.integers(0, 256, (*SIZE, 3)))
            for task, classes in (("class_object", 1000), ("class_scene", 365)):
                file = root / task / f"{name}_{task}.npy"
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, random.dirichlet(np.ones(classes)).astype(np.float32))
    with (root / "train_val_test_tiny.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([("id", "train", "val", "test"), ("allensville", 1, 0, 0), ("collierville", 0, 1, 0)])


def picture(file: Path, values: Array) -> None:
    """A PNG of 8 bits, or of 16 if the values are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values if values.dtype == np.uint16 else values.astype(np.uint8)).save(file)


MAKERS: dict[str, Callable[[Path], None]] = {"nyuv2": nyuv2, "cityscapes": cityscapes, "taskonomy": taskonomy}
