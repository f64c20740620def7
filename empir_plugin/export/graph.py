"""A graph of ONNX operations under construction, as plain data: nodes, constants, and names that never repeat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

QONNX_DOMAIN = "qonnx.custom_op.general"


@dataclass(frozen=True)
class Node:
    """One operation with one output.

    Args:
        op: As ONNX spells it.
        inputs: Names of values.
        output: Name of its value, and of the node.
        attributes: As the ONNX operator takes them.
        domain: Of the operator; empty for ONNX's own.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]
    domain: str = ""


@dataclass(frozen=True)
class Constant:
    """A constant of the file.

    Args:
        values: In their own type, or uint8 if ``bits`` says how many of the 8 bits are stored.
        bits: 2 or 4 for codes packed into bytes; None for the type of ``values``.
    """

    values: np.ndarray
    bits: int | None = None

    @property
    def bytes_stored(self) -> bytes:
        """The numbers as ONNX stores them: little-endian, the first code in the lowest bits of a byte."""
        if self.bits is None:
            return np.ascontiguousarray(self.values).astype(self.values.dtype.newbyteorder("<")).tobytes()
        per_byte = 8 // self.bits
        flat = np.zeros(-(-self.values.size // per_byte) * per_byte, np.uint8)
        flat[: self.values.size] = self.values.ravel()
        places = flat.reshape(-1, per_byte) << (self.bits * np.arange(per_byte, dtype=np.uint8))
        return np.bitwise_or.reduce(places, axis=1).astype(np.uint8).tobytes()


class Graph:
    """Operations in the order in which they run.

    Example:
        >>> graph = Graph()
        >>> graph.add("Relu", "images")
        'Relu'
        >>> graph.add("Relu", "Relu")
        'Relu_1'
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}
        self._scope: tuple[str, ...] = ()
        self._taken: set[str] = set()
        self._known: dict[tuple[Any, ...], str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put a module's name before the names of everything that is added in the block."""
        outer = self._scope
        self._scope = (*outer, name) if name else outer
        try:
            yield
        finally:
            self._scope = outer

    @property
    def where(self) -> str:
        """The name of the module that is being written, as in ``named_modules``."""
        return ".".join(self._scope)

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add an operation; the name of its output."""
        output = self._name(op)
        self.nodes.append(Node(op, inputs, output, attributes, domain))
        return output

    def quant(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add an operation of QONNX."""
        return self.add(op, *inputs, domain=QONNX_DOMAIN, **attributes)

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A constant; equal ones of few numbers are one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if array.size > 1 or key not in self._known:
            name = self._name("constant")
            self.constants[name] = Constant(array)
            self._known[key] = name
            return name
        return self._known[key]

    def codes(self, codes: np.ndarray) -> str:
        """A constant of non-negative integers in the narrowest of ONNX's types: 2, 4, 8 or 16 bits."""
        name, bits = self._name("codes"), max(1, int(codes.max(initial=0)).bit_length())
        if bits > 8:
            self.constants[name] = Constant(codes.astype(np.uint16))
        else:
            self.constants[name] = Constant(codes.astype(np.uint8), 2 if bits <= 2 else 4 if bits <= 4 else None)
        return name

    def _name(self, kind: str) -> str:
        base = ".".join((*self._scope, kind))
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name
