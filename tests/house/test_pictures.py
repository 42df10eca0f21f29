"""The script behind docs/guides/pictures.md makes every picture that the page shows."""

import re

from helpers import ROOT

PAGE = ROOT / "docs" / "guides" / "pictures.md"


def test_every_picture_of_the_page_is_made_by_its_script(printed, tmp_path):
    made = printed("docs/guides/pictures/make.py", "--folder", str(tmp_path)).split()
    shown = re.findall(r"\]\((pictures/[\w-]+\.png)\)", PAGE.read_text())
    files = [*(f"guides/{name}" for name in shown), "overview.svg"]
    assert len(shown) == 5 and sorted(made) == sorted(name.rpartition("/")[2] for name in files)
    for name in files:
        assert (tmp_path / name).stat().st_size > 10_000
        assert (ROOT / "docs" / name).exists(), f"{name}: python docs/guides/pictures/make.py"


def test_the_overview_shows_both_networks_and_what_is_dropped():
    text = (ROOT / "docs" / "overview.svg").read_text()
    for word in ("deployed", "primary", "dropped at export", "aux", "into the primary", "into an auxiliary"):
        assert f"<!-- {word} -->" in text, word
