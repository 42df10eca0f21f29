import runpy
import sys
from collections.abc import Callable

import pytest
from helpers import ROOT


@pytest.fixture
def printed(monkeypatch, capsys, tmp_path) -> Callable[..., str]:
    """Run a script as its user would, but in this process, which has imported torch; give what it prints."""

    def run(name: str, *options: str) -> str:
        script, known = ROOT / name, set(sys.modules)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(script), *options])
        monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
        runpy.run_path(str(script), run_name="__main__")
        for module in set(sys.modules) - known:
            if (getattr(sys.modules[module], "__file__", None) or "").startswith(str(script.parent)):
                del sys.modules[module]
        return capsys.readouterr().out

    return run
