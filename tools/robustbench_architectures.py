"""The table of docs/architectures.md: ``python tools/robustbench_architectures.py`` quantizes every architecture.

Each module of RobustBench's ``model_zoo/architectures`` has a network in :data:`NETWORKS`, as small as its code lets it
be, or a reason in :data:`NO_NETWORK`. ``tests/zoo/quantized/test_robustbench.py`` quantizes all of them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from markdown_tables import markdown_table
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.report import ConversionReport

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"

CIFAR, SMALL = 32, 64
"""Height and width of images; networks for ImageNet that take other sizes get the smaller ones."""


def _of(module: str) -> Any:
    return import_module(f"robustbench.model_zoo.architectures.{module}")


def _on_cpu(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose code moves tensors to a GPU, without the move."""
    cuda = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    try:
        return build()
    finally:
        torch.Tensor.cuda = cuda


class Logits(nn.Module):
    """A network that returns its features beside its logits, without the features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        return self.network(x)[0]


def _resnet(block: str, network: str = "ResNet") -> nn.Module:
    module = _of("resnet")
    return getattr(module, network)(getattr(module, block), [1, 1, 1, 1])


def _robustarch() -> nn.Module:
    about = {"stem_width": 16, "depth": [1, 1, 1], "stage_width": [24, 32, 48], "groups": [1, 1, 1]}
    more = {"activation_fn": nn.SiLU, "se_ratio": 0.25, "se_activation": nn.ReLU, "se_order": 2, "num_classes": 10}
    channels = (0.5,) * 3, (0.25,) * 3
    return _of("robustarch_wide_resnet").NormalizedWideResNet(*channels, **about, **more)


def _meansparse_robustarch() -> nn.Module:
    about = {"stem_width": 16, "depth": [1, 1, 1], "stage_width": [24, 32, 48], "groups": [1, 1, 1]}
    more = {"activation_fn": nn.SiLU, "se_ratio": 0.25, "se_activation": nn.ReLU, "se_order": 2, "num_classes": 10}
    channels = (0.5,) * 3, (0.25,) * 3
    return _of("Meansparse_ra_wrn_70_16").NormalizedWideResNet(*channels, **about, **more)


def _robust_resnet() -> nn.Module:
    names = {"activations": ("SiLU",) * 3, "normalizations": ("BatchNorm",) * 3, "block_types": ["basic_block"] * 3}
    sizes = {"channel_configs": [16, 16, 32, 64], "depth_configs": [1, 1, 1], "stride_config": [1, 2, 2]}
    nothing = dict.fromkeys(("cardinality", "base_width", "scales", "se_reduction"))
    how = {"stem_stride": 1, "use_init": False, "pre_process": True}
    return _of("robust_resnet").PreActResNet(num_classes=10, **names, **sizes, **nothing, **how)


def _convstem(block: str, width: int, **settings: Any) -> nn.Module:
    from timm.models.convnext import ConvNeXt

    model = ConvNeXt(num_classes=10, depths=(1, 1, 1, 1), **settings)
    model.stem = getattr(_of("convstem_models"), block)(width)
    return model


def _vit_convstem() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=SMALL, patch_size=16, embed_dim=384, depth=1, num_heads=6, num_classes=10)
    model.patch_embed.proj = _of("convstem_models").ConvBlock(48, end_siz=8)
    return model


def _xcit() -> nn.Module:
    from timm.models.xcit import Xcit

    network = Xcit(img_size=CIFAR, patch_size=8, embed_dim=48, depth=1, num_heads=4, num_classes=10, cls_attn_layers=1)
    return _of("xcit").adapt_model_patches(network, 4)


def _swin() -> nn.Module:
    sizes = {"img_size": SMALL, "patch_size": 4, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4]}
    return _of("MIMIR_swin_transformer").SwinTransformer(window_size=4, num_classes=10, **sizes)


def _meansparse_swin() -> nn.Module:
    # The widths of its own layers, 192 to 1536 channels, are fixed in the code.
    sizes = {"img_size": CIFAR, "patch_size": 4, "embed_dim": 192, "depths": (1, 1, 1, 1)}
    heads = {"num_heads": (6, 12, 24, 48), "window_size": 4}
    return _of("Meansparse_swin_L").SwinTransformer(num_classes=10, **sizes, **heads)


def _sodef() -> nn.Module:
    # Its code fixes the number of features, 1024.
    module, features = _of("sodef_layers"), _of("dm_wide_resnet").DMWideResNet(**{**_DM, "width": 16})
    features.logits = module.Identity()
    ode = nn.Sequential(module.ODEBlock(module.ODEfunc_mlp(0)), module.MLP_OUT_LINEAR())
    return nn.Sequential(features, module.MLP_OUT_ORTH1024(), ode)


def _mixed() -> nn.Module:
    maps, module = _of("output_maps"), _of("mixing_net")
    settings = {"std_map": maps.IdentityMap(), "rob_map": maps.IdentityMap(), "alpha": 0.5, "alpha_diffable": 0.5}
    parts = (_resnet("BasicBlock"), _of("dm_wide_resnet").DMWideResNet(**_DM))
    return module.NonLinMixedClassifier(*parts, settings)


def _of_timm(name: str, **settings: Any) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=10, **settings)


_WIDE: Mapping[str, Any] = MappingProxyType({"depth": 10, "widen_factor": 1})
_DM: Mapping[str, Any] = MappingProxyType({"depth": 10, "width": 1, "activation_fn": nn.SiLU})

Networks = Mapping[tuple[str, str], tuple[Callable[[], nn.Module], int]]

NETWORKS: Networks = MappingProxyType(
    {
        ("CARD_resnet", "LRR_ResNet"): (lambda: _of("CARD_resnet").LRR_ResNet(width=16), CIFAR),
        ("CARD_resnet", "WidePreActResNet"): (
            lambda: _of("CARD_resnet").WidePreActResNet(num_blocks=[1] * 4, widen_factor=0),
            CIFAR,
        ),
        ("MIMIR_swin_transformer", "SwinTransformer"): (_swin, SMALL),
        ("Meansparse_ra_wrn_70_16", "NormalizedWideResNet"): (_meansparse_robustarch, CIFAR),
        ("Meansparse_swin_L", "SwinTransformer"): (_meansparse_swin, CIFAR),
        ("Meansparse_wrn_70_16", "DMWideResNet"): (lambda: _of("Meansparse_wrn_70_16").DMWideResNet(**_DM), CIFAR),
        ("Meansparse_wrn_94_16", "MeanSparse_DMWideResNet"): (
            lambda: _of("Meansparse_wrn_94_16").MeanSparse_DMWideResNet(**_DM),
            CIFAR,
        ),
        ("alexnet", "TimmAlexNet"): (lambda: _of("alexnet").TimmAlexNet(num_classes=10), SMALL),
        ("bit_rn", "ResNetV2"): (lambda: _on_cpu(lambda: _of("bit_rn").ResNetV2([1] * 4, 1, head_size=10)), SMALL),
        ("bit_rn_v2", "ResNetV2"): (
            lambda: _on_cpu(lambda: _of("bit_rn_v2").ResNetV2([1] * 4, 1, head_size=10)),
            SMALL,
        ),
        ("boosting_wide_resnet", "BoostingWideResNet"): (
            lambda: _of("boosting_wide_resnet").BoostingWideResNet(**_WIDE),
            CIFAR,
        ),
        ("convnext_v2", "ConvNeXtV2"): (
            lambda: _of("convnext_v2").ConvNeXtV2(num_classes=10, depths=[1] * 4, dims=[8, 16, 24, 32]),
            SMALL,
        ),
        ("convstem_models", "ConvNeXt, ConvBlock1"): (
            lambda: _convstem("ConvBlock1", 12, dims=(24, 32, 40, 48)),
            SMALL,
        ),
        ("convstem_models", "ConvNeXt, ConvBlock3"): (
            lambda: _convstem("ConvBlock3", 12, dims=(24, 32, 40, 48)),
            SMALL,
        ),
        ("convstem_models", "ViT, ConvBlock"): (_vit_convstem, SMALL),
        ("deit", "DeiT"): (lambda: _of_timm("deit_tiny_patch16_224", img_size=SMALL, depth=1), SMALL),
        ("dm_rn", "WideResNet"): (lambda: Logits(_of("dm_rn").WideResNet(**_DM)), CIFAR),
        ("dm_wide_resnet", "DMWideResNet"): (lambda: _of("dm_wide_resnet").DMWideResNet(**_DM), CIFAR),
        ("dm_wide_resnet", "DMWideResNet, Swish"): (
            lambda: _of("dm_wide_resnet").DMWideResNet(**{**_DM, "activation_fn": _of("dm_wide_resnet").Swish}),
            CIFAR,
        ),
        ("dm_wide_resnet", "DMPreActResNet"): (
            lambda: _of("dm_wide_resnet").DMPreActResNet(activation_fn=_of("dm_wide_resnet").Swish),
            CIFAR,
        ),
        ("mixing_net", "NonLinMixedClassifier"): (_mixed, CIFAR),
        ("paf_wide_resnet", "PAF_WideResNet"): (
            lambda: _of("paf_wide_resnet").PAF_WideResNet(_of("paf_wide_resnet").PSSiLU(), **_WIDE),
            CIFAR,
        ),
        ("resnest", "ResNest"): (
            lambda: _of("resnest").ResNest(
                _of("resnest").Bottleneck,
                [1] * 4,
                radix=2,
                bottleneck_width=16,
                deep_stem=True,
                stem_width=8,
                avg_down=True,
                avd=True,
                avd_first=False,
            ),
            SMALL,
        ),
        ("resnet", "ResNet"): (lambda: _resnet("BasicBlock"), CIFAR),
        ("resnet", "ResNet, Bottleneck"): (lambda: _resnet("Bottleneck"), CIFAR),
        ("resnet", "PreActResNet"): (lambda: _resnet("PreActBlock", "PreActResNet"), CIFAR),
        ("resnet", "PreActResNet, PreActBlockV2"): (lambda: _resnet("PreActBlockV2", "PreActResNet"), CIFAR),
        ("resnext", "CifarResNeXt"): (
            lambda: _of("resnext").CifarResNeXt(_of("resnext").ResNeXtBottleneck, 11, 10, 2, 8),
            CIFAR,
        ),
        ("robust_resnet", "PreActResNet"): (_robust_resnet, CIFAR),
        ("robust_wide_resnet", "RobustWideResNet"): (
            lambda: _of("robust_wide_resnet").RobustWideResNet(
                channel_configs=[16, 16, 32, 64], depth_configs=[1, 1, 1]
            ),
            CIFAR,
        ),
        ("robustarch_wide_resnet", "NormalizedWideResNet"): (_robustarch, CIFAR),
        ("sodef_layers", "MLP_OUT_ORTH1024"): (_sodef, CIFAR),
        ("wide_resnet", "WideResNet"): (lambda: _of("wide_resnet").WideResNet(**_WIDE), CIFAR),
        ("xcit", "Xcit"): (_xcit, CIFAR),
    }
)
"""What builds a network, and the size of its images, by the module and the name in it."""

NO_NETWORK: Mapping[str, str] = MappingProxyType(
    {
        "comp_model": "combines bit_rn, dm_rn and mixing_net at sizes fixed in its code",
        "output_maps": "maps of logits, used in mixing_net",
        "sparsified_model": "builds the networks of the Meansparse modules",
        "utils_architectures": "normalisation",
    }
)
"""Modules of RobustBench that define no network of their own, with the reason."""


def modules() -> list[str]:
    """The modules of RobustBench's architectures that are installed."""
    folder = Path(str(import_module("robustbench.model_zoo.architectures").__file__)).parent
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def build(key: tuple[str, str]) -> tuple[nn.Module, torch.Tensor]:
    """A network with random weights, in evaluation mode, and images for it."""
    make, size = NETWORKS[key]
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)
        return make().eval(), torch.rand(4, 3, size, size)


@cache
def convert(key: tuple[str, str]) -> tuple[nn.Module, ConversionReport | str]:
    """A network quantized to w4a4 and the report; or the network as it was, and why no layer of it is quantized."""
    model, images = build(key)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            report = quantize_(model, "w4a4", calibration=images, allow_unsupported=True)
        except InputError as error:
            return model, str(error)
    return model.eval(), report


def row(key: tuple[str, str]) -> tuple[str, str, str, str, str]:
    """The line of a network: what is quantized, and why the rest is not."""
    module, name = key
    _, report = convert(key)
    if isinstance(report, str):
        return f"`{module}`", name, "0", "0.0 %", report.partition("(")[2].partition(")")[0]
    reasons: dict[str, int] = {}
    for layer in report.kept:
        reasons[layer.reason] = reasons.get(layer.reason, 0) + 1
    kept = "; ".join(f"{reason} ({number})" for reason, number in reasons.items())
    if report.attention:
        kept += f"; products of activations in attention ({len(report.attention)})"
    total = len(report.converted) + len(report.kept)
    return f"`{module}`", name, f"{len(report.converted)} of {total}", f"{100 * report.quantized_share:.1f} %", kept


def table() -> str:
    """One line for each network, and one for each module without."""
    head = "module", "network", "layers quantized", "share of weights", "in full precision"
    others = [(f"`{module}`", "none", "", "", reason) for module, reason in NO_NETWORK.items()]
    return markdown_table(head, [*map(row, NETWORKS), *others], "llrrl")


def main() -> None:
    """Rewrite the table of the page."""
    before, start, rest = PAGE.read_text(encoding="utf-8").partition("<!-- architectures -->\n")
    _, end, after = rest.partition("<!-- /architectures -->\n")
    PAGE.write_text(f"{before}{start}\n{table()}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
