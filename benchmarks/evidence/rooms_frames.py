"""Frames of rooms made by code, whose normals are exact: surface normals, helped by classes of things."""

from dataclasses import replace
from pathlib import Path

import game
from demo import rooms
from problem import Batch
from study import FRAMES


def load(fast: bool) -> dict[str, Batch]:
    """Frames of 38 training rooms, 10 validation rooms and 20 test rooms, 60 of each; or one of each, made up."""
    train, test = game.made_up() if fast else rooms.load(Path("data"), FRAMES)
    return game.split(train, test, {"primary": "normals" if fast else "normal", "segmentation": "aux"})


ROOMS = replace(game.NORMALS_BY_SEGMENTATION, name="normals <- segmentation, made rooms", load=load)
