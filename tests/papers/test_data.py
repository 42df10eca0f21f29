"""Loaders, on tiny files in exactly the formats of the data sets."""

import pickle

import cityscapes
import h5py
import made_files
import numpy as np
import nyuv2
import pytest
import taskonomy
import torch
from maps import UNKNOWN_CLASS, Depth, Disparity, Normals
from PIL import Image
from scipy.io import loadmat
from torchvision.tv_tensors import Mask

MODULES = {"nyuv2": nyuv2, "cityscapes": cityscapes, "taskonomy": taskonomy}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    found = {name: tmp_path_factory.mktemp(name) for name in MODULES}
    for name, root in found.items():
        made_files.MAKERS[name](root)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_sample_has_its_image_and_the_labels_that_were_asked_for(name, roots):
    module = MODULES[name]
    for tasks in [tuple(module.TASKS), (next(iter(module.TASKS)),)]:
        samples = module.Samples(roots[name], True, tasks)
        assert len(samples) == made_files.COUNT - 2
        assert set(samples[0]) == {"image", *tasks} and samples[0]["image"].shape == (3, *made_files.SIZE)
        assert samples[0]["image"].dtype == torch.uint8
        again = pickle.loads(pickle.dumps(samples))  # for another process
        assert all(again[1][key].equal(value) for key, value in samples[1].items())
    assert len(module.Samples(roots[name], False, tasks)) == 2


@pytest.mark.parametrize("name", MODULES)
def test_all_that_is_missing_is_named_by_what_to_fetch(name, tmp_path):
    module = MODULES[name]
    with pytest.raises(FileNotFoundError) as raised:
        module.Samples(tmp_path, True, tuple(module.TASKS))
    assert all(what in str(raised.value) for what in module.SOURCES.values())


def test_nyu_is_read_upright_and_by_its_splits(roots):
    root = roots["nyuv2"]
    with h5py.File(root / nyuv2.LABELLED) as file:
        images, labels, depths = (file[key][:] for key in ("images", "labels", "depths"))
    classes = loadmat(root / nyuv2.CLASSES)["mapClass"][0]
    samples = nyuv2.Samples(root, False, tuple(nyuv2.TASKS))
    sample, number = samples[0], made_files.COUNT - 2  # the fifth, number 5 in the file
    y, x = 3, 40
    assert sample["image"][:, y, x].tolist() == images[number, :, x, y].tolist()
    assert sample["depth"][0, y, x].item() == depths[number, x, y]
    label = labels[number, x, y]
    assert sample["segmentation"][y, x].item() == (classes[label - 1] - 1 if label else UNKNOWN_CLASS)
    assert type(sample["segmentation"]) is Mask and type(sample["depth"]) is Depth
    assert sample["segmentation"].unique().max() in (39, UNKNOWN_CLASS)


def test_nyu_without_a_class_is_unknown(roots):
    samples = nyuv2.Samples(roots["nyuv2"], True, ("segmentation",))
    assert samples.classes[0] == UNKNOWN_CLASS and len(samples.classes) == 895
    assert samples.classes[1:].min() == 0 and samples.classes[1:].max() == 39


def test_normals_are_decoded_to_half_a_degree():
    torch.manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(3, 8, 9), dim=0)  # right, up, forward
    encoded = (127.5 * (true[[0, 2, 1]] + 1)).round().to(torch.uint8)
    known = torch.ones(8, 9, dtype=torch.bool)
    known[0] = False  # by the mask
    encoded[:, 1], encoded[:, 2] = 255, 128  # no vectors: white, and grey
    found = nyuv2.decode(encoded, known, "made.png")
    assert isinstance(found, Normals) and not found[:, :3].any()
    angles = torch.cosine_similarity(found[:, 3:], true[:, 3:], dim=0).clamp(-1, 1).acos().rad2deg()
    assert angles.max() < 0.5
    torch.testing.assert_close(torch.as_tensor(found[:, 3:].norm(dim=0)), torch.ones(5, 9))


def test_normals_that_are_not_encoded_are_refused():
    noise = torch.randint(200, 250, (3, 4, 4), dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"made.png: normals must be encoded as 127.5 \(v \+ 1\), of length 1; .* 1\.\d"
    ):
        nyuv2.decode(noise, torch.ones(4, 4, dtype=torch.bool), "made.png")


def test_disparities_of_16_bits_are_read(tmp_path):
    file = tmp_path / "d.png"
    Image.fromarray(np.array([[0, 1, 257, 32513]], dtype=np.uint16)).save(file)
    found = cityscapes.decode(cityscapes.pil_to_tensor(Image.open(file)))
    assert isinstance(found, Disparity) and found.tolist() == [[[0, 0, 1, 127]]]


def test_cityscapes_has_19_classes(roots):
    assert cityscapes.IDS[7] == 0 and cityscapes.IDS[33] == 18
    assert (cityscapes.IDS[[0, 6, 9, 16, 29, 30, 34, 255]] == UNKNOWN_CLASS).all()
    assert (cityscapes.IDS != UNKNOWN_CLASS).sum() == 19
    samples = cityscapes.Samples(roots["cityscapes"], True, ("segmentation",))
    ids = np.asarray(Image.open(samples.targets[1][0]))
    assert samples[1]["segmentation"][5, 7] == cityscapes.IDS[ids[5, 7]]


def test_an_image_without_its_disparity_is_named(tmp_path):
    made_files.cityscapes(tmp_path)
    lost = "disparity/train/ulm/ulm_000001_000019_disparity.png"
    (tmp_path / lost).unlink()
    cityscapes.Samples(tmp_path, True, ("segmentation",))
    with pytest.raises(FileNotFoundError, match=lost):
        cityscapes.Samples(tmp_path, True, ("disparity",))


def test_buildings_are_in_one_split_and_labels_are_probabilities(roots):
    parts = [taskonomy.Samples(roots["taskonomy"], train, tuple(taskonomy.TASKS)) for train in (True, False)]
    assert [{image.parent.name for image in part.images} for part in parts] == [{"allensville"}, {"collierville"}]
    for task, classes in taskonomy.CLASSES.items():
        label = parts[0][0][task]
        assert label.shape == (classes,) and label.sum().item() == pytest.approx(1)
        file = str(parts[0].images[0]).replace("/rgb/", f"/{task}/").replace("_rgb.png", f"_{task}.npy")
        np.testing.assert_allclose(label, np.load(file), rtol=1e-5)


def test_images_may_lie_without_the_inner_folder(tmp_path):
    made_files.taskonomy(tmp_path)
    for kind in ("rgb", *taskonomy.CLASSES):
        (tmp_path / kind / "taskonomy").rename(tmp_path / "moved")
        (tmp_path / kind).rmdir()
        (tmp_path / "moved").rename(tmp_path / kind)
    assert len(taskonomy.Samples(tmp_path, True, tuple(taskonomy.TASKS))) == made_files.COUNT - 2
