"""Patients of an HIV trial: CD4 cells at 96 weeks from what is known at its start, helped by cells at 20 weeks.

The trial, ACTG 175, comes with the lifelines package. Of a third of the patients the count at 96 weeks is missing.
"""

import csv
from functools import partial
from math import nan

import torch
import torch.nn.functional as F
from problem import Aux, Batch, Problem
from tabular import HEARS, TAPS, Columns, ListeningHead, Mlp, Row, package_folder, standardised
from torch import Tensor

SPLITS = {"validation": 300, "test": 442}  # patients with all labels; the others are for training
CATEGORIES = {"strat": 3, "arms": 4}  # length of earlier treatment, treatment in the trial; how many codes there are
NUMBERS = (
    *("age", "wtkg", "karnof", "preanti", "cd40", "cd80"),
    *("hemo", "homo", "drugs", "oprior", "z30", "race", "gender", "symptom"),
)
# Left out: offtrt, cens and days, which are known later; zprior, which is 1 for all; str2 and treat, which follow from
# strat and arms.
CELLS = 100.0  # in the unit of the primary label, as cells in a cubic millimetre
EARLY = ("cd420", "cd820")


def load(fast: bool) -> dict[str, Batch]:
    """1,397 training patients, of whom 600 have the primary label, 300 for validation and 442 to test."""
    return split(made_up(), {"validation": 12, "test": 12}) if fast else split(table(read_package()), SPLITS)


def split(patients: Batch, counts: dict[str, int]) -> dict[str, Batch]:
    """Patients at random; those without the primary label train, after those with it."""
    missing = patients["primary"].isnan().flatten()
    whole, others = (~missing).nonzero().flatten(), missing.nonzero().flatten()
    whole = whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))]
    first, *rest = whole.split([len(whole) - sum(counts.values()), *counts.values()])
    parts = {"train": torch.cat([first, others]), **dict(zip(counts, rest))}
    numbers = standardised(patients["numbers"], parts["train"])
    columns = {
        "input": torch.cat([patients["codes"], numbers], 1),
        "primary": patients["primary"],
        "early": standardised(patients["early"], parts["train"]),
    }
    return {name: {key: column[part] for key, column in columns.items()} for name, part in parts.items()}


def made_up() -> Batch:
    """Noise in the format of the patients; every third has no primary label."""
    random = torch.Generator().manual_seed(0)
    codes = [torch.randint(count, (84,), generator=random) for count in CATEGORIES.values()]
    numbers, noise = torch.randn(84, len(NUMBERS), generator=random), torch.randn(84, 2, generator=random)
    early = numbers[:, :2] + noise
    primary = early.sum(1, keepdim=True)
    primary[::3] = nan
    return {"codes": torch.stack(codes, 1), "numbers": numbers, "primary": primary, "early": early}


def read_package() -> list[Row]:
    """The trial's table in the lifelines package, which is not imported since its import asks for pandas and others."""
    folder = package_folder("lifelines", "the patients", options="--no-deps ")
    with (folder / "datasets" / "ACTG175.csv").open(encoding="utf-8") as text:
        return list(csv.DictReader(text))


def table(patients: list[Row]) -> Batch:
    """Codes, numbers and labels as columns; a missing label is NaN."""
    names = {key: sorted({row[key] for row in patients}) for key in CATEGORIES}
    columns = {"numbers": NUMBERS, "primary": ("cd496",), "early": EARLY}
    found = {
        key: torch.tensor([[_number(row[name]) for name in some] for row in patients]) for key, some in columns.items()
    }
    codes = torch.tensor([[names[key].index(row[key]) for key in names] for row in patients])
    return {"codes": codes, **found, "primary": found["primary"] / CELLS}


def _number(text: str) -> float:
    return nan if text == "NA" else float(text)


def cell_errors(outputs: Tensor, cells: Tensor) -> Tensor:
    """Absolute error of each patient's count, in cells in a cubic millimetre."""
    return CELLS * (outputs - cells).abs().mean(1)


columns = partial(Columns, tuple(CATEGORIES.values()), len(NUMBERS))
CD4 = Problem(
    name="CD4 at 96 weeks <- CD4 and CD8 at 20 weeks",
    metric="error of CD4, cells/mm3",
    load=load,
    net=partial(Mlp, columns, dropout=0.3),
    loss=F.l1_loss,
    errors=cell_errors,
    auxes={
        "early": Aux(
            partial(Mlp, columns, len(EARLY), dropout=0.3),
            F.l1_loss,
            TAPS,
            head=(partial(ListeningHead, len(EARLY)), HEARS),
        )
    },
    batch=32,
)
