"""Precisions: text form and valid numbers of bits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empir_plugin.errors import InputError
from empir_plugin.models.quantize import Precision

BITS = [*range(1, 9), 32]
precisions = st.builds(Precision, st.sampled_from(BITS), st.sampled_from(BITS))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fp", Precision(32, 32)),
        ("w2a4", Precision(2, 4)),
        ("w1a8", Precision(1, 8)),
        ("w4", Precision(4, 32)),
        ("w4a32", Precision(4, 32)),
        ("w32a4", Precision(32, 4)),
        ("w32a32", Precision(32, 32)),
    ],
)
def test_texts_by_hand(text: str, expected: Precision) -> None:
    assert Precision.parse(text) == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Precision(), "fp"), (Precision(2, 4), "w2a4"), (Precision(4), "w4a32"), (Precision(32, 4), "w32a4")],
    ids=repr,
)
def test_text_form_by_hand(precision: Precision, expected: str) -> None:
    assert str(precision) == expected


@settings(deadline=None)
@given(precisions)
def test_every_precision_survives_its_text(precision: Precision) -> None:
    assert Precision.parse(str(precision)) == precision


@settings(deadline=None)
@given(st.sampled_from(BITS))
def test_weights_alone_leave_the_activations(bits: int) -> None:
    assert Precision.parse(f"w{bits}") == Precision(bits, 32)


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "FP", "fp ", "w", "a4", "a4w2", "w2a", "w2 a4", "W2A4", "w2a4\n", "w2a4a4", "w-2a4", "w2.5", "w+2"],
        *["fp32", "w\u0664a\u0664", "w1000", "w2a" + "9" * 5000],
    ],
    ids=lambda text: ascii(text)[:12],
)
def test_another_form_is_refused_with_the_three_that_are_known(text: str) -> None:
    with pytest.raises(InputError, match=r"'fp', 'w2a4' or 'w4', got "):
        Precision.parse(text)


@settings(deadline=None)
@given(st.text(alphabet="wafp0123489 ", max_size=8))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        precision = Precision.parse(text)
    except InputError:
        return
    assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w0a4", r"weight_bits .*1 to 8, or 32.* 0$"),
        ("w9a4", r"weight_bits .*1 to 8, or 32.* 9$"),
        ("w16", r"weight_bits .*1 to 8, or 32.* 16$"),
        ("w2a0", r"activation_bits .*1 to 8, or 32.* 0$"),
        ("w2a31", r"activation_bits .*1 to 8, or 32.* 31$"),
        ("w2a64", r"activation_bits .*1 to 8, or 32.* 64$"),
    ],
)
def test_impossible_bits_in_a_text(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Precision.parse(text)


@settings(deadline=None)
@given(st.integers().filter(lambda bits: bits not in BITS), st.booleans())
def test_impossible_bits_are_refused_by_name(bits: int, of_weights: bool) -> None:
    name = "weight_bits" if of_weights else "activation_bits"
    with pytest.raises(InputError, match=rf"{name} .*1 to 8, or 32.* {bits}$"):
        Precision(**{name: bits})


@pytest.mark.parametrize("text", ["fp", "w32a32"])
def test_full_precision(text: str) -> None:
    assert Precision.parse(text).is_full


@pytest.mark.parametrize("text", ["w8", "w32a8", "w2a2"])
def test_one_quantized_side_is_not_full_precision(text: str) -> None:
    assert not Precision.parse(text).is_full


def test_precisions_are_values() -> None:
    assert len({Precision(2, 4), Precision.parse("w2a4"), Precision(4, 2)}) == 2
