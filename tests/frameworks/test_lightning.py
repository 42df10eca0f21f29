"""Lightning: automatic and manual optimisation, in bf16, with accumulated gradients, resumed, averaged."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, ModelSummary
from samples import (
    BATCH,
    EPOCHS,
    STEPS,
    assert_close_states,
    assert_equal_states,
    assert_exports,
    assert_trained,
    batches,
    loss_of,
    wrap,
)
from torch.optim.lr_scheduler import LinearLR

from auxnas_layers import SearchError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec"),
]


class Task(lightning.LightningModule):
    """One optimiser, which Lightning steps."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.wrapper = wrap(seed)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        inputs, labels, others = batch
        penalty = self.wrapper.search_penalty(self.global_step / self.trainer.estimated_stepping_batches)
        return loss_of(self.wrapper(inputs), labels, others) + penalty

    def validation_step(self, batch: Any, _: int) -> None:
        inputs, labels, _ = batch
        self.log("validation", F.cross_entropy(self.wrapper.primary_net(inputs), labels))

    def predict_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.wrapper.primary_net(batch[0])

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(self.wrapper.param_groups(lr=1e-2))
        return [optimiser], [{"scheduler": LinearLR(optimiser, 1.0, 0.1, STEPS), "interval": "step"}]


class TwoOptimisers(Task):
    """Two optimisers, stepped by hand."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:
        inputs, labels, others = batch
        weights, gates = self.optimizers()
        step = self.global_step / 2  # Lightning counts the steps of both optimisers
        penalty = self.wrapper.search_penalty(step / self.trainer.estimated_stepping_batches)
        loss = loss_of(self.wrapper(inputs), labels, others) + penalty
        for one in (weights, gates):
            one.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(weights, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        for one in (weights, gates):
            one.step()

    def configure_optimizers(self) -> Any:
        weights = torch.optim.AdamW(self.wrapper.weight_parameters(), lr=1e-2)
        return weights, torch.optim.Adam(self.wrapper.arch_parameters(), lr=1e-2)


def trainer_of(folder: Path, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        **{
            "max_epochs": EPOCHS,
            "enable_checkpointing": False,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        },
    )


def finish(folder: Path, kind: type[Task], seed: int = 0, resume: bool = False, batch: int = BATCH, **options: Any):
    """The state at the end; what another process runs."""
    task = kind(seed)
    saved = f"epoch={EPOCHS // 2 - 1}.ckpt"
    if not resume and not options:
        options = {
            "enable_checkpointing": True,
            "callbacks": [ModelCheckpoint(folder, "{epoch}", save_top_k=-1, monitor=None, every_n_epochs=1)],
        }
    trainer_of(folder, **options).fit(task, batches(batch), batches(), ckpt_path=folder / saved if resume else None)
    return task.wrapper.state_dict()


both_kinds = pytest.mark.parametrize("kind", [Task, TwoOptimisers])


@both_kinds
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_wrapper_trains_validates_and_exports(tmp_path, kind, precision):
    task = kind()
    clip = {"gradient_clip_val": 1.0} if kind is Task else {}
    trainer = trainer_of(tmp_path, precision=precision, num_sanity_val_steps=1, **clip)
    trainer.fit(task, batches(), batches())
    assert_trained(task.wrapper)
    assert_exports(task.wrapper)
    exact = finish(tmp_path, kind, precision="32-true", **clip)["primary_net.head.weight"]
    assert torch.equal(task.wrapper.primary_net.head.weight, exact) == (precision == "32-true")
    if precision == "32-true":
        exported = task.wrapper.export_primary()
        assert torch.equal(
            torch.cat(trainer.predict(task, batches())), torch.cat([exported(x) for x, _, _ in batches()])
        )
        found = trainer.validate(task, batches(), verbose=False)[0]["validation"]
        assert found == pytest.approx(sum(F.cross_entropy(exported(x), y).item() for x, y, _ in batches()) / 2)


def test_a_test_in_inference_mode_does_not_change_what_is_trained_afterwards(tmp_path):
    class Tested(Task):
        def test_step(self, batch: Any, _: int) -> None:
            assert torch.is_inference_mode_enabled()
            self.log("test", loss_of(self.wrapper(batch[0]), *batch[1:]))

    task = Tested()
    trainer_of(tmp_path).test(task, batches(), verbose=False)
    trainer_of(tmp_path).fit(task, batches(), batches())
    assert_equal_states(task.wrapper.state_dict(), finish(tmp_path, Task))


def test_in_pure_bf16_the_export_is_in_bf16(tmp_path):
    task = Task()
    trainer_of(tmp_path, precision="bf16-true").fit(task, batches(), batches())
    exported = task.wrapper.export_primary()
    assert {parameter.dtype for parameter in exported.parameters()} == {torch.bfloat16}
    assert task.wrapper.export_report.exact


def test_micro_batches_equal_the_large_batch(tmp_path):
    large = finish(tmp_path, Task, precision="32-true")
    assert_close_states(finish(tmp_path, Task, batch=BATCH // 2, accumulate_grad_batches=2), large)


@both_kinds
def test_another_process_goes_on_from_a_checkpoint(tmp_path, elsewhere, kind):
    whole = finish(tmp_path, kind)
    assert_equal_states(elsewhere.submit(finish, tmp_path, kind, seed=7, resume=True).result(), whole)


def test_a_saved_checkpoint_is_loaded_with_its_hyperparameters(tmp_path):
    task = Task()
    trainer = trainer_of(tmp_path, callbacks=[ModelSummary(max_depth=-1)])
    trainer.fit(task, batches(), batches())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = Task.load_from_checkpoint(tmp_path / "end.ckpt", seed=7)
    assert_equal_states(again.state_dict(), task.state_dict())
    assert again.hparams.seed == 7
    assert_exports(again.wrapper)


def test_a_loop_that_counts_the_steps_of_two_optimisers_is_told(tmp_path):
    class Unhalved(TwoOptimisers):
        @property
        def global_step(self):
            return 2 * super().global_step

    with pytest.raises(SearchError, match=r"progress is the share of training that is done, in \[0, 1\]; found 1"):
        trainer_of(tmp_path).fit(Unhalved(), batches(), batches())


def test_an_average_of_all_weights_exports(tmp_path):
    task = Task()
    trainer_of(tmp_path, callbacks=[EMAWeightAveraging(decay=0.5)]).fit(task, batches(), batches())
    assert_trained(task.wrapper)
    assert_exports(task.wrapper)
