"""Losses and scores of the papers' tasks, against slow loops."""

from math import acos, degrees

import pytest
import torch
import torch.nn.functional as F
from maps import UNKNOWN_CLASS
from tasks import DEPTH, DISPARITY, NORMALS, Angles, classification, segmentation


def scores(task, *batches):
    metric = task.scores()
    for outputs, labels in batches:
        metric.update(outputs, labels)
    return {name: float(value) for name, value in metric.compute().items()}


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=1)


def test_classes_of_pixels_are_judged_over_the_whole_data_set():
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 2, 5, 6))
    labels[:, :, 0] = UNKNOWN_CLASS
    outputs = torch.randn(2, 2, 4, 5, 6)
    found = scores(segmentation(4), *zip(outputs, labels, strict=True))
    pixels = zip(outputs.argmax(2).flatten().tolist(), labels.flatten().tolist(), strict=True)
    pairs = [(o, t) for o, t in pixels if t != UNKNOWN_CLASS]
    ious = [sum(o == t == k for o, t in pairs) / sum(k in (o, t) for o, t in pairs) for k in range(4)]
    assert found["mIoU"] == pytest.approx(100 * sum(ious) / 4)
    assert found["pixels right"] == pytest.approx(100 * sum(o == t for o, t in pairs) / len(pairs))


def test_angles_are_those_of_a_loop():
    torch.manual_seed(0)
    outputs, normals = torch.randn(3, 2, 3, 4, 5), torch.stack([unit(2, 3, 4, 5) for _ in range(3)])
    normals[:, :, :, 0] = 0  # unknown
    found = scores(NORMALS, *zip(outputs, normals, strict=True))
    for encoded in (False, True):
        angles = []
        pixels = (maps.movedim(2, -1).reshape(-1, 3).double() for maps in (outputs, normals))
        for o, n in zip(*pixels, strict=True):
            if n.any():
                o = o / o.norm()
                o, n = ((o + 1) / 2, (n + 1) / 2) if encoded else (o, n)
                angles.append(degrees(acos(min(1, float(o @ n / o.norm() / n.norm())))))
        name = ", encoded" * encoded
        assert found[f"mean{name}"] == pytest.approx(sum(angles) / len(angles), abs=1e-4)
        assert found[f"median{name}"] == pytest.approx(sorted(angles)[(len(angles) - 1) // 2], abs=0.01)
        for limit in (11.25, 22.5, 30.0):
            share = sum(angle <= limit for angle in angles) / len(angles)
            assert found[f"within {limit}{name}"] == pytest.approx(100 * share)


def test_a_constant_vector_scores_well_as_the_papers_measure():
    """True angles tell it from a good prediction, encoded ones hardly."""
    torch.manual_seed(0)
    normals = F.normalize(torch.randn(1, 3, 40, 40) + torch.tensor([0, 0, -1.5]).view(1, 3, 1, 1), dim=1)
    constant = torch.tensor([0.0, 0, -1]).view(1, 3, 1, 1).expand_as(normals)
    found = scores(NORMALS, (constant, normals))
    assert found["mean"] > 1.5 * found["mean, encoded"]


def test_exact_and_opposite_vectors_are_at_the_ends():
    normals = unit(1, 3, 4, 4)
    found, worst = scores(NORMALS, (5 * normals, normals)), scores(NORMALS, (-normals, normals))
    assert found["mean"] < 0.01 and found["within 11.25"] == 100
    assert worst["mean"] == pytest.approx(180, abs=0.01) and worst["median"] == pytest.approx(180, abs=0.02)


@pytest.mark.parametrize("task", [DEPTH, DISPARITY])
def test_distances_are_judged_where_they_are_known(task):
    labels = torch.tensor([[[[0.0, 2.0], [4.0, 0.0]]]])
    outputs = torch.tensor([[[[9.0, 3.0], [3.0, 9.0]]]])
    assert scores(task, (outputs, labels)) == pytest.approx({"abs": 1.0, "rel": 37.5})
    assert task.loss(outputs, labels).item() == 1.0


def test_the_most_probable_class_of_a_label_is_the_true_one():
    labels = torch.eye(10)[[3, 4]] * 0.9 + 0.01
    outputs = torch.arange(10.0).expand(2, 10)  # classes 5 to 9 are the five most likely ones
    assert scores(classification("object", 10), (outputs, labels)) == {"top 1": 0.0, "top 5": 0.0}
    assert scores(classification("object", 10), (outputs, labels.flip(1))) == {"top 1": 0.0, "top 5": 100.0}


@pytest.mark.parametrize("task", [segmentation(4), NORMALS, DEPTH], ids=lambda task: task.name)
def test_where_nothing_is_known_the_loss_is_zero_and_has_a_gradient(task):
    outputs = torch.randn(2, task.outputs, 3, 3, requires_grad=True)
    nothing = (
        torch.full((2, 3, 3), UNKNOWN_CLASS) if task.name == "segmentation" else torch.zeros(2, task.outputs, 3, 3)
    )
    loss = task.loss(outputs, nothing)
    loss.backward()
    assert loss.item() == 0 and outputs.grad.eq(0).all()


def test_scores_begin_anew_after_a_reset():
    angles = Angles()
    angles.update(torch.ones(1, 3, 2, 2), -unit(1, 3, 2, 2))
    angles.reset()
    angles.update(normals := unit(1, 3, 2, 2), normals)
    assert angles.compute()["mean"] < 0.01


def test_the_better_epoch_has_less_error_or_more_right():
    assert DEPTH.better({"abs": 1.0}) > DEPTH.better({"abs": 2.0})
    assert NORMALS.better({"within 11.25": 40.0}) > NORMALS.better({"within 11.25": 30.0})
