"""Every command of the Makefile can be asked for."""

import os
import re
import shutil
import subprocess

import pytest
from helpers import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
(PHONY,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", PHONY.split())
def test_a_command_has_one_rule_that_make_can_read(target, tmp_path):
    """In a folder that has nothing yet; nothing is run."""
    command = ["make", "-n", "-f", str(ROOT / "Makefile"), "-C", str(ROOT), f"VENV={tmp_path}/.venv", target]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # make may run pytest
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(re.findall(rf"^{target}:", MAKEFILE, re.M)) == 1
