"""What :func:`~empir_plugin.evaluation.run.evaluate` takes besides its own types: tensors, loaders and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet, check_images
from empir_plugin.errors import EvaluationError, InputError, cause
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.named_attacks import attack_specs
from empir_plugin.evaluation.protocols import Protocol
from empir_plugin.models.convert.probe import preserve_modes
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer.convert import ModelWrapper

Images = ImageSet | tuple[Tensor, Tensor] | DataLoader[Any]
"""Images in [0, 1] with labels: an image set, a pair of tensors, or a loader of pairs."""

_ROUNDING = 1e-4
"""Largest distance from a multiple of 1/255, in steps, that counts as rounding."""


def as_threat(threat: Threat | str) -> Threat:
    """A threat, or the one that a text such as ``"Linf:8/255"`` describes.

    Raises:
        InputError: If it is anything else.

    Example:
        >>> str(as_threat("linf:8/255"))
        'Linf:8/255'
    """
    if isinstance(threat, str):
        return Threat.parse(threat)
    if not isinstance(threat, Threat):
        raise InputError(f"threat must be a Threat or a text such as 'Linf:8/255', got {threat!r}")
    return threat


def as_attacks(
    attacks: object, model: nn.Module, protocol: Protocol, dataset: str = ""
) -> tuple[AttackSpec, ...] | None:
    """The specifications of attacks; None for None, which stands for the protocol's.

    Args:
        attacks: A name, an attack or a specification, or a sequence of these.
        model: The model to attack.
        protocol: A protocol whose names of attacks are understood, too.
        dataset: Name of the data set.

    Raises:
        InputError: If an attack is not known, or is none.

    Example:
        >>> from empir_plugin.evaluation.protocols import default
        >>> [spec.name for spec in as_attacks("fgsm", nn.Flatten(), default)]
        ['FGSM']
    """
    if attacks is None:
        return None
    several = isinstance(attacks, Sequence) and not isinstance(attacks, str)
    chosen: Any = attacks if several else [attacks]
    if all(isinstance(each, AttackSpec) for each in chosen):
        return tuple(chosen)
    return attack_specs(chosen, model, protocol, dataset)


def as_image_set(data: Images, model: nn.Module) -> ImageSet:
    """Images and labels as an image set in their order; an image set is returned as it is.

    Args:
        data: An image set; a pair of images ``(N, C, H, W)``, float32 in [0, 1] or uint8, and labels ``(N,)``; or a
            ``DataLoader`` of such pairs that does not shuffle.
        model: The number of its logits for the first image is the number of classes.

    Raises:
        InputError: If it is anything else, the loader shuffles, or pixels are no multiples of 1/255.
        EvaluationError: If the model does not run on the first image.

    Example:
        >>> images = torch.tensor([[[[0.0, 1.0]]]])
        >>> data = as_image_set((images, torch.tensor([1])), nn.Flatten())
        >>> data.num_classes, data.images.dtype
        (2, torch.uint8)
    """
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, DataLoader):
        data = _from_loader(data)
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise InputError(
            f"data must be an ImageSet, a pair (images, labels) or a DataLoader, got a {type(data).__name__}: "
            "call load_images, or pass (x, y)"
        )
    images, labels = data
    stored = images if isinstance(images, Tensor) and images.dtype == torch.uint8 else _as_uint8(images)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"labels must be a torch.int64 tensor, got {got}: use torch.as_tensor(labels).long()")
    classes = _count_logits(model, stored[:1])
    return ImageSet("custom", "test", stored.cpu(), labels.cpu(), tuple(str(k) for k in range(classes)))


def _from_loader(loader: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    if loader.sampler is not None and not isinstance(loader.sampler, SequentialSampler):
        raise InputError(
            f"the DataLoader has a {type(loader.sampler).__name__}, so image i would be another one in each run: make "
            "it with shuffle=False"
        )
    batches = list(loader)
    if not batches or not all(isinstance(batch, (tuple, list)) and len(batch) == 2 for batch in batches):
        raise InputError("a DataLoader must give pairs (images, labels), one or more: wrap its data set")
    images, labels = zip(*batches, strict=True)
    return torch.cat([torch.as_tensor(each) for each in images]), torch.cat([torch.as_tensor(each) for each in labels])


def _as_uint8(images: Any) -> Tensor:
    check_images(images)
    steps = images.detach().mul(255)
    rounded = steps.round()
    if bool(((steps - rounded).abs() > _ROUNDING).any()):
        raise InputError(
            "images must be multiples of 1/255, as they are stored as uint8: round them, (255 * images).round() / 255, "
            "and evaluate these"
        )
    return rounded.to(torch.uint8)


def _count_logits(model: nn.Module, image: Tensor) -> int:
    tensor = next(iter(model.parameters()), image)
    try:
        with preserve_modes(model), torch.no_grad():
            logits: Any = model.eval()(image.to(tensor.device).float() / 255)
    except Exception as error:  # the caller's own code, which may fail in any way
        shape = " x ".join(map(str, image.shape[1:]))
        raise EvaluationError(f"the model does not run on images of {shape} ({cause(error)})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise EvaluationError(f"the model must return logits (N, K), got {got}: wrap it")
    return logits.shape[1]


class PreprocessedModel(ModelWrapper):
    """A model behind a preprocessing of its images.

    Args:
        preprocessing: From images ``(N, C, H, W)`` in [0, 1] to what the model takes.
        model: The model.
    """

    def __init__(self, preprocessing: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)`` in [0, 1]."""
        return self.model(self.preprocessing(x))


def preprocess(model: nn.Module, preprocessing: nn.Module) -> nn.Module:
    """A model that preprocesses its images; an ensemble remains one, as each of its members does.

    Args:
        model: The model, which is not changed.
        preprocessing: From images in [0, 1], such as ``torchvision.transforms.Normalize(mean, std)``.

    Raises:
        InputError: If the preprocessing is no module.

    Example:
        >>> from torchvision.transforms import Normalize
        >>> preprocess(nn.Flatten(), Normalize((0.5,), (0.25,)))(torch.ones(1, 1, 1, 1))
        tensor([[2.]])
    """
    if not isinstance(preprocessing, nn.Module):
        raise InputError(
            f"preprocessing must be a torch.nn.Module, got {preprocessing!r}: pass torchvision.transforms.Normalize"
        )
    if not isinstance(model, Ensemble):
        return PreprocessedModel(preprocessing, model)
    whole = Ensemble([PreprocessedModel(preprocessing, member) for member in model.members], model.rule)
    loaded = getattr(model, "weights_loaded", True)
    setattr(whole, "weights_loaded", loaded)  # noqa: B010 - a module attribute unknown to nn.Module's type
    return whole.train(model.training)
