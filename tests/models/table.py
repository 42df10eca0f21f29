"""The table of docs/help/supported.md, from what `make test-models` has found: python tests/models/table.py"""

import json
from collections import Counter
from pathlib import Path

from catalogue import MIXED, MODELS

FILE = Path(__file__).parent.parent.parent / "docs" / "results" / "models.jsonl"
TRIED = Counter(model.library for model in MODELS)


def main() -> None:
    """One row for each library, one for mixed pairs, and what torch recorded of exported networks."""
    found: dict[str, dict[str, int]] = {}
    for line in FILE.read_text().splitlines():
        result = json.loads(line)
        found.setdefault(result["library"], {})[result["name"]] = result["taps"]
    print("| networks | pairs that kept every promise | suggested taps | which |\n|---|---|---|---|")
    for library, tried in {**TRIED, "mixed pairs": len(MIXED)}.items():
        passed = found.get(library, {})
        taps = f"{min(passed.values())} to {max(passed.values())}"
        names = ", ".join(name.removeprefix(f"{library}:") for name in passed)
        print(f"| {library} | {len(passed)} of {tried} | {taps} | {names} |")
    print(f"\n{recorded(found)}")


def recorded(found: dict[str, dict[str, int]]) -> str:
    """What torch records of plain networks, and whether it records those exported from wrappers."""
    export, trace, neither = (list(found.get(way, {})) for way in ("torch.export", "torch.jit.trace", "neither"))
    total, done = sum(TRIED.values()), len(export) + len(trace)
    return (
        f"`torch.export` records {len(export)} of the {total} plain networks, and `torch.jit.trace` {len(trace)} of "
        f"the {total - len(export)} others ({', '.join(trace)}). What a wrapper exported could be recorded in that way "
        f"too, and computed the same, in {done} of {total - len(neither)} cases."
    )


if __name__ == "__main__":
    main()
