"""A timm ViT sorts discs by size, and a light auxiliary learns masks from its tokens: few class labels, many masks."""

import argparse

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from auxnas_layers import AuxG, AuxNASWrapper, Listener, known, suggest_taps

SIZE, PATCH, UNKNOWN = 64, 8, -100  # pixels; pixels; the label of a sample that has none


class MaskHead(nn.Module):
    """The auxiliary: no backbone, only a head on the tokens that the primary's block returns."""

    def __init__(self, channels: int, extra: int) -> None:
        super().__init__()
        self.extra = extra  # tokens before those of patches, such as a class token
        self.tokens = Listener(channels, channel_dim=-1)
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(b, 3, h, w)`` to a logit for each patch ``(b, patches)``."""
        tokens = self.tokens(images, self.extra + (SIZE // PATCH) ** 2)  # as many as the ViT has
        return self.head(tokens)[:, self.extra :, 0]


def samples(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images of a small, medium or large disc; which of the three; and the share of each patch that it covers."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=random)
    centres = torch.rand(count, 2, 1, 1, generator=random) * (SIZE - 28) + 14
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    away = (torch.stack([rows, columns]) - centres).square().sum(1).sqrt()
    masks = (away < 7 + 3 * labels.view(-1, 1, 1)).float().unsqueeze(1)
    colours = torch.rand(count, 3, 1, 1, generator=random)
    images = masks * colours + 0.5 * torch.randn(count, 3, SIZE, SIZE, generator=random)
    return images, labels, F.avg_pool2d(masks, PATCH).flatten(1)


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images that are classified right, in percent."""
    net.eval()
    with torch.no_grad():
        right = torch.cat([net(part).argmax(1) for part in images.split(250)]) == labels
    net.train()
    return 100 * right.float().mean().item()


def train(wrapper: AuxNASWrapper, data: list[Tensor], steps: int, aux_weight: float, name: str) -> None:
    """The usual loop; the weight 0 trains the primary alone."""
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=3e-4, gate_lr=1e-2, weight_decay=0.05))
    labelled, other = (data[1] != UNKNOWN).nonzero().flatten(), (data[1] == UNKNOWN).nonzero().flatten()
    for step in tqdm(range(steps), name):
        chosen = torch.cat([pool[torch.randint(len(pool), (16,))] for pool in (labelled, other)])  # half of each kind
        images, labels, masks = (part[chosen] for part in data)
        penalty = wrapper.search_penalty(step / steps)  # AuxG closes nothing: it is 0
        out = wrapper(images)
        aux_loss = F.binary_cross_entropy_with_logits(out.aux, masks)
        loss = known(F.cross_entropy, out.primary, labels) + aux_weight * aux_loss + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    """Train the same ViT without and with masks; compare both on test images, and export the latter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--pretrained", action="store_true", help="12 blocks with ImageNet weights, downloaded by timm")
    parser.add_argument("--labels", type=int, default=100, help="images with a class label, of 2,000")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--fast", action="store_true", help="a few steps of a small ViT, to see that it runs")
    options = parser.parse_args()
    small = {} if options.pretrained else {"depth": 2 if options.fast else 4, "embed_dim": 96}  # seconds on a CPU
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, test = ([part.to(device) for part in samples(2000, seed)] for seed in (0, 1))
    data[1][options.labels :] = UNKNOWN  # masks stay: the auxiliary has 2,000 labels
    for name, aux_weight in (("alone", 0.0), ("with masks", 1.0)):
        torch.manual_seed(0)  # the same start and the same batches
        sizes = {"img_size": SIZE, "patch_size": PATCH, "num_classes": 3}
        primary_net = timm.create_model(options.model, pretrained=options.pretrained, **sizes, **small).to(device)
        aux_net = MaskHead(primary_net.embed_dim, primary_net.num_prefix_tokens).to(device)
        taps = suggest_taps(primary_net, aux_net, data[0][:2])  # the last block
        wrapper = AuxNASWrapper(primary_net, aux_net, taps, search=AuxG(), example_inputs=data[0][:2])
        train(wrapper, data, 4 if options.fast else options.steps, aux_weight, name)
        print(f"{name}: {accuracy(wrapper.primary_net, *test[:2]):.1f} % of 2,000 test images right")
    wrapper.export_primary().eval()  # timm's own class and keys, without the auxiliary
    print(wrapper.export_report)
    print("exported == primary:", wrapper.export_report.exact)


if __name__ == "__main__":
    main()
