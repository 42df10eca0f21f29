"""The table of the studies' problems."""

import pytest
import sizes
import torch
from problems import PROBLEMS


def test_every_problem_has_its_sizes(capsys):
    found = sizes.measure(fast=True)
    assert list(found) == list(PROBLEMS)
    assert found["depth <- segmentation"]["parameters"] == sum(
        p.numel() for p in PROBLEMS["depth <- segmentation"].net().parameters()
    )
    sizes.print_table(found)
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + len(PROBLEMS)


def test_a_constant_guess_is_the_median_or_the_commonest_class():
    depth, classes = PROBLEMS["depth <- segmentation"], PROBLEMS["segmentation <- depth"]
    train = torch.tensor([0.0, 1.0, 1.0, 1.0, 9.0]).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    found = sizes.constant_error(depth, train, torch.full((2, 1, 4, 4), 3.0), torch.Size((1, 4, 4)))
    assert found == pytest.approx(2000, rel=0.02)
    labels = torch.tensor([2, 2, 5]).view(3, 1, 1).expand(3, 4, 4)
    assert sizes.constant_error(classes, labels, labels, torch.Size((6, 4, 4))) == pytest.approx(100 / 3)
