"""The stop rule as a callback of Lightning and of transformers, with the real packages."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import l1_loss
from torch.utils.data import DataLoader, TensorDataset

from auxnas_layers import AuxNASWrapper, SearchError, StopRule

pytestmark = pytest.mark.filterwarnings("ignore")  # of what these packages use
STEPS = 40
X = torch.randn(STEPS // 2 * 8, 4, generator=torch.Generator().manual_seed(0))
LABELS = X.sum(1, keepdim=True), torch.randn(len(X), 1, generator=torch.Generator().manual_seed(1))  # the latter noise


def wrap() -> AuxNASWrapper:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(2)]
    return AuxNASWrapper(*nets, ["0"], example_inputs=X[:2])


def rule_of(wrapper: AuxNASWrapper, key: object = 0, **options: object) -> StopRule:
    """For batches that are tuples, or with `key` mappings."""
    x, primary, aux = (0, 1, 2) if key == 0 else ("x", "labels", "aux")
    held_out = [tuple(parts) for parts in zip(*(part.split(40) for part in (X, *LABELS)), strict=True)]
    if key:
        held_out = [dict(zip((x, primary, aux), batch, strict=True)) for batch in held_out]
    return StopRule(
        wrapper,
        held_out,
        primary_loss=lambda y, batch: l1_loss(y, batch[primary]),
        aux_loss=lambda y, batch: l1_loss(y, batch[aux]),
        inputs=lambda batch: batch[x],
        **{"explains": 0.5, **options},
    )


def loss_of(wrapper: AuxNASWrapper, going_on: object, x: torch.Tensor, labels: object, progress: float) -> torch.Tensor:
    if not going_on:
        return l1_loss(wrapper.primary_net(x), labels[0])
    out = wrapper(x)
    return l1_loss(out.primary, labels[0]) + l1_loss(out.aux, labels[1]) + wrapper.search_penalty(progress)


# Lightning


@pytest.fixture
def lightning():
    return pytest.importorskip("lightning.pytorch")


def module_of(lightning, automatic: bool = True):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = automatic
            self.wrapper = wrap()
            self.rule, self.said = rule_of(self.wrapper), []

        def training_step(self, batch, batch_idx):
            self.said.append(self.rule.going_on)
            x, *labels = batch
            loss = loss_of(self.wrapper, self.rule.going_on, x, labels, 0.5)
            if automatic:
                return loss
            optimisers = self.optimizers()
            for optimiser in optimisers:
                optimiser.zero_grad()
            self.manual_backward(loss)
            for optimiser in optimisers:
                optimiser.step()

        def validation_step(self, batch, batch_idx):
            assert not self.wrapper.training

        def configure_optimizers(self):
            groups = [self.wrapper.weight_parameters(), self.wrapper.arch_parameters()]
            if automatic:
                return torch.optim.Adam([{"params": group} for group in groups], lr=1e-3)
            return [torch.optim.Adam(group, lr=1e-3) for group in groups], []

    return Module()


def loader(names: tuple[str, ...] = ()) -> object:
    data = TensorDataset(X, *LABELS)
    if not names:
        return DataLoader(data, batch_size=8)
    return [dict(zip(names, sample, strict=True)) for sample in data]


def trainer_of(lightning, folder, *callbacks, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    options = {"max_epochs": 2, "num_sanity_val_steps": 1, **quiet, **options}
    return lightning.Trainer(callbacks=list(callbacks), default_root_dir=folder, **options)


@pytest.mark.parametrize("automatic", [True, False], ids=["one optimiser", "two optimisers by hand"])
@pytest.mark.parametrize("limit", [{}, {"max_epochs": -1, "max_steps": STEPS}], ids=["epochs", "steps"])
def test_lightning_asks_the_rule_at_each_batch(lightning, tmp_path, automatic, limit):
    from auxnas_layers.callbacks import LightningStopRule

    module = module_of(lightning, automatic)
    if limit and not automatic:
        limit = limit | {"max_steps": 2 * STEPS}  # of both optimisers
    trainer = trainer_of(lightning, tmp_path, LightningStopRule(module.rule), enable_checkpointing=False, **limit)
    trainer.fit(module, loader(), loader())
    assert module.said == [("aux",)] * 8 + [()] * 32
    assert len(module.rule.alignment.cosines["aux"]) == 8 and len(module.rule.explained["aux"]) == 4
    assert module.wrapper.export_primary() is not None


@pytest.mark.parametrize("accumulated", [1, 2])
def test_lightning_resumes_the_rule_from_a_checkpoint(lightning, tmp_path, accumulated):
    from auxnas_layers.callbacks import LightningStopRule

    def run(epochs: int, checkpoint: object = None) -> object:
        module = module_of(lightning)
        progress = lambda trainer: trainer.global_step * accumulated / STEPS  # noqa: E731
        callback = LightningStopRule(module.rule, progress)
        trainer = trainer_of(
            lightning, tmp_path, callback, max_epochs=epochs, accumulate_grad_batches=accumulated, barebones=False
        )
        trainer.fit(module, loader(), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    whole = run(2)
    first = run(1)
    resumed = run(2, tmp_path / "1.ckpt")
    assert resumed.rule.state_dict() == whole.rule.state_dict() != first.rule.state_dict()
    assert first.said + resumed.said == whole.said
    torch.load(tmp_path / "2.ckpt", weights_only=True)["callbacks"]["StopRule"]


def test_lightning_gives_the_rule_what_it_takes_of_a_batch(lightning, tmp_path):
    from auxnas_layers.callbacks import LightningStopRule

    module, seen = module_of(lightning), []
    callback = LightningStopRule(module.rule, batch=lambda batch: seen.append(batch) or batch[:], name="mine")
    assert callback.state_key == "mine" and isinstance(callback, lightning.Callback)
    trainer_of(lightning, tmp_path, callback, max_epochs=1, enable_checkpointing=False).fit(module, loader())
    assert len(seen) == STEPS // 2 and torch.equal(seen[0][0], X[:8])


def test_lightning_without_an_end_is_refused(lightning, tmp_path):
    from auxnas_layers.callbacks import LightningStopRule

    module = module_of(lightning)
    trainer = trainer_of(lightning, tmp_path, LightningStopRule(module.rule), max_epochs=-1, enable_checkpointing=False)
    with pytest.raises(
        SearchError, match=r"how many steps it will take \(max_epochs=-1, max_steps=-1\); set max_steps"
    ):
        trainer.fit(module, loader())


# transformers


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


def trainer_of_transformers(transformers, folder, epochs: int = 2, measurements: int = 30, **options):
    pytest.importorskip("accelerate")
    from auxnas_layers.callbacks import TransformersStopRule

    class Trainer(transformers.Trainer):
        said = ()

        def compute_loss(self, model, inputs, return_outputs=False, **_):
            progress = self.state.global_step / self.state.max_steps
            going_on = rule.step(progress, inputs) if model.training else rule.going_on
            self.said = (*self.said, going_on)
            loss = loss_of(wrapper, going_on, inputs["x"], (inputs["labels"], inputs["aux"]), progress)
            return (loss, {}) if return_outputs else loss

    wrapper = wrap()
    rule = rule_of(wrapper, "x", measurements=measurements)
    arguments = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_steps=7,
        remove_unused_columns=False,
        logging_strategy="no",
        **options,
    )
    names = ("x", "labels", "aux")
    callbacks = [TransformersStopRule(rule)]
    return rule, Trainer(wrapper, arguments, train_dataset=loader(names), callbacks=callbacks)


@pytest.mark.parametrize("checkpoint", [7, 14])
def test_transformers_ask_the_rule_and_resume_it(transformers, tmp_path, checkpoint):
    whole, trainer = trainer_of_transformers(transformers, tmp_path)
    trainer.train()
    assert trainer.said == (("aux",),) * 8 + ((),) * 32 and len(whole.explained["aux"]) == 4
    resumed, other = trainer_of_transformers(transformers, tmp_path)
    other.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert other.said == trainer.said[checkpoint:]
    assert resumed.state_dict().keys() == whole.state_dict().keys() and resumed.stopped == whole.stopped
    assert len(resumed.alignment.cosines["aux"]) == len(whole.alignment.cosines["aux"]) == 8


def test_transformers_measure_steps_of_accumulated_gradients_once(transformers, tmp_path):
    rule, trainer = trainer_of_transformers(transformers, tmp_path, 4, 10, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.said == (("aux",),) * 16 + ((),) * 64 and len(rule.alignment.cosines["aux"]) == 4


# Without them


def test_a_package_that_is_missing_is_named(monkeypatch):
    import auxnas_layers.callbacks as callbacks

    with pytest.raises(AttributeError, match="'auxnas_layers.callbacks' has no attribute 'OtherStopRule'"):
        _ = callbacks.OtherStopRule
    for name, package in {"LightningStopRule": "lightning", "TransformersStopRule": "transformers"}.items():
        monkeypatch.delitem(vars(callbacks), name, raising=False)
        monkeypatch.setattr(callbacks, "find_spec", lambda _: None)
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, f"{package}.pytorch", None)
        with pytest.raises(ModuleNotFoundError, match=package):
            getattr(callbacks, name)
