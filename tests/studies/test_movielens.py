"""The studies' ratings of films: splits by time, labels that are a funnel, unknown users, and how methods train."""

import movielens
import pytest
import torch
from methods import METHODS
from movielens import FIVE_STARS
from training import Regime, RuleWatch, Settings, evaluate, fit


def timed():
    """Ratings whose first number is their time, in another order."""
    ratings, times = movielens.made_up(), torch.arange(160)
    times = times[torch.randperm(160, generator=torch.Generator().manual_seed(1))]
    numbers = torch.cat([times.unsqueeze(1), ratings["numbers"][:, 1:]], 1)
    return ratings | {"time": times, "numbers": numbers}


def test_validation_comes_after_training_and_the_test_after_validation():
    splits = movielens.split(timed())
    times = [part["input"][:, 4] for part in splits.values()]
    assert [len(some) for some in times] == [128, 16, 16]
    assert times[0].max() < times[1].min() and times[1].max() < times[2].min()


def test_ratings_of_one_second_are_in_one_split():
    ratings = timed()
    ratings["time"] //= 50
    assert [len(part["input"]) for part in movielens.split(ratings).values()] == [100, 0, 60]


def test_users_and_films_that_no_training_rating_has_are_unknown():
    ratings = timed()
    late = ratings["time"] >= 128
    ratings["codes"][:, :2] = 1 + ratings["codes"][:, :2] % 40
    ratings["codes"][late, 0] = torch.arange(50, 82)
    ratings["codes"][late, 1] = 900
    ratings["codes"][late.nonzero()[0], 0] = ratings["codes"][~late][0, 0]
    splits = movielens.split(ratings)
    later = torch.cat([splits[name]["input"] for name in ("validation", "test")])
    assert (later[:, 0] > 0).sum() == 1 and not later[:, 1].any()
    assert splits["train"]["input"][:, :2].min() >= 1


def test_numbers_are_standardised_by_training_ratings_alone():
    ratings = timed()
    before = movielens.split(ratings)["train"]["input"]
    assert before[:, 4:].mean(0).abs().max() < 0.1
    ratings["numbers"][ratings["time"] >= 128] += 100
    assert torch.equal(movielens.split(ratings)["train"]["input"], before)


def test_labels_are_a_funnel():
    ratings = timed()
    ratings["stars"] = (1 + ratings["time"] % 5).float().unsqueeze(1)
    train = movielens.split(ratings)["train"]
    both = train["primary"] + train["good"]
    assert both.unique().tolist() == [0, 1, 2] and (train["good"] >= train["primary"]).all()
    assert [train[key].mean().item() for key in ("primary", "good")] == pytest.approx([0.2, 0.4], abs=0.01)


def test_training_sees_half_of_the_ratings_as_those_of_unknown_users():
    batch = {"input": torch.ones(2000, 25), "primary": torch.ones(2000, 1)}
    found = FIVE_STARS.augment(batch, torch.Generator().manual_seed(0))
    assert 0.45 < found["input"][:, 0].mean() < 0.55 and found["input"][:, 1:].all()
    assert batch["input"].all() and found["primary"] is batch["primary"]


@pytest.mark.parametrize("regime", [Regime(9, True), Regime(9, False)], ids=["many good", "few good"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name, regime):
    data, method = movielens.load(True), METHODS[name]
    watch = RuleWatch(FIVE_STARS, data["validation"]) if method.unless_aligned else None
    model = fit(FIVE_STARS, method, data["train"], regime, Settings(1e-3, 0.01, 2), 0, watch)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 0 < evaluate(FIVE_STARS, method.export(model), data["test"]) < 5000


def test_an_error_is_the_log_loss_in_thousandths():
    errors = movielens.log_losses(torch.tensor([[0.0], [20.0]]), torch.tensor([[1.0], [1.0]]))
    assert errors.tolist() == [pytest.approx(693.147, abs=1e-3), pytest.approx(0, abs=1e-3)]


USERS = [
    {"user_id": "5", "age": "33", "gender": "F", "occupation": "writer", "zip_code": "1"},
    {"user_id": "9", "age": "20", "gender": "M", "occupation": "artist", "zip_code": "1"},
]
ITEMS = [
    {"item_id": "3", "movie_title": "One", "release_year": "1995", "class": "War Drama"},
    {"item_id": "8", "movie_title": "Two", "release_year": "V", "class": "Comedy"},
]
RATING = {"user_id": "9", "item_id": "3", "rating": "4", "timestamp": "881250949"}


def test_a_rating_is_read():
    found = movielens.table([RATING, {**RATING, "user_id": "5", "item_id": "8"}], USERS, ITEMS)
    assert found["codes"].tolist() == [[2, 1, 1, 0], [1, 2, 0, 1]]
    assert found["numbers"][0].tolist() == [20, 1995, 0, 1, 1]  # comedy, drama, war
    assert found["numbers"][1, 1].isnan()  # the year
    assert found["stars"].tolist() == [[4], [4]] and found["time"].tolist() == [881250949] * 2


def test_the_ratings_of_the_package():
    ratings = movielens.table(**movielens.read_package())
    assert ratings["stars"].flatten().long().bincount().tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    assert len(ratings["codes"][:, :2].unique(dim=0)) == 100_000
    assert ratings["codes"].max(0).values.tolist() == [count - 1 for count in movielens.CODES.values()]
    assert ratings["codes"].min(0).values.tolist() == [1, 1, 0, 0]
    assert ratings["numbers"].shape == (100_000, movielens.NUMBERS)
    assert ratings["numbers"].isnan().sum(0).tolist() == [0, 15, *[0] * movielens.GENRES]  # of two films
    assert ratings["codes"][0, :2].tolist() == [196, 242] and ratings["stars"][0] == 3
    counts = [len(part["input"]) for part in movielens.split(ratings).values()]
    assert counts == [79_999, 10_001, 10_000]
