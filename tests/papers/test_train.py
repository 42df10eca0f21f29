"""Whole runs, on made files and narrow networks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import made_files
import pytest
import torch
import train
from backbones import SMALL
from experiment import Experiment
from losses import at_resolution
from methods import METHODS
from recipes import RECIPES
from tasks import DEPTH, DISPARITY, NORMALS
from torch import nn
from torch.optim import SGD, Adam

TRAIN, FOLDER = Path(train.__file__), "nyuv2-vgg16"


@pytest.fixture(scope="module")
def nyu(tmp_path_factory):
    root = tmp_path_factory.mktemp("nyu")
    made_files.nyuv2(root)
    return root


def words(root, out, *more, method="ours", epochs=2):
    common = ["--data", "nyuv2", "--root", root, "--backbone", "vgg16", "--primary", "normals", "--aux", "segmentation"]
    common += [
        "--method",
        method,
        "--random",
        "--small",
        "--epochs",
        epochs,
        "--batch",
        2,
        "--workers",
        0,
        "--out",
        out,
    ]
    return [str(word) for word in (*common, *more)]


def run(*args, **kwargs):
    return Experiment(train.parse(words(*args, **kwargs)))


@pytest.fixture(scope="module")
def checkpoints(nyu, tmp_path_factory):
    out = tmp_path_factory.mktemp("single")
    for task in ("normals", "segmentation"):
        run(nyu, out, "--primary", task, method="single-task", epochs=1).run()
    return [out / FOLDER / f"single-task-{task}-0.pt" for task in ("normals", "segmentation")]


def test_a_run_says_what_came_out(nyu, tmp_path):
    found = run(nyu, tmp_path, "--test-each-epoch", "--held-out", 0.4, epochs=1).run()
    assert found == json.loads((tmp_path / FOLDER / "ours-normals-segmentation-0.json").read_text())
    names = {"final", "best on held-out images", "best on test images, as the papers choose it"}
    assert set(found["scores"]) == names and found["constant"]["mean"] > found["constant"]["mean, encoded"]
    assert found["export"]["exact"] and found["export"]["open edges that were cut"] == 36  # after one step of one
    state = torch.load(tmp_path / FOLDER / "ours-normals-segmentation-0.pt", weights_only=True)["state"]
    SMALL["vgg16"].net(NORMALS, False).load_state_dict(state)  # a single-task network's keys and shapes


@pytest.mark.parametrize("method", ["single-task", "aux-nas"])
def test_a_resumed_run_ends_as_an_unbroken_one(method, nyu, tmp_path, monkeypatch, checkpoints):
    more = ["--from-checkpoints", *checkpoints] if method == "aux-nas" else []
    whole = run(nyu, tmp_path / "whole", *more, method=method).run()
    broken = run(nyu, tmp_path / "broken", *more, method=method)
    first = broken.training.epoch
    monkeypatch.setattr(broken.training, "epoch", lambda number, writer: 1 / 0 if number else first(number, writer))
    with pytest.raises(ZeroDivisionError):
        broken.run()
    resumed = run(nyu, tmp_path / "broken", "--resume", *more, method=method).run()
    assert resumed["scores"] == whole["scores"]
    file = "single-task-normals-0.pt" if method == "single-task" else f"{method}-normals-segmentation-0.pt"
    states = [torch.load(tmp_path / name / FOLDER / file, weights_only=True)["state"] for name in ("whole", "broken")]
    assert all(states[0][key].equal(value) for key, value in states[1].items())


def test_joined_networks_start_from_what_was_trained(nyu, tmp_path, checkpoints):
    wrapper = run(nyu, tmp_path, "--from-checkpoints", *checkpoints, method="aux-nas").training.model
    for net, checkpoint in zip((wrapper.primary_net, wrapper.aux_net), checkpoints, strict=True):
        state = torch.load(checkpoint, weights_only=True)["state"]
        assert all(value.equal(state[key]) for key, value in net.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    assert wrapper.eval()(images).primary.equal(wrapper.primary_net(images))  # edges start from zero


def test_gates_and_weights_are_trained_on_other_images(nyu, tmp_path, monkeypatch, checkpoints):
    made_files.nyuv2(tmp_path / "data")
    training = run(
        tmp_path / "data", tmp_path, "--held-out", 0, "--from-checkpoints", *checkpoints, method="aux-nas"
    ).training
    seen = []

    def step(batch, progress, optimisers):
        seen.append((batch["image"].sum().item(), [type(optimiser).__name__ for optimiser in optimisers]))
        return 0.0

    monkeypatch.setattr(training, "step", step)
    training.epoch(0, None)
    kinds = [kind for _, kind in seen]
    assert kinds == [["Adam"], ["SGD"]] and len({image for image, _ in seen}) == 2


def test_all_that_is_wrong_with_the_words_is_said_at_once(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--data", "nyuv2", "--primary", "scene", "--method", "aux-nas"])
    said = capsys.readouterr().err
    assert "--root is missing" in said and "--primary scene: nyuv2 has segmentation, normals, depth" in said
    assert "needs --aux" in said and "--from-checkpoints PRIMARY.pt AUX.pt" in said


def test_too_few_images_for_a_step_are_said(nyu, tmp_path):
    with pytest.raises(ValueError, match="a step needs 100 images; there are 4"):
        run(nyu, tmp_path, "--batch", 100)


@pytest.mark.parametrize("name, kind, factor", [("vgg16", SGD, 10), ("vit_base", Adam, 30)])
def test_what_has_no_pretrained_weights_learns_faster(name, kind, factor):
    recipe, net = RECIPES[name], SMALL[name].net(NORMALS, False)
    optimiser = recipe.optimiser(net, joined=False)
    assert isinstance(optimiser, kind)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    head = {id(p) for p in net.head.parameters()}
    assert rates.keys() == {id(p) for p in net.parameters()}
    for key, rate in rates.items():
        assert rate == pytest.approx(recipe.lr * (factor if key in head else 1))


def test_two_networks_learn_at_one_rate_without_their_gates(nyu, tmp_path, checkpoints):
    training = run(nyu, tmp_path, "--from-checkpoints", *checkpoints, method="aux-nas").training
    weights, gates = training.optimisers
    assert [group["lr"] for group in weights.param_groups] == [RECIPES["vgg16"].joined_lr]
    assert {id(p) for p in weights.param_groups[0]["params"]} == {id(p) for p in training.model.weight_parameters()}
    assert {id(p) for p in gates.param_groups[0]["params"]} == {id(p) for p in training.model.arch_parameters()}


def test_rates_fall_by_the_power(nyu, tmp_path):
    training = run(nyu, tmp_path, method="single-task", epochs=4).training
    rates = []
    for epoch in range(4):
        training.epoch(epoch, None)
        rates.append(training.optimisers[0].param_groups[0]["lr"])
    last = [(epoch + 1) / 4 - 1 / training.steps for epoch in range(4)]  # progress of the last step of each epoch
    assert rates == pytest.approx([RECIPES["vgg16"].lr * (1 - progress) ** 0.9 for progress in last])


def test_maps_are_judged_in_pixels_of_the_labels():
    images, labels = torch.zeros(1, 3, 4, 8), torch.zeros(1, 1, 8, 16)
    out = torch.full((1, 1, 4, 8), 3.0)
    assert at_resolution(out, images, labels, DISPARITY).mean().item() == pytest.approx(6)
    assert at_resolution(out, images, labels, DEPTH).mean().item() == pytest.approx(3)


def test_tapped_layers_are_compiled(nyu, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    training = run(nyu, tmp_path, "--compile").training
    assert compiled == [training.model.primary_net.get_submodule(tap) for tap in SMALL["vgg16"].taps]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_runs_in_lower_precision(precision, nyu, tmp_path):
    training = run(nyu, tmp_path, "--amp", precision).training
    training.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=precision == "fp16")  # it begins at 65536
    before = [p.clone() for p in training.model.primary_net.parameters()]
    training.epoch(0, None)
    assert any(not p.equal(old) for p, old in zip(training.model.primary_net.parameters(), before, strict=True))
    assert all(p.isfinite().all() for p in training.model.parameters())


def test_two_processes_train_one_network(nyu, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29577",
        str(TRAIN),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TRAIN.parents[2])}
    command = [*launch, *words(nyu, tmp_path, "--held-out", 0, "--batch", 1, epochs=1)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = run(nyu, tmp_path / "alone", "--held-out", 0, "--batch", 2, epochs=1).run()
    both = json.loads((tmp_path / FOLDER / "ours-normals-segmentation-0.json").read_text())
    assert both["scores"].keys() == alone["scores"].keys() and both["export"]["exact"]


def test_the_smoke_runs_everything(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(Experiment, "__init__", lambda self, options: ran.append(options))
    monkeypatch.setattr(Experiment, "run", lambda self: None)
    train.smoke(tmp_path)
    kinds = {(options.data, options.backbone, options.method) for options in ran}
    assert len(kinds) == 3 * 3 * (2 + len(METHODS))
