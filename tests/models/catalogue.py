"""Networks that nobody here wrote, with random weights: the smallest of each family, as few layers as it allows."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from auxnas_layers import Inputs


@dataclass(frozen=True)
class Model:
    """A network of another library, and how to call it.

    Args:
        library: Where it is from.
        name: Its name there.
        make: Makes it, with random weights.
        inputs: Makes inputs for two samples.
    """

    library: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]

    def __repr__(self) -> str:
        return f"{self.library}:{self.name}"


def images(size: int) -> Callable[[], Inputs]:
    return lambda: Inputs((torch.randn(2, 3, size, size),))


def videos(size: int) -> Callable[[], Inputs]:
    return lambda: Inputs((torch.randn(2, 3, 16, size, size),))


# torchvision

_TORCHVISION = {
    64: [
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "efficientnet_v2_s",
        "googlenet",
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "regnet_x_400mf",
        "regnet_y_400mf",
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "shufflenet_v2_x0_5",
        "swin_t",
        "swin_v2_t",
        "vgg11",
        "vgg11_bn",
        "wide_resnet50_2",
        "alexnet",
        "squeezenet1_0",
        "squeezenet1_1",
        "lraspp_mobilenet_v3_large",
        "deeplabv3_mobilenet_v3_large",
        "fcn_resnet50",
    ],
    96: ["inception_v3"],
    224: ["vit_b_32", "maxvit_t"],
}
_VIDEO = ["mc3_18", "r3d_18", "r2plus1d_18", "s3d", "swin3d_t"]


def torchvision(name: str, inputs: Callable[[], Inputs]) -> Model:
    def make() -> nn.Module:
        models = importlib.import_module("torchvision.models")
        options: dict[str, Any] = {"weights": None}
        if any(part in name for part in ("deeplab", "fcn", "lraspp")):
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options |= {"init_weights": False, "aux_logits": False}
        return models.get_model(name, **options)

    return Model("torchvision", name, make, inputs)


# timm: the smallest network of each of its files; at 96 x 96 where the size is free

_TIMM_FIXED = {
    160: ["test_vit", "test_vit_relpos"],
    224: [
        "beit_base_patch16_224",
        "cait_xxs24_224",
        "coat_tiny",
        "convit_tiny",
        "deit_tiny_patch16_224",
        "efficientformer_l1",
        "efficientformerv2_s0",
        "efficientvit_m0",
        "eva02_tiny_patch14_224",
        "gcvit_xxtiny",
        "gmlp_ti16_224",
        "hiera_tiny_224",
        "levit_128s",
        "mvitv2_tiny",
        "nest_tiny",
        "pit_ti_224",
        "samvit_base_patch16_224",
        "sequencer2d_s",
        "swiftformer_xs",
        "swin_tiny_patch4_window7_224",
        "swinv2_cr_tiny_224",
        "tnt_s_legacy_patch16_224",
        "twins_svt_small",
        "visformer_tiny",
        "vit_tiny_r_s16_p8_224",
        "vitamin_small_224",
        "volo_d1_224",
        "xcit_nano_12_p8_224",
    ],
    240: ["crossvit_tiny_240"],
    256: ["maxvit_pico_rw_256", "swinv2_tiny_window16_256"],
}
_TIMM_FREE = [
    "convmixer_768_32",
    "cpubone_nano",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientnet_lite0",
    "efficientvim_m1",
    "efficientvit_b0",
    "ese_vovnet19b_slim_dw",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "ghostnet_050",
    "halonet_h1",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "legacy_seresnet18",
    "legacy_xception",
    "lowformer_b0",
    "mobilenetv3_small_050",
    "mobileone_s1",
    "mobilevit_xxs",
    "nextvit_small",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "resnet10t",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "test_convnext",
    "test_mambaout",
    "test_nfnet",
    "tiny_vit_5m_224",
    "tresnet_m",
    "vgg11",
    "xception41p",
]


def timm(name: str, size: int) -> Model:
    return Model("timm", name, lambda: importlib.import_module("timm").create_model(name), images(size))


# transformers: built from configurations with small numbers wherever there is one to set

_SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ["hidden_size", "d_model", "dim", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim"], 32
    ),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 3),
    **dict.fromkeys(
        ["encoder_layers", "decoder_layers", "num_decoder_layers", "num_attention_heads", "n_head", "n_heads"], 2
    ),
    **dict.fromkeys(["num_heads", "encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads"], 2),
    **dict.fromkeys(
        [
            "intermediate_size",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_dim",
            "d_ff",
            "hidden_dim",
            "n_inner",
            "d_inner",
        ],
        37,
    ),
    **dict.fromkeys(["d_kv", "d_head", "head_dim", "num_mel_bins", "max_source_positions", "max_target_positions"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], 64),
    **dict.fromkeys(["rotary_dim", "state_size", "time_step_rank", "patch_size"], 8),
    "vocab_size": 99,
    "image_size": 32,
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0},
    **{"conv_dim": (32, 32), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
_TEXT = [
    "albert",
    "bert",
    "big_bird",
    "bart",
    "bert-generation",
    "blenderbot",
    "blenderbot-small",
    "bloom",
    "camembert",
    "canine",
    "convbert",
    "ctrl",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "esm",
    "flaubert",
    "fnet",
    "gemma",
    "gemma2",
    "glm",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gptj",
    "granite",
    "ibert",
    "layoutlm",
    "llama",
    "longformer",
    "longt5",
    "m2m_100",
    "mamba",
    "marian",
    "mbart",
    "megatron-bert",
    "mistral",
    "mobilebert",
    "modernbert",
    "mpnet",
    "mpt",
    "mt5",
    "mvp",
    "nystromformer",
    "olmo",
    "openai-gpt",
    "opt",
    "pegasus",
    "persimmon",
    "phi",
    "plbart",
    "qwen2",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roformer",
    "rwkv",
    "splinter",
    "stablelm",
    "starcoder2",
    "switch_transformers",
    "t5",
    "umt5",
    "xglm",
    "xlm",
    "xlm-roberta",
    "yoso",
]
_VISION = {
    32: [
        "vit",
        "deit",
        "beit",
        "dinov2",
        "vit_mae",
        "vit_msn",
        "clip_vision_model",
        "siglip_vision_model",
        "data2vec-vision",
        "ijepa",
        "dpt",
        "vitdet",
    ],
    64: [
        "segformer",
        "poolformer",
        "mobilevit",
        "mobilenet_v1",
        "mobilenet_v2",
        "resnet",
        "regnet",
        "bit",
        "cvt",
        "focalnet",
        "glpn",
        "levit",
        "pvt_v2",
        "swiftformer",
    ],
}
_AUDIO = ["wav2vec2", "hubert", "wavlm", "sew", "unispeech", "data2vec-audio", "whisper"]


def _configure(kind: str) -> nn.Module:
    library = importlib.import_module("transformers")
    config = library.CONFIG_MAPPING[kind]
    default = config()
    drops = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")  # in training they would leave out taps
    options: dict[str, Any] = {name: 0.0 for name in drops if hasattr(default, name)}
    for name, value in _SMALL.items():
        old = getattr(default, name, True)
        numbers = isinstance(old, int | None) and isinstance(value, int)
        lists = isinstance(old, tuple | list) and isinstance(value, tuple)
        if not isinstance(old, bool) and (numbers or lists):
            options[name] = value
    return library.AutoModel.from_config(config(**options))


def _keywords(kind: str, given: Callable[[], dict[str, torch.Tensor]]) -> Callable[[], Inputs]:
    def inputs() -> Inputs:
        library = importlib.import_module("transformers")
        forward = library.MODEL_MAPPING[library.CONFIG_MAPPING[kind]].forward
        kwargs = given()
        if kind == "vit_mae":  # it would mask other patches in each call
            kwargs["noise"] = torch.rand(2, 16)
        if "decoder_input_ids" in inspect.signature(forward).parameters:
            kwargs["decoder_input_ids"] = torch.randint(3, 90, (2, 12))
        return Inputs(kwargs=kwargs)

    return inputs


def transformers(kind: str, given: Callable[[], dict[str, torch.Tensor]]) -> Model:
    return Model("transformers", kind, lambda: _configure(kind), _keywords(kind, given))


def text() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 90, (2, 16))}


def pixels(size: int) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def waves() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, 800)}


def spectra() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, 16, 32)}


# segmentation_models_pytorch: decoders that the others lack

_SMP = [
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "PAN",
    "DeepLabV3Plus",
    "UPerNet",
    "Segformer",
    "DPT",
]


def smp(name: str) -> Model:
    def make() -> nn.Module:
        encoder = "tu-test_vit" if name == "DPT" else "resnet18"
        library = importlib.import_module("segmentation_models_pytorch")
        return getattr(library, name)(encoder, encoder_weights=None, classes=3)

    return Model("segmentation_models_pytorch", name, make, images(160 if name in ("DPT", "PAN") else 64))


# pytorchcv: segmentation, poses, speech, faces, optical flow and classification that the others lack

_CIFAR = """
    nin ror3_56 rir shakeshakeresnet20_2x16d resdropresnet20 shakedropresnet20 fractalnet pyramidnet110_a48
    wrn20_10_1bit preresnet20 diapreresnet20 msdnet22 xdensenet40_2_k24_bc
""".split()
_IMAGENET = """
    condensenet74_c4_g4 peleenet darknet_ref channelnet espnetv2_wd2 dicenet_wd5 hardnet39ds squeezeresnet_v1_0
    sqnxt23_w1 shufflenet_g1_wd4 menet108_8x1_g3 fdmobilenet_wd4 igcv3_wd4 darts fbnet_cb mixnet_s octresnet10_ad2
    sharesnet18 isqrtcovresnet18
""".split()
_CITYSCAPES = """
    icnet_resnetd50b fastscnn cgnet dabnet sinet fpenet ctxnet lednet esnet edanet enet erfnet segnet
    sqnet espcnet
""".split()
_HEATMAPS = """
    alphapose_fastseresnet101b_coco simplepose_resnet18_coco lwopenpose2d_mobilenet_cmupan_coco
    lwopenpose3d_mobilenet_cmupan_coco centernet_resnet18_voc
""".split()
_SPEECH = ["jasper5x3", "quartznet5x5_en_ls"]


def pytorchcv(name: str, inputs: Callable[[], Inputs], **options: Any) -> Model:
    def make() -> nn.Module:
        return importlib.import_module("pytorchcv.model_provider").get_model(name, pretrained=False, **options)

    return Model("pytorchcv", name, make, inputs)


def speech() -> Inputs:
    return Inputs((torch.randn(2, 64, 40), torch.tensor([40, 32])))


def spoken_by(*shape: int) -> Callable[[], Inputs]:
    """Windows of sound, and whose voice it is."""
    return lambda: Inputs((torch.randn(2, *shape), torch.tensor([3, 5])))


MODELS = [
    *(torchvision(name, images(size)) for size, names in _TORCHVISION.items() for name in names),
    *(torchvision(name, videos(224 if name == "s3d" else 64)) for name in _VIDEO),
    *(timm(name, size) for size, names in _TIMM_FIXED.items() for name in names),
    *(timm(name, 256 if name == "halonet_h1" else 96) for name in _TIMM_FREE),
    *(transformers(kind, text) for kind in _TEXT),
    *(transformers(kind, pixels(size)) for size, kinds in _VISION.items() for kind in kinds),
    *(transformers(kind, spectra if kind == "whisper" else waves) for kind in _AUDIO),
    *(smp(name) for name in _SMP),
    *(pytorchcv(f"{name}_cifar10", images(32)) for name in _CIFAR),
    *(pytorchcv(name, images(224)) for name in _IMAGENET),
    *(pytorchcv(f"{name}_cityscapes", images(128), in_size=(128, 128)) for name in _CITYSCAPES),
    *(pytorchcv(name, images(64), in_size=(64, 64), return_heatmap=True) for name in _HEATMAPS),
    *(pytorchcv(name, speech, from_audio=False) for name in _SPEECH),
    pytorchcv("danet_resnetd50b_cityscapes", images(64), in_size=(64, 64)),
    pytorchcv("bisenet_resnet18_celebamaskhq", images(128), in_size=(128, 128)),
    pytorchcv("lffd20x5s320v2_widerface", images(160)),
    pytorchcv("superpointnet", lambda: Inputs((torch.randn(2, 1, 64, 64),))),
    pytorchcv("raft_small", lambda: Inputs((torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128)))),
    pytorchcv("propainter_rfc", lambda: Inputs((torch.randn(2, 5, 2, 64, 64), torch.rand(2, 5, 1, 64, 64)))),
    pytorchcv("voca8flame", spoken_by(1, 16, 29)),
    pytorchcv("nvpattexp116bazel76", spoken_by(8, 16, 29)),
]

BY_NAME = {repr(model): model for model in MODELS}


class BiLstm(nn.Module):
    """Tokens through two bidirectional LSTMs, as many sequence models are still built."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(99, 32), nn.Linear(32, 5)
        self.lstm1 = nn.LSTM(32, 16, batch_first=True, bidirectional=True)
        self.lstm2 = nn.LSTM(32, 16, batch_first=True, bidirectional=True)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm2(self.lstm1(self.embed(input_ids))[0])[0])


def convolutions_1d() -> nn.Module:
    """A small network for time series."""
    widths = [(3, 16), (16, 32), (32, 32)]
    layers = [[nn.Conv1d(i, o, 5, 2, 2), nn.BatchNorm1d(o), nn.ReLU()] for i, o in widths]
    return nn.Sequential(*(layer for block in layers for layer in block), nn.AdaptiveAvgPool1d(1), nn.Flatten())


def mlp() -> nn.Module:
    """Flattened images through three layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 64 * 64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )


OWN = {
    "bilstm": Model("own", "bilstm", BiLstm, lambda: Inputs(kwargs=text())),
    "conv1d": Model("own", "conv1d", convolutions_1d, lambda: Inputs((torch.randn(2, 3, 64),))),
    "mlp": Model("own", "mlp", mlp, images(64)),
}
_PAIRS = """
    torchvision:resnet18 timm:test_vit
    torchvision:vit_b_32 torchvision:resnet18
    torchvision:convnext_tiny torchvision:swin_t
    torchvision:swin_t torchvision:convnext_tiny
    timm:mobilenetv3_small_050 timm:deit_tiny_patch16_224
    timm:test_vit timm:test_mambaout
    segmentation_models_pytorch:Unet segmentation_models_pytorch:Segformer
    segmentation_models_pytorch:Segformer torchvision:resnet18
    segmentation_models_pytorch:FPN segmentation_models_pytorch:DPT
    transformers:bert own:bilstm
    own:bilstm transformers:roberta
    transformers:gpt2 transformers:bert
    transformers:t5 transformers:llama
    transformers:wav2vec2 own:conv1d
    own:conv1d transformers:bert
    own:mlp torchvision:resnet18
    torchvision:resnet18 own:mlp
    transformers:vit torchvision:densenet121
    transformers:segformer timm:regnetx_002
    torchvision:r3d_18 torchvision:resnet18
    transformers:clip_vision_model transformers:bert
"""
MIXED = [
    tuple(BY_NAME.get(name) or OWN[name.removeprefix("own:")] for name in line.split())
    for line in _PAIRS.strip().splitlines()
]
