"""The table of docs/supported.md, from what `make test-models` has found: python tests/models/table.py"""

import json
from collections import Counter
from pathlib import Path

from catalogue import MIXED, MODELS

FILE = Path(__file__).parent.parent.parent / "docs" / "results" / "models.jsonl"
TRIED = Counter(model.library for model in MODELS)


def main() -> None:
    """One row for each library, one for mixed pairs, and what torch.export made of exported networks."""
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
    refused = found.get("torch.export refuses the plain network", {})
    through = len(found.get("torch.export", {}))
    print(
        f"\nThe exported network went through `torch.export` in all {through} cases in which the plain network does; "
        f"torch refuses the plain network in the other {len(refused)}."
    )


if __name__ == "__main__":
    main()
