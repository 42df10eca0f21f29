"""What flips, rotations and zooms do to labels: checked on scenes whose geometry is known."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as T
from maps import FILL, UNKNOWN_CLASS, Depth, Disparity, Normalise, Normals, RandomZoom, Resize
from torchvision.tv_tensors import Image, Mask


def room():
    """A wall on the left whose normal points right, one on the right whose normal points left; 20 x 30 pixels."""
    normals = torch.zeros(3, 20, 30)
    normals[0, :, :10], normals[2, :, 10:20], normals[0, :, 20:] = 1, -1, -1
    return Normals(normals)


def sample():
    torch.manual_seed(0)
    return {
        "image": Image(torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)),
        "segmentation": Mask(torch.randint(0, 5, (20, 30))),
        "normals": room(),
        "depth": Depth(torch.rand(1, 20, 30) + 1),
        "disparity": Disparity(torch.rand(1, 20, 30) + 1),
    }


def test_a_mirrored_room_is_a_room():
    flipped = T.RandomHorizontalFlip(1.0)(room())
    assert isinstance(flipped, Normals) and flipped.equal(room())  # it is symmetric
    lopsided = room()
    lopsided[:, :, :5] = 0
    once = T.RandomHorizontalFlip(1.0)(lopsided)
    assert not once.equal(lopsided) and T.RandomHorizontalFlip(1.0)(once).equal(lopsided)


def test_the_floor_of_a_room_turned_by_a_quarter_is_its_wall():
    floor = Normals(torch.tensor([0.0, 1, 0]).view(3, 1, 1).expand(3, 9, 9).clone())  # up
    turned = T.RandomRotation((90, 90), fill=FILL)(floor)
    torch.testing.assert_close(torch.as_tensor(turned[:, 4, 4]), torch.tensor([-1.0, 0, 0]))  # counter-clockwise: left
    assert isinstance(turned, Normals)


def test_vectors_turn_as_the_picture_of_them_turns():
    """A disc like a wheel: each pixel's vector points away from the middle, before and after."""
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    away = F.normalize(torch.stack([x, -y, torch.zeros_like(x)]), dim=0)
    turned = torch.as_tensor(T.RandomRotation((30, 30), fill=FILL)(Normals(away)))
    disc = (x.hypot(y) < 18) & (x.hypot(y) > 6)
    assert F.cosine_similarity(turned, away, dim=0)[disc].min() > 0.98


@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.0])
def test_a_zoomed_scene_is_nearer(zoom):
    depth, disparity = Depth(torch.full((1, 20, 30), 4.0)), Disparity(torch.full((1, 20, 30), 4.0))
    zoomed = RandomZoom((8, 8), (zoom, zoom))(depth, disparity)
    assert [part[part != 0].unique().item() for part in zoomed] == [4 / zoom, 4 * zoom]


def test_resizing_the_whole_changes_shifts_alone():
    found = Resize((10, 60))(sample())
    torch.testing.assert_close(
        found["disparity"].mean().item(), 2 * sample()["disparity"].mean().item(), rtol=0.1, atol=0
    )
    assert found["depth"].min() >= 1 and found["depth"].max() <= 2


def test_what_a_zoom_leaves_empty_is_unknown():
    found = RandomZoom((40, 40), (0.5, 0.5))(sample())
    assert {key: tuple(value.shape[-2:]) for key, value in found.items()} == dict.fromkeys(found, (40, 40))
    assert (found["segmentation"] != UNKNOWN_CLASS).sum() == 10 * 15
    for key in ("normals", "depth", "disparity"):
        assert found[key].any(0).sum() == 10 * 15


def test_all_labels_of_a_sample_move_alike():
    """A pixel's place is written into each label; after a random zoom and flip they still agree."""
    place = torch.arange(1, 601).view(20, 30)
    labels = {
        "segmentation": Mask(place),
        "normals": Normals(place.expand(3, 20, 30).float()),
        "depth": Depth(place[None].float()),
    }
    for seed in range(5):
        torch.manual_seed(seed)
        zoom = torch.empty(()).uniform_(0.7, 1.5).item()
        found = T.Compose([RandomZoom((16, 16), (zoom, zoom)), T.RandomHorizontalFlip()])(labels)
        known = found["segmentation"] != UNKNOWN_CLASS
        where = found["segmentation"][known].float()
        torch.testing.assert_close(torch.as_tensor(found["normals"][2][known]), torch.as_tensor(where))
        torch.testing.assert_close(torch.as_tensor(found["depth"][0][known] * zoom), torch.as_tensor(where))


def test_only_images_are_normalised():
    before, after = sample(), Normalise(0.5, 0.25)(sample())
    torch.testing.assert_close(torch.as_tensor(after["image"]), (torch.as_tensor(before["image"]) / 255 - 0.5) / 0.25)
    assert all(after[key].equal(before[key]) for key in before if key != "image")
