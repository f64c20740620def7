"""Convolutional networks of the papers, layer by layer, and their quantized layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.models.architectures import ARCHITECTURES, AlexNet, CIFARConv, MNISTConv, MNISTSmall
from empir_plugin.models.architectures.networks import Normalize, UntiedBias, unit_norm_
from empir_plugin.models.layers import is_full_precision, quantized_layers
from empir_plugin.models.quantize import ActivationQuantizer, Precision, Scale, WeightQuantizer

SHAPES = {
    "mnistconv": (1, 28, 28),
    "mnistsmall": (1, 28, 28),
    "cifarconv": (3, 32, 32),
    "cifarconv-table3": (3, 32, 32),
    "alexnet": (3, 224, 224),
    **dict.fromkeys(["fcn1", "fcn1-xnor", "fcn2", "fcn2-xnor"], (1, 28, 28)),
}
SMALL = ["mnistconv", "cifarconv", "cifarconv-table3"]
LARGE = ["alexnet", "fcn1", "fcn1-xnor"]
LOW = Precision(2, 4)


def build(name: str, precision: Precision | None = None, scale: Scale = "none") -> nn.Module:
    """Large networks of 61 and 118 million parameters are shapes without numbers."""
    torch.manual_seed(0)
    with torch.device("meta" if name in LARGE else "cpu"):
        return ARCHITECTURES[name](precision, scale=scale)


def images(name: str, count: int = 2) -> Tensor:
    if name in LARGE:
        return torch.empty(count, *SHAPES[name], device="meta")
    return torch.rand(count, *SHAPES[name], generator=torch.Generator().manual_seed(0))


def weights(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))


# -- Sizes


@pytest.mark.parametrize(
    ("name", "parameters", "quantized"),
    [
        ("mnistconv", 709_888, 708_608),
        ("mnistsmall", 436_202, 434_176),
        ("cifarconv", 116_704, 79_200),
        ("cifarconv-table3", 433_120, 395_616),
        ("alexnet", 61_265_256, 56_823_808),
        ("fcn1", 118_173_706, 118_063_104),
        ("fcn2", 1_561_210, 1_550_400),
    ],
)
def test_number_of_parameters_and_of_quantized_weights(name: str, parameters: int, quantized: int) -> None:
    full, low = build(name), build(name, LOW)
    assert sum(p.numel() for p in full.parameters()) == parameters
    assert sum(p.numel() for p in low.parameters()) == parameters
    assert sum(layer.weight.numel() for _, layer in quantized_layers(low)) == quantized
    assert is_full_precision(full)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnistconv", ["conv1", "conv2", "conv3"]),
        ("mnistsmall", ["conv2", "hidden"]),
        ("cifarconv", ["conv1", "conv2", "conv3"]),
        ("cifarconv-table3", ["conv1", "conv2", "conv3"]),
        (
            "alexnet",
            [*(f"features.conv{i}" for i in range(2, 6)), "classifier.ip1", "classifier.ip2"],
        ),
        ("fcn2", [f"hidden.{i}" for i in range(4)]),
    ],
)
def test_which_layers_are_quantized(name: str, expected: list[str]) -> None:
    layers = dict(quantized_layers(build(name, LOW, "max")))
    assert list(layers) == expected
    assert {layer.precision for layer in layers.values()} - {Precision(2, 32)} == {LOW}, "FCN's image is as it is"
    assert {layer.weight_quantizer.scale for layer in layers.values()} == {"max"}
    assert dict(quantized_layers(build(name))) == {}


@pytest.mark.parametrize("name", SMALL)
def test_the_release_has_no_scale(name: str) -> None:
    assert {layer.weight_quantizer.scale for _, layer in quantized_layers(ARCHITECTURES[name](LOW))} == {"none"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_load_from_full_to_low_precision_and_back(name: str) -> None:
    full, low = build(name), build(name, LOW)
    assert list(full.state_dict()) == list(low.state_dict())
    if name not in LARGE:
        low.load_state_dict(full.state_dict(), strict=True)
        full.load_state_dict(low.state_dict(), strict=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("precision", [Precision(), LOW], ids=str)
def test_logits(name: str, precision: Precision) -> None:
    classes = 1000 if name == "alexnet" else 10
    assert build(name, precision)(images(name)).shape == (2, classes)


@pytest.mark.parametrize("make", [MNISTConv, MNISTSmall, CIFARConv])
def test_number_of_classes(make: Callable[..., nn.Module]) -> None:
    last = list(make(num_classes=7).parameters())[-1]
    assert last.shape[0] == 7


# -- Layer by layer: name, weight (out, in / groups, height, width), stride, padding, groups, output of one image

Stage = tuple[str, tuple[int, ...], int, int, int, tuple[int, ...]]
CIFAR_HEAD: list[Stage] = [("ip1", (64, 576), 0, 0, 0, (64,)), ("logits", (10, 64), 0, 0, 0, (10,))]


def _fully_connected(width: int) -> list[Stage]:
    first: Stage = ("hidden.0", (width, 784), 0, 0, 0, (width,))
    inner: list[Stage] = [(f"hidden.{i}", (width, width), 0, 0, 0, (width,)) for i in (1, 2, 3)]
    return [first, *inner, ("logits", (10, width), 0, 0, 0, (10,))]


STAGES: dict[str, list[Stage]] = {
    "mnistconv": [
        ("conv1", (64, 1, 8, 8), 2, 3, 1, (64, 14, 14)),
        ("conv2", (128, 64, 6, 6), 2, 0, 1, (128, 5, 5)),
        ("conv3", (128, 128, 5, 5), 1, 0, 1, (128, 1, 1)),
        ("logits", (10, 128), 0, 0, 0, (10,)),
    ],
    "mnistsmall": [
        ("conv1", (32, 1, 4, 4), 2, 1, 1, (32, 14, 14)),
        ("conv2", (64, 32, 4, 4), 2, 1, 1, (64, 7, 7)),
        ("hidden", (128, 3136), 0, 0, 0, (128,)),
        ("logits", (10, 128), 0, 0, 0, (10,)),
    ],
    "cifarconv": [
        ("conv1", (32, 3, 5, 5), 1, 2, 1, (32, 32, 32)),
        ("conv2", (32, 32, 5, 5), 1, 0, 1, (32, 15, 15)),
        ("conv3", (64, 32, 5, 5), 1, 0, 1, (64, 7, 7)),
        *CIFAR_HEAD,
    ],
    "cifarconv-table3": [
        ("conv1", (32, 3, 5, 5), 1, 2, 1, (32, 32, 32)),
        ("conv2", (64, 32, 8, 8), 1, 0, 1, (64, 15, 15)),
        ("conv3", (64, 64, 8, 8), 1, 0, 1, (64, 7, 7)),
        *CIFAR_HEAD,
    ],
    "alexnet": [
        ("features.conv1", (96, 3, 12, 12), 4, 0, 1, (96, 54, 54)),
        ("features.conv2", (256, 48, 5, 5), 1, 2, 2, (256, 54, 54)),
        ("features.conv3", (384, 256, 3, 3), 1, 1, 1, (384, 27, 27)),
        ("features.conv4", (384, 192, 3, 3), 1, 1, 2, (384, 14, 14)),
        ("features.conv5", (256, 192, 3, 3), 1, 1, 2, (256, 14, 14)),
        ("classifier.ip1", (4096, 9216), 0, 0, 0, (4096,)),
        ("classifier.ip2", (4096, 4096), 0, 0, 0, (4096,)),
        ("classifier.logits", (1000, 4096), 0, 0, 0, (1000,)),
    ],
    **dict.fromkeys(["fcn1", "fcn1-xnor"], _fully_connected(6144)),
    **dict.fromkeys(["fcn2", "fcn2-xnor"], _fully_connected(600)),
}


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What every module without children returns for ``x``, in order of execution."""
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, x: object, y: Tensor) -> None:
            seen.setdefault(name, y)

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(remember(name))
    model(x)
    return seen


@pytest.mark.parametrize("precision", [Precision(), LOW], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layer_by_layer(name: str, precision: Precision) -> None:
    model = build(name, precision)
    seen = outputs(model, images(name))

    def stage(key: str, layer: nn.Conv2d | nn.Linear) -> Stage:
        shape, output = tuple(layer.weight.shape), tuple(seen[key].shape[1:])
        if isinstance(layer, nn.Linear):
            return key, shape, 0, 0, 0, output
        assert layer.stride[0] == layer.stride[1]
        assert isinstance(layer.padding, tuple)
        assert layer.padding[0] == layer.padding[1]
        assert layer.dilation == (1, 1)
        return key, shape, layer.stride[0], int(layer.padding[0]), layer.groups, output

    assert [stage(key, layer) for key, layer in weights(model)] == STAGES[name]


@pytest.mark.parametrize(
    ("name", "multiplications"),
    [("mnistconv", 8_586_496), ("mnistsmall", 2_108_672), ("cifarconv", 10_763_904)],
)
def test_number_of_multiplications(name: str, multiplications: int) -> None:
    model = build(name)
    seen = outputs(model, images(name))
    counted = sum(layer.weight.numel() * seen[key][0, 0].numel() for key, layer in weights(model))
    assert counted == multiplications


@pytest.mark.parametrize("name", SMALL)
def test_the_small_networks_have_no_bias_and_no_normalisation(name: str) -> None:
    assert {key.rpartition(".")[2] for key in build(name, LOW).state_dict()} == {"weight"}


def test_mnistsmall_has_the_biases_that_thresholds_need() -> None:
    """With the image doubled, a network without biases doubles its logits; this one does not."""
    x = images("mnistsmall") / 2
    plain, small = build("mnistconv"), build("mnistsmall")
    assert torch.allclose(plain(2 * x), 2 * plain(x), atol=1e-4)
    assert not torch.allclose(small(2 * x), 2 * small(x), atol=1e-2)


def test_alexnet_stage_by_stage() -> None:
    seen = outputs(build("alexnet", LOW), images("alexnet"))
    assert [(key.rpartition(".")[2], tuple(y.shape[1:])) for key, y in seen.items()] == [
        ("normalize", (3, 224, 224)),
        *[(key, (96, 54, 54)) for key in ("conv1", "bias1", "relu1")],
        *[(key, (256, 54, 54)) for key in ("conv2", "bn1")],
        *[(key, (256, 27, 27)) for key in ("pool1", "relu2")],
        *[(key, (384, 27, 27)) for key in ("conv3", "bn2")],
        *[(key, (384, 14, 14)) for key in ("pool2", "relu3", "conv4", "bn3", "relu4")],
        *[(key, (256, 14, 14)) for key in ("conv5", "bn4")],
        *[(key, (256, 6, 6)) for key in ("pool3", "relu5")],
        *[(key, (4096,)) for key in ("ip1", "bn5", "relu6", "ip2", "bn6", "relu7")],
        ("logits", (1000,)),
    ]


def test_alexnet_biases() -> None:
    model = build("alexnet", LOW)
    biases = {key: tuple(p.shape) for key, p in model.named_parameters() if key.endswith("bias") and ".bn" not in key}
    assert biases == {
        "features.bias1.bias": (96, 54, 54),
        "classifier.ip1.bias": (4096,),
        "classifier.logits.bias": (1000,),
    }


def test_alexnet_normalises_as_the_release_does() -> None:
    norms = [m for m in build("alexnet").modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [256, 384, 384, 256, 4096, 4096]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert sum(m.running_mean.numel() + m.running_var.numel() for m in norms) == 18_944  # type: ignore[union-attr]


def test_alexnet_pools_as_tensorflow_pads() -> None:
    """54 to 27 pads one pixel at the end, 27 to 14 one on each side, 14 to 6 none."""
    features = build("alexnet").features
    assert isinstance(features, nn.Sequential)
    ramp = torch.arange(54.0).view(1, 1, 54, 1).expand(1, 1, 54, 54)
    assert features.get_submodule("pool1")(ramp)[0, 0, :, 0].tolist() == [*range(2, 53, 2), 53]
    assert features.get_submodule("pool2")(ramp[..., :27, :27])[0, 0, :, 0].tolist() == [*range(1, 26, 2), 26]
    assert features.get_submodule("pool3")(ramp[..., :14, :14])[0, 0, :, 0].tolist() == [*range(2, 13, 2)]


# -- What is computed


def by_hand(name: str, model: nn.Module, x: Tensor, precision: Precision) -> Tensor:
    """The two small networks written out in functions; TensorFlow's SAME padding is left, right, top, bottom."""
    weight = {key: value.detach() for key, value in model.state_dict().items()}

    def conv(key: str, x: Tensor, pad: tuple[int, int], stride: int = 1) -> Tensor:
        quantized = WeightQuantizer(precision.weight_bits)(weight[f"{key}.weight"])
        return F.conv2d(F.pad(ActivationQuantizer(precision.activation_bits)(x), pad * 2), quantized, stride=stride)

    if name == "mnistconv":
        x = conv("conv1", x, (3, 3), 2).relu()
        x = conv("conv2", x, (0, 0), 2).relu()
        return conv("conv3", x, (0, 0)).relu().flatten(1) @ weight["logits.weight"].T
    pad = (3, 4) if name == "cifarconv-table3" else (2, 2)
    x = F.max_pool2d(conv("conv1", x, (2, 2)), 3, 2).relu()
    x = F.avg_pool2d(conv("conv2", x, pad).relu(), 3, 2)
    x = F.avg_pool2d(conv("conv3", x, pad).relu(), 3, 2)
    return x.flatten(1) @ weight["ip1.weight"].T @ weight["logits.weight"].T


@pytest.mark.parametrize("precision", [Precision(), Precision(4, 2), Precision(2, 4)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_forward_by_hand(name: str, precision: Precision) -> None:
    model, x = build(name, precision), images(name)
    torch.testing.assert_close(model(x), by_hand(name, model, x, precision), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "table3"),
    [pytest.param(8, True, id="even-kernel-of-table3"), pytest.param(5, False, id="odd-kernel-of-the-release")],
)
def test_same_padding_puts_the_odd_pixel_at_the_end(kernel: int, table3: bool) -> None:
    """The outermost outputs see these rows of the input, multiplied with these rows of the kernel."""
    model = CIFARConv(table3=table3)
    before = (kernel - 1) // 2
    after = kernel - 1 - before
    x, w = torch.rand(1, 32, 15, 15), model.conv2.weight.detach()
    y = model.conv2(model.pad(x))
    assert y.shape[-2:] == (15, 15)
    first = (x[0, :, : after + 1, : after + 1] * w[:, :, before:, before:]).sum((1, 2, 3))
    last = (x[0, :, -before - 1 :, -before - 1 :] * w[:, :, : before + 1, : before + 1]).sum((1, 2, 3))
    torch.testing.assert_close(y[0, :, 0, 0], first)
    torch.testing.assert_close(y[0, :, -1, -1], last)


@pytest.mark.parametrize("name", SMALL)
def test_the_image_itself_is_quantized(name: str) -> None:
    model, x = build(name, Precision(8, 2)), images(name)
    of_four_levels = (x * 3).round() / 3
    assert torch.equal(model(of_four_levels), model(x))
    full = build(name)
    assert not torch.equal(full(of_four_levels), full(x))


def test_alexnet_takes_the_image_as_it_is() -> None:
    conv1 = build("alexnet", LOW).get_submodule("features.conv1")
    assert type(conv1) is nn.Conv2d
    last = build("alexnet", LOW).get_submodule("classifier.logits")
    assert type(last) is nn.Linear


def test_normalize_by_hand() -> None:
    x = torch.tensor([0.5, 1.0]).view(1, 2, 1, 1)
    y = Normalize((0.25, 0.5), (0.5, 0.25))(x)
    assert y.flatten().tolist() == [0.5, 2.0]
    assert list(Normalize((0.0,), (1.0,)).state_dict()) == []


def test_an_untied_bias_has_a_number_for_every_position() -> None:
    layer = UntiedBias(2, 3, 4)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(24.0).view(2, 3, 4))
    y = layer(torch.zeros(5, 2, 3, 4))
    assert torch.equal(y, torch.arange(24.0).view(1, 2, 3, 4).expand(5, 2, 3, 4))


# -- Initial weights


@pytest.mark.parametrize("precision", [Precision(), LOW], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_initial_filters_have_norm_one(name: str, precision: Precision) -> None:
    for _, layer in weights(build(name, precision)):
        norms = layer.weight.detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))


def test_initial_filters_of_a_convolution_are_truncated_normal() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 7)
    unit_norm_(layer)
    standard = layer.weight.detach() / layer.weight.detach().std()
    # Cut at two standard deviations, which the cut makes 0.88 times smaller.
    assert 2.1 < float(standard.abs().max()) < 2.45
    assert layer.bias is not None
    assert not layer.bias.any()


def test_initial_weights_of_a_linear_layer_are_normal() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(1000, 100)
    unit_norm_(layer)
    assert float(layer.weight.detach().abs().max() * 1000**0.5) > 3.5
    assert not layer.bias.any()


@pytest.mark.slow
def test_initial_weights_of_alexnet() -> None:
    torch.manual_seed(0)
    model = AlexNet(LOW)
    for key, layer in weights(model):
        weight = layer.weight.detach().flatten(1)
        if key.endswith(("conv2", "conv4", "conv5")):
            assert float(weight.std()) == pytest.approx((2 / weight.shape[1]) ** 0.5, rel=0.01)
        else:
            norms = weight.norm(dim=1)
            torch.testing.assert_close(norms, torch.ones_like(norms))
    assert not any(p.any() for key, p in model.named_parameters() if key.endswith("bias"))


@pytest.mark.slow
def test_alexnet_computes() -> None:
    torch.manual_seed(0)
    model = AlexNet(LOW).eval()
    with torch.no_grad():
        logits = model(torch.rand(2, 3, 224, 224))
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])
