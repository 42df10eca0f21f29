"""The Trainer of transformers: in bf16, with accumulated gradients, resumed; and what it looks for on a model."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from samples import (
    BATCH,
    INPUTS,
    OTHERS,
    STEPS,
    Net,
    Rows,
    assert_close_states,
    assert_equal_states,
    assert_exports,
    assert_trained,
    loss_of,
    wrap,
)
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, Trainer, TrainingArguments

from auxnas_layers import AuxNASWrapper, ExportError, Inputs, MixedBatchSampler

TEXT = torch.randint(0, 30, (16, 7), generator=torch.Generator().manual_seed(0))


class AuxTrainer(Trainer):
    """Adds the auxiliary's loss and the search's penalty, and evaluates the primary."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        wrapper = self.accelerator.unwrap_model(model)
        penalty = wrapper.search_penalty(self.state.global_step / self.state.max_steps) if model.training else 0.0
        out = model(inputs["inputs"])
        loss = loss_of(out, inputs["labels"], inputs["others"]) + penalty
        return (loss, {"logits": out.primary}) if return_outputs else loss


# --8<-- [start:mixed]
class MixedTrainer(AuxTrainer):
    def get_train_dataloader(self):
        sampler = MixedBatchSampler(labelled=range(4), other=range(4, 16), batch_size=6)
        loader = DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)


# --8<-- [end:mixed]


class PlainTrainer(AuxTrainer):
    """The same, with the wrapper's output as it is."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(inputs["inputs"])
        loss = loss_of(out, inputs["labels"], inputs["others"])
        return (loss, out) if return_outputs else loss


def trainer_of(
    folder: Path, *, seed=0, dropout=0.0, kind=AuxTrainer, wrapper=None, optimiser=torch.optim.AdamW, **options
):
    AcceleratorState._reset_state(reset_partial_state=True)
    wrapper = wrapper or wrap(seed, dropout)
    weights = optimiser(wrapper.param_groups(lr=1e-2))
    arguments = TrainingArguments(
        str(folder),
        remove_unused_columns=False,  # it would keep what `forward` names, and the wrapper's names nothing
        label_names=["labels", "others"],
        **{
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
            **options,
        },
    )
    return kind(wrapper, arguments, train_dataset=Rows(), eval_dataset=Rows(), optimizers=(weights, None))


def finish(folder: Path, *, resume: bool = False, **options):
    """The state at the end; what another process runs."""
    trainer = trainer_of(folder, **options)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS // 2}") if resume else None)
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


SAVING = {"save_strategy": "steps", "save_steps": STEPS // 2}


def test_the_wrapper_trains_and_exports_and_evaluation_is_the_primarys(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    wrapper = trainer.model
    assert_trained(wrapper)
    assert_exports(wrapper)
    predictions, (labels, others), metrics = trainer.predict(Rows())
    wanted = wrapper.eval()(INPUTS)
    torch.testing.assert_close(torch.from_numpy(predictions), wanted.primary)
    assert (labels == Rows()[:]["labels"].numpy()).all() and (others == OTHERS.numpy()).all()
    assert metrics["test_loss"] == pytest.approx(loss_of(wanted, Rows()[:]["labels"], OTHERS).item(), rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(metrics["test_loss"])


@pytest.mark.filterwarnings("ignore:evaluated with")
def test_evaluations_on_the_way_change_nothing(tmp_path):
    assert_equal_states(finish(tmp_path, eval_strategy="steps", eval_steps=1), finish(tmp_path))


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_a_wrappers_output_as_it_is_gives_the_primarys_predictions(tmp_path, batch):
    trainer = trainer_of(tmp_path, kind=PlainTrainer, per_device_eval_batch_size=batch)
    predictions = trainer.predict(Rows()).predictions
    assert predictions.shape == (16, 2)
    torch.testing.assert_close(torch.from_numpy(predictions), trainer.model.eval()(INPUTS).primary)


@pytest.mark.parametrize("batch", [4, 16])  # of a batch of one sample the Trainer takes the first row
def test_data_without_labels_is_predicted_by_the_exported_network(tmp_path, batch):
    trainer = trainer_of(tmp_path, per_device_eval_batch_size=batch)
    trainer.model.close_aux_to_primary_()
    plain = Trainer(trainer.model.export_primary(), trainer.args)
    predictions = plain.predict(Rows(labelled=False)).predictions
    torch.testing.assert_close(torch.from_numpy(predictions), trainer.model.eval()(INPUTS).primary)


def test_mixed_batches_are_trained_on_and_resume_in_the_middle_of_an_epoch(tmp_path):
    options = {"kind": MixedTrainer, "save_strategy": "steps", "save_steps": STEPS // 2}
    first = next(iter(trainer_of(tmp_path, **options).get_train_dataloader()))["inputs"]
    assert torch.equal(first, INPUTS[next(iter(MixedBatchSampler(range(4), range(4, 16), 6)))])
    whole = finish(tmp_path, **options)
    assert_equal_states(finish(tmp_path, seed=1, resume=True, **options), whole)


def test_in_bf16_the_export_computes_in_float32(tmp_path):
    trainer = trainer_of(tmp_path, bf16=True)
    trainer.train()
    assert_trained(trainer.model)
    assert_exports(trainer.model)


def test_micro_batches_equal_the_large_batch(tmp_path):
    large = finish(
        tmp_path, optimiser=torch.optim.SGD, max_grad_norm=0.0
    )  # which a loss twice as large moves twice as far
    halves = {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2}
    small = finish(tmp_path, optimiser=torch.optim.SGD, max_grad_norm=0.0, **halves)
    assert_close_states(small, large)


def test_another_process_goes_on_from_a_checkpoint(tmp_path, elsewhere):
    whole = finish(tmp_path, dropout=0.2, **SAVING)
    again = elsewhere.submit(finish, tmp_path, dropout=0.2, seed=7, resume=True, **SAVING).result()
    assert_equal_states(again, whole)


class Later(AuxTrainer):
    """Calls the penalty after the forward pass, which is allowed too."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(inputs["inputs"])
        penalty = self.accelerator.unwrap_model(model).search_penalty(self.state.global_step / self.state.max_steps)
        return loss_of(out, inputs["labels"], inputs["others"]) + penalty


def test_a_checkpoint_is_resumed_where_the_penalty_follows_the_forward_pass(tmp_path):
    whole = finish(tmp_path, kind=Later, **SAVING)
    assert_equal_states(finish(tmp_path, kind=Later, seed=7, resume=True, **SAVING), whole)


def test_a_saved_model_loads_into_another_wrapper(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    wrapper = wrap(seed=7)
    wrapper.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    assert_equal_states(wrapper.state_dict(), trainer.model.state_dict())
    assert_exports(wrapper)


@pytest.mark.filterwarnings("ignore:evaluated with")
@pytest.mark.parametrize("best", [2, STEPS - 2])
def test_the_best_model_is_loaded_at_the_end_and_exports_if_its_edges_are_closed(tmp_path, best):
    evaluations = []

    def score(_):
        evaluations.append(None)
        return {"score": float(len(evaluations) * 2 == best)}

    every = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_of(tmp_path, load_best_model_at_end=True, metric_for_best_model="score", **every)
    trainer.compute_metrics = score
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert_equal_states(trainer.model.state_dict(), load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors"))
    if best > 0.4 * STEPS:
        assert_exports(trainer.model)
    else:
        with pytest.raises(ExportError, match="into the primary are still open"):
            trainer.model.export_primary()


# What the Trainer looks for on a model


def bert(kind=BertForSequenceClassification, labels: int = 2):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return kind(BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=labels, **sizes))


LAYERS = ["bert.encoder.layer.0", "bert.encoder.layer.1"]


class Texts(Rows):
    def __getitem__(self, row):
        return {"input_ids": TEXT[row], "labels": TEXT[row, 0] % 2, "others": TEXT[row, 1] % 3}


class TextTrainer(AuxTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        wrapper = self.accelerator.unwrap_model(model)
        penalty = wrapper.search_penalty(self.state.global_step / self.state.max_steps) if model.training else 0.0
        out = model(input_ids=inputs["input_ids"])
        logits = type(out)(out.primary.logits, out.aux.logits)
        loss = loss_of(logits, inputs["labels"], inputs["others"]) + penalty
        return (loss, {"logits": logits.primary}) if return_outputs else loss


def texts(folder: Path, kind: type[Trainer] = TextTrainer, **options):
    torch.manual_seed(0)
    wrapper = AuxNASWrapper(bert(), bert(labels=3), LAYERS, example_inputs=Inputs((), {"input_ids": TEXT}))
    trainer = trainer_of(folder, wrapper=wrapper, kind=kind, **options)
    trainer.train_dataset = trainer.eval_dataset = Texts()
    return trainer


def test_networks_of_transformers_train_and_export_to_what_from_pretrained_reads(tmp_path):
    trainer = texts(tmp_path)
    trainer.train()
    exported = trainer.model.eval().export_primary()
    exported.save_pretrained(tmp_path / "exported")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "exported")
    wanted = trainer.model(TEXT).primary.logits
    assert torch.equal(again.eval()(TEXT).logits, wanted)
    torch.testing.assert_close(torch.from_numpy(trainer.predict(Texts()).predictions), wanted)


def test_activations_are_recomputed_in_both_networks(tmp_path, recwarn):
    kept = texts(tmp_path)
    kept.train()
    trainer = texts(tmp_path, activation_checkpointing=True)
    trainer.train()
    assert trainer.model.primary_net.is_activation_checkpointing and trainer.model.aux_net.is_activation_checkpointing
    assert not [one for one in recwarn if issubclass(one.category, FutureWarning) and "AuxNAS" in str(one.message)]
    assert_close_states(trainer.model.state_dict(), kept.model.state_dict())


def test_a_trainer_that_smooths_labels_finds_the_primarys_configuration(tmp_path):
    trainer = texts(tmp_path, label_smoothing_factor=0.1)
    assert trainer.model.config is trainer.model.primary_net.config


class Named(Net):
    main_input_name = "inputs"  # as models of transformers for images have


def test_metrics_can_look_at_the_primarys_inputs(tmp_path):
    wrapper = AuxNASWrapper(Named(2), Net(3), taps=["first"], example_inputs=INPUTS)
    trainer = trainer_of(tmp_path, wrapper=wrapper, include_for_metrics=["inputs"])
    seen = []
    trainer.compute_metrics = lambda found: seen.append(found.inputs) or {}
    trainer.evaluate()
    assert (seen[0] == INPUTS.numpy()).all()


def test_a_wrapper_without_a_configuration_has_none():
    assert not hasattr(wrap(), "config")


class Cloning(TextTrainer):
    """Saves tied weights twice, since a safetensors file cannot say that two are one."""

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, {key: value.clone() for key, value in self.model.state_dict().items()})


@pytest.mark.parametrize("kind", [TextTrainer, Cloning])
def test_networks_with_tied_weights_are_saved_by_copies(tmp_path, kind):
    torch.manual_seed(0)
    nets = (bert(BertForMaskedLM) for _ in "12")
    wrapper = AuxNASWrapper(*nets, LAYERS, example_inputs=Inputs((), {"input_ids": TEXT}))
    trainer = trainer_of(tmp_path, wrapper=wrapper, kind=kind)
    if kind is TextTrainer:
        with pytest.raises(RuntimeError, match="Some tensors share memory"):
            trainer.save_model(str(tmp_path))
        return
    trainer.save_model(str(tmp_path))
    twin = copy.deepcopy(wrapper)
    for parameter in wrapper.parameters():
        parameter.data.zero_()
    trainer._load_from_checkpoint(str(tmp_path))
    assert_equal_states(wrapper.state_dict(), twin.state_dict())
    assert (
        wrapper.primary_net.cls.predictions.decoder.weight is wrapper.primary_net.bert.embeddings.word_embeddings.weight
    )


def test_both_networks_are_plain_again_after_training(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    assert vars(trainer.model.primary_net).keys() == vars(Net(2)).keys()
