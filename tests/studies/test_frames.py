"""The studies on frames: metrics, mirroring, networks and the geometry of walls; nothing is rendered."""

import math
from itertools import pairwise
from types import SimpleNamespace

import doom
import game
import numpy as np
import pytest
import torch
import torch.nn.functional as F


def test_levels_are_in_one_split():
    """The frames of a level have its number for a label."""
    level = torch.arange(48 * 60) // 60
    train, test = {"image": level.view(-1, 1, 1, 1), "aux": level}, {"image": level[:120], "aux": 48 + level[:120]}
    splits = game.split(train, test, {"primary": "aux"})
    levels = [set(splits[name]["primary"].tolist()) for name in ("train", "validation", "test")]
    assert levels == [set(range(38)), set(range(38, 48)), {48, 49}]
    assert [len(splits[name]["input"]) for name in splits] == [2280, 600, 120]


def test_outlines_are_where_classes_meet():
    classes = torch.zeros(1, 4, 5, dtype=torch.long)
    classes[:, :, 3:] = 2
    expected = torch.tensor([0.0, 0, 1, 1, 0]).expand(4, 5)
    assert torch.equal(game.outlines(classes), expected.view(1, 1, 4, 5))
    train = game.DEPTH_BY_THREE.load(True)["train"]
    assert torch.equal(train["outlines"], game.outlines(train["segmentation"]))


# Mirroring


@pytest.mark.parametrize("name", ["NORMALS_BY_SEGMENTATION", "DEPTH_BY_BOTH"])
def test_mirrored_twice_is_as_before_and_a_mirrored_normal_points_to_the_other_side(name):
    problem = getattr(game, name)
    normals = "primary" if name == "NORMALS_BY_SEGMENTATION" else "normals"
    batch = {key: values[:16] for key, values in problem.load(True)["train"].items()}
    before = {key: values.clone() for key, values in batch.items()}
    once = problem.augment(batch, torch.Generator().manual_seed(0))
    assert all(torch.equal(batch[key], before[key]) for key in batch)
    mirrored = torch.rand(16, generator=torch.Generator().manual_seed(0)) < 0.5
    assert 4 < mirrored.sum() < 12
    for key, values in batch.items():
        flipped = values[mirrored].flip(-1)
        if key == normals:
            flipped = torch.cat([-flipped[:, :1], flipped[:, 1:]], 1)
        assert torch.equal(once[key][mirrored], flipped) and torch.equal(once[key][~mirrored], values[~mirrored])
    twice = problem.augment(once, torch.Generator().manual_seed(0))
    assert all(torch.equal(twice[key], before[key]) for key in batch)


# Metrics


def turned(degrees):
    """Normals of a floor, (2, 3, 4, 5), turned by as many degrees to the right."""
    angle = torch.tensor(math.radians(degrees))
    return torch.stack([angle.sin(), angle.cos(), torch.zeros(())]).view(1, 3, 1, 1).expand(2, 3, 4, 5).clone()


@pytest.mark.parametrize("degrees", [0.0, 0.01, 20.0, 90.0, 179.0, 180.0])
@pytest.mark.parametrize("length", [1.0, 7.0])
def test_angles_are_true_angles(degrees, length):
    outputs, normals = length * turned(degrees), turned(0)
    torch.testing.assert_close(game.normal_errors(outputs, normals), torch.full((2,), degrees), atol=1e-3, rtol=1e-3)
    loss = game.normal_loss(outputs, normals)
    torch.testing.assert_close(loss.item(), 1 - math.cos(math.radians(degrees)), atol=1e-5, rtol=1e-5)


def test_pixels_without_a_normal_do_not_count():
    outputs, normals = turned(20).requires_grad_(), turned(0)
    normals[0, :, :, :3] = 0
    normals[1] = 0
    with torch.no_grad():
        outputs[0, :, :, :3] = 0
    errors = game.normal_errors(outputs, normals)
    torch.testing.assert_close(errors, torch.tensor([20.0, 0.0]))
    loss = game.normal_loss(outputs, normals)
    torch.testing.assert_close(loss.item(), 1 - math.cos(math.radians(20)))
    loss.backward()
    assert outputs.grad.isfinite().all() and not outputs.grad[1].any() and outputs.grad[0, :, :, 3:].any()
    assert game.normal_loss(outputs[1:], normals[1:]) == 0


def test_frames_with_few_normals_are_left_out_where_normals_are_primary():
    train, test = game.made_up()
    test["normals"][3] = 0
    test["normals"][5, :, 6:] = 0  # a tenth is left
    test["normals"][5, :, :6] = 1
    keys = {"primary": "normals", "segmentation": "aux"}
    kept = game.split(train, test, keys)["test"]
    rest = torch.arange(20) != 3
    assert all(torch.equal(kept[key], test[old][rest]) for key, old in ({"input": "image"} | keys).items())
    keys = {"primary": "primary", "normals": "normals"}
    assert len(game.split(train, test, keys)["test"]["input"]) == 20


def test_depth_and_class_errors_are_those_of_each_frame():
    depth = torch.zeros(2, 1, 4, 5)
    outputs = depth.clone()
    outputs[1, 0, 0] = -0.4
    torch.testing.assert_close(game.depth_errors(outputs, depth), torch.tensor([0.0, 100.0]))
    classes = torch.zeros(2, 4, 5, dtype=torch.long)
    classes[1, 0] = 3
    constant = torch.tensor([1.0, 0, 0, 0, 0, 0]).view(1, 6, 1, 1).expand(2, 6, 4, 5)
    torch.testing.assert_close(game.class_errors(constant, classes), torch.tensor([0.0, 25.0]))
    exact = F.one_hot(classes, 6).permute(0, 3, 1, 2)
    assert not game.class_errors(exact, classes).any()


# Walls


def line(*ends):
    return SimpleNamespace(**dict(zip(("x1", "y1", "x2", "y2"), ends, strict=True)))


def sector(floor, ceiling, *lines):
    return SimpleNamespace(floor_height=floor, ceiling_height=ceiling, lines=[line(*ends) for ends in lines])


def test_walls_are_one_sided_lines_and_steps_of_others():
    """A line that two sectors share is a wall where their floors or ceilings differ, whichever way it runs."""
    sectors = [
        sector(0, 128, (0, 0, 0, 9), (9, 0, 9, 9), (5, 5, 6, 6)),
        sector(24, 96, (9, 9, 9, 0)),
        sector(0, 128, (5, 5, 6, 6)),
    ]
    found = {tuple(wall) for wall in doom.walls(sectors).tolist()}
    assert found == {(0, 0, 0, 9, 0, 128), (9, 0, 9, 9, 0, 24), (9, 0, 9, 9, 96, 128)}


def test_walls_have_normals_in_the_cameras_frame_towards_the_camera():
    """A corridor 200 wide, to whose end at 400 the camera looks; at any turn of it all, either end of a line first."""
    slopes = (2 * np.arange(80) + 0.5) / 80 - 1
    reach = 100 / np.abs(slopes)
    depth = np.tile(np.minimum(reach, 400), (60, 1))
    facing = np.where(reach < 400, [np.sign(-slopes), 0 * slopes, 0 * slopes], [[0], [0], [-1]])
    want = np.tile(facing[:, None], (1, 60, 1))
    for yaw in (0, 37, 90, 200):
        turn = np.deg2rad(yaw) + np.array([0, np.pi / 2])
        forward, left = np.stack([np.cos(turn), np.sin(turn)], 1)
        place = np.array([30.0, -70.0])
        corners = [place + 400 * forward * f + 100 * left * s for f, s in ((0, 1), (1, 1), (1, -1), (0, -1))]
        walls = np.array([[*a, *b, -1e4, 1e4] for a, b in pairwise(corners)])
        walls[1, :4] = walls[1, [2, 3, 0, 1]]
        found = doom.wall_normals(walls, depth, [*place, 41.0, yaw])
        np.testing.assert_allclose(found, want, atol=1e-9)


def test_what_is_no_wall_at_its_depth_and_height_has_no_normal():
    """A wall at 100 that ends at the height of the eye, and one behind the camera."""
    walls = np.array([[100, -500, 100, 500, 0, 41], [-100, -500, -100, 500, 0, 128]], dtype=float)
    depth = np.full((60, 80), 100.0)
    depth[:, :40] = 150
    normals = doom.wall_normals(walls, depth, [0, 0, 41, 0])
    assert not normals[:, :, :40].any() and not normals[:, :25].any() and not normals[:, 59].any()
    below = normals[:, 32:50, 40:]
    assert (below[2] == -1).all() and not below[:2].any()
    assert not doom.wall_normals(walls[1:], depth, [0, 0, 41, 0]).any()
