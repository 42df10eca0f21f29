"""Ratings of films: whether a user gives five stars, helped by whether it is four or more.

MovieLens 100k comes with the recbole package: ratings, users and films. The labels are a funnel: every rating of five
stars is one of four or more.
"""

import csv
from functools import partial
from math import nan
from pathlib import Path

import torch
import torch.nn.functional as F
from problem import Aux, Batch, Problem
from tabular import HEARS, TAPS, Columns, ListeningHead, Mlp, Row, package_folder, standardised
from torch import Generator, Tensor

PAST = 0.8, 0.9  # shares of the ratings that are earlier than those of validation, and than those of the test
CODES = {"user": 944, "item": 1683, "gender": 2, "occupation": 21}  # columns of codes, and how many codes there are
IDS = 2  # of these columns; code 0 is one that no training rating has
GENRES = 19
NUMBERS = 2 + GENRES  # age of the user, year of the film
STRANGE = 0.5  # of training ratings are seen as those of an unknown user, whose ratings most later ones are


def load(fast: bool) -> dict[str, Batch]:
    """The first 80,000 ratings to train on, the next 10,000 for validation, the last 10,000 to test."""
    if fast:
        return split(made_up())
    file = Path("data") / "ratings.pt"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        torch.save(table(**read_package()), file)
    return split(torch.load(file, weights_only=True))


def split(ratings: Batch) -> dict[str, Batch]:
    """By time: no training rating is later than one of validation, and none of these later than one of the test."""
    times = ratings["time"].sort().values
    starts = torch.stack([times[int(share * len(times))] for share in PAST])
    part = torch.bucketize(ratings["time"], starts, right=True)
    train = part == 0
    codes, numbers = ratings["codes"].clone(), standardised(ratings["numbers"], train)
    for ids in codes.unbind(1)[:IDS]:
        ids[~torch.isin(ids, ids[train])] = 0
    columns = {"input": torch.cat([codes, numbers], 1)}
    columns |= {key: (ratings["stars"] >= least).float() for key, least in (("primary", 5), ("good", 4))}
    names = "train", "validation", "test"
    return {name: {key: column[part == i] for key, column in columns.items()} for i, name in enumerate(names)}


def made_up() -> Batch:
    """Noise in the format of the ratings, one a second."""
    random = Generator().manual_seed(0)
    codes = [torch.randint(low, count, (160,), generator=random) for low, count in zip((1, 1, 0, 0), CODES.values())]
    numbers = torch.randn(160, NUMBERS, generator=random)
    stars = (3 + 2 * numbers[:, :1]).round().clamp(1, 5)
    return {"codes": torch.stack(codes, 1), "numbers": numbers, "stars": stars, "time": torch.arange(160)}


def read_package() -> dict[str, list[Row]]:
    """Tables of the recbole package, which is not imported since its import asks for ray and others."""
    folder = package_folder("recbole", "the ratings", options="--no-deps ") / "dataset_example" / "ml-100k"
    tables = {}
    for name, ending in {"ratings": "inter", "users": "user", "items": "item"}.items():
        with (folder / f"ml-100k.{ending}").open(encoding="utf-8") as text:
            rows = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
            tables[name] = [{key.partition(":")[0]: value for key, value in row.items()} for row in rows]
    return tables


def table(ratings: list[Row], users: list[Row], items: list[Row]) -> Batch:
    """Codes, numbers, stars and seconds as columns."""
    jobs, genres = sorted({user["occupation"] for user in users}), sorted({g for item in items for g in _genres(item)})
    people, films = {}, {}
    for code, user in enumerate(users, 1):
        people[user["user_id"]] = [code, "FM".index(user["gender"]), jobs.index(user["occupation"])], float(user["age"])
    for code, item in enumerate(items, 1):
        year = float(item["release_year"]) if item["release_year"].isdigit() else nan
        films[item["item_id"]] = code, [year, *(float(genre in _genres(item)) for genre in genres)]
    pairs = [(people[row["user_id"]], films[row["item_id"]]) for row in ratings]
    return {
        "codes": torch.tensor([[user, item, *others] for ((user, *others), _), (item, _) in pairs]),
        "numbers": torch.tensor([[age, *about] for (_, age), (_, about) in pairs]),
        "stars": torch.tensor([[float(row["rating"])] for row in ratings]),
        "time": torch.tensor([int(row["timestamp"]) for row in ratings]),
    }


def _genres(item: Row) -> list[str]:
    return item["class"].split()


def estranged(batch: Batch, random: Generator) -> Batch:
    """Half of the ratings get the code of an unknown user, which most users of later ratings are."""
    inputs = batch["input"].clone()
    inputs[torch.rand(len(inputs), generator=random) < STRANGE, 0] = 0
    return batch | {"input": inputs}


def log_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of each rating, in thousandths."""
    return 1000 * F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


columns = partial(Columns, tuple(CODES.values()), NUMBERS, spread=0.01, dropout=0.3)  # untrained codes add little
net = partial(Mlp, columns, dropout=0.5)
loss = F.binary_cross_entropy_with_logits
FIVE_STARS = Problem(
    name="five stars <- four or more stars",
    metric="log loss, x 1000",
    load=load,
    net=net,
    loss=loss,
    errors=log_losses,
    auxes={"good": Aux(net, loss, TAPS, head=(ListeningHead, HEARS))},
    batch=64,
    augment=estranged,
)
