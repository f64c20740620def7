"""The rules by which an ensemble decides, in ONNX operators: those of :mod:`empir_plugin.models.ensemble`."""

from __future__ import annotations

import math

import numpy as np

from empir_plugin.export.graph import Graph
from empir_plugin.export.quantized import FLOAT, refuse
from empir_plugin.models.ensemble import MaxVote, MeanLogits, MeanProbability, Rule

_BOOL, _INT64 = 9, 7
_BELOW_ONE = np.float32(1 - 2**-24)
"""A normal negative float32 times this is the next one above it, which ONNX has no operator for."""


def write_rule(graph: Graph, members: list[str], rule: Rule, leader: int | None, classes: int) -> str:
    """Add an ensemble's rule.

    Args:
        graph: It is changed.
        members: Names of the members' logits ``(N, K)``.
        rule: Max vote, mean probability or mean logits.
        leader: Index of the first full-precision member; None if there is none.
        classes: K.

    Returns:
        The name of the ensemble's output ``(N, K)``.

    Raises:
        InputError: If the rule has no ONNX form.
    """
    if type(rule) not in (MaxVote, MeanProbability, MeanLogits):
        what = f"no ONNX form of the rule {type(rule).__name__} is known, only of MaxVote, MeanProbability, MeanLogits"
        raise refuse(graph, what)
    first = graph.constant([0], np.int64)
    logits = graph.add("Concat", *(graph.add("Unsqueeze", member, first) for member in members), axis=0)
    if isinstance(rule, MeanLogits):
        return graph.add("ReduceMean", logits, first, keepdims=0)
    log_p = graph.add("LogSoftmax", logits, axis=-1)
    total = graph.add("ReduceLogSumExp", log_p, first, keepdims=0)
    if isinstance(rule, MeanProbability):
        return graph.add("Sub", total, graph.constant(math.log(len(members))))
    votes = graph.add("ArgMax", logits, axis=-1, keepdims=1)  # (M, N, 1)
    winner = _write_winner(graph, votes, total, leader, classes)  # (N, 1)
    voted = graph.add("Equal", votes, winner)  # (M, N, 1)
    masked = graph.add("Where", voted, log_p, graph.constant(-math.inf))
    count = graph.add("ReduceSum", graph.add("Cast", voted, to=FLOAT), first, keepdims=0)
    voters = graph.add("ReduceLogSumExp", masked, first, keepdims=0)
    return _write_lift(graph, graph.add("Sub", voters, graph.add("Log", count)), winner, classes)


def _write_winner(graph: Graph, votes: str, total: str, leader: int | None, classes: int) -> str:
    """Add the election of a class ``(N, 1)``."""
    names, first, second = _names(graph, classes), *(graph.constant([axis], np.int64) for axis in (0, 1))
    ballots = graph.add("Cast", graph.add("Equal", votes, names), to=FLOAT)  # (M, N, K)
    counts = graph.add("ReduceSum", ballots, first, keepdims=0)
    tied = graph.add("Equal", counts, graph.add("ReduceMax", counts, second, keepdims=1))
    among = graph.add("Where", tied, total, graph.constant(-math.inf))
    by_probability = graph.add("ArgMax", among, axis=1, keepdims=1)
    if leader is None:
        return by_probability
    choice = graph.add("Gather", votes, graph.constant(leader, np.int64), axis=0)
    found = graph.add("GatherElements", graph.add("Cast", tied, to=_INT64), choice, axis=1)
    return graph.add("Where", graph.add("Cast", found, to=_BOOL), choice, by_probability)


def _write_lift(graph: Graph, log_p: str, winner: str, classes: int) -> str:
    """Raise the winner's entry where rounding made it equal to one of lower index, so the winner is the argmax."""
    best = graph.add("ReduceMax", log_p, graph.constant([1], np.int64), keepdims=1)
    index = graph.add("ArgMax", log_p, axis=1, keepdims=1)
    other = graph.add("Not", graph.add("Equal", index, winner))
    raised = graph.add("And", graph.add("Equal", winner, _names(graph, classes)), other)
    return graph.add("Where", raised, graph.add("Mul", best, graph.constant(_BELOW_ONE)), log_p)


def _names(graph: Graph, classes: int) -> str:
    return graph.constant(np.arange(classes), np.int64)
