"""The map of the package in the documents names every file, in import order."""

import re

from helpers import ROOT
from test_rooms import PACKAGES, PLOT, ROOMS


def test_the_map_of_the_package_is_the_package():
    page = (ROOT / "docs" / "method" / "how-it-works.md").read_text()
    rows = re.findall(r"^\| (?:`(\w+)`)? ?\| [^|]* \| ([^|]*) \|$", page, re.M)
    shown = {folder: re.findall(r"`(\w+)`", files) for folder, files in rows if folder}
    alone = [name for folder, files in rows if not folder for name in re.findall(r"`(\w+)`", files)]
    folders = PACKAGES | {"plot": PLOT}
    assert list(shown) == list(folders)
    assert shown == folders
    assert alone == [room for room in ROOMS if room and "." not in room and room not in folders]
