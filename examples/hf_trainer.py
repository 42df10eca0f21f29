"""Hugging Face Trainer: BERT learns a label of sentences, and a second BERT beside it learns a tag of each token."""

import argparse

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from auxnas_layers import AuxNASWrapper, Inputs, suggest_taps

WORDS, LENGTH = 40, 12  # of the vocabulary; of a sentence


class Sentences(torch.utils.data.Dataset):
    """Made sentences: a token's tag is its kind of word, and the label says which of two kinds is more frequent."""

    def __init__(self, count: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(WORDS, (count, LENGTH), generator=random)
        self.tags = torch.randint(4, (WORDS,), generator=torch.Generator().manual_seed(0))[self.tokens]
        self.labels = ((self.tags == 0).sum(1) > (self.tags == 1).sum(1)).long()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index], "tags": self.tags[index]}


class AuxTrainer(Trainer):
    """A Trainer that adds the auxiliary loss and the penalty in training, and scores the primary in evaluation."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **kwargs: object
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch; in evaluation also the primary's logits, for `compute_metrics`."""
        wrapper = self.accelerator.unwrap_model(model)  # DistributedDataParallel hides search_penalty
        labels, tags = inputs["labels"], inputs["tags"]
        texts = {name: value for name, value in inputs.items() if name not in ("labels", "tags")}
        if not model.training:
            logits = wrapper.primary_net(**texts).logits  # as it will be deployed
            loss = F.cross_entropy(logits, labels)
            return (loss, {"logits": logits}) if return_outputs else loss
        penalty = wrapper.search_penalty(self.state.global_step / self.state.max_steps)
        out = model(**texts)
        aux_loss = F.cross_entropy(out.aux.logits.flatten(0, 1), tags.flatten())
        return F.cross_entropy(out.primary.logits, labels) + aux_loss + penalty


def networks(name: str | None) -> tuple[nn.Module, nn.Module]:
    """Two small BERTs of random weights, or two pretrained ones."""
    kinds = (transformers.BertForSequenceClassification, 2), (transformers.BertForTokenClassification, 4)
    if name:
        return tuple(kind.from_pretrained(name, num_labels=count) for kind, count in kinds)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return tuple(kind(transformers.BertConfig(vocab_size=WORDS, num_labels=count, **sizes)) for kind, count in kinds)


def main() -> None:
    """Train with a checkpoint and an evaluation in each epoch; export what `from_pretrained` reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="name of a pretrained BERT, which is downloaded; default: small random ones")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the folder")
    parser.add_argument("--folder", default="data/hf_trainer")
    parser.add_argument("--fast", action="store_true", help="few sentences only, to see that it runs")
    options = parser.parse_args()
    torch.manual_seed(0)
    train, test = Sentences(64 if options.fast else 2000, seed=1), Sentences(200, seed=2)
    primary_net, aux_net = networks(options.model)
    inputs = Inputs((), {"input_ids": train.tokens[:2]})  # keyword arguments, as the Trainer calls the networks
    taps = suggest_taps(primary_net, aux_net, inputs)
    wrapper = AuxNASWrapper(primary_net, aux_net, taps, example_inputs=inputs)
    arguments = TrainingArguments(
        options.folder,
        num_train_epochs=2 if options.fast else 5,
        per_device_train_batch_size=16,
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
        remove_unused_columns=False,  # it would drop all columns, since the wrapper's forward names none
        label_names=["labels", "tags"],  # otherwise an evaluation passes them to the networks
    )
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-3, gate_lr=1e-2, weight_decay=0.01))
    trainer = AuxTrainer(wrapper, arguments, train_dataset=train, eval_dataset=test, optimizers=(optimizer, None))
    trainer.compute_metrics = lambda found: {"accuracy": (found.predictions.argmax(1) == found.label_ids[0]).mean()}
    trainer.train(resume_from_checkpoint=options.resume)
    print(f"test sentences right: {100 * trainer.evaluate()['eval_accuracy']:.1f} %")
    wrapper.eval().export_primary().save_pretrained(f"{options.folder}/exported")
    net = transformers.BertForSequenceClassification.from_pretrained(f"{options.folder}/exported").eval()
    tokens, wanted = test.tokens, wrapper.cpu().primary_net.eval()
    print("exported == primary:", torch.equal(net(tokens).logits, wanted(tokens).logits))


if __name__ == "__main__":
    main()
