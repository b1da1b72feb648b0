"""Narrower word embeddings: ALBERT's factorisation (Lan et al. 2019, section 3.1) of a given table.

In: the embedding tensors, how often each word is read, windows of text. Out: the same tensors, E
wide. Neighbours: `steps` writes the folder.

Shapes: V words, P positions, F old width, E new width, H hidden, R rows (tokens of text).

The old table computes `project(gain * n(w + p + t) + shift)`, with n the normalisation over F.
Subtracting each row's mean changes nothing, since n does so. Then n is `sqrt(F) x / |x|`, so a
rotation A `[F, E]` of x onto its E - 1 principal components, in the basis of E whose rows sum to
0, loses only what lies outside of them: n over E gives `sqrt(E) xA / |xA|`, and A times sqrt(F/E)
goes into `project`. With E = F + 1 it would be exact. The mapping is then fitted to the old
outputs on text by least squares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cloud_worker.training.features import TrainingWindow
from reader.arrays import FloatArray

DoubleArray = NDArray[np.float64]
_TABLES = ("embeddings.word.weight", "embeddings.position.weight", "embeddings.token_type.weight")


def narrow(
    tensors: Mapping[str, FloatArray],
    width: int,
    counts: DoubleArray,
    windows: Sequence[TrainingWindow],
) -> dict[str, FloatArray]:
    """The embedding tensors, `width` wide; `counts` `[V]` weigh the words, 0 counting as 1.

    Without windows the mapping is the exact one for what is kept.
    """
    old = {
        name: value.astype(np.float64)
        for name, value in tensors.items()
        if name.startswith("embeddings.")
    }
    word, position, kind = (_centred(old[name]) for name in _TABLES)
    weights = np.maximum(counts, 1.0)
    moments = (word * weights[:, None]).T @ word
    moments += position.T @ position * (weights.sum() / len(position))
    components = np.linalg.eigh(moments)[1][:, ::-1][:, : width - 1]  # [F, E - 1]
    turn = components @ _rows_that_sum_to_zero(width).T  # [F, E]
    new = {name: table @ turn for name, table in zip(_TABLES, (word, position, kind), strict=True)}
    new["embeddings.norm.weight"], new["embeddings.norm.bias"] = np.ones(width), np.zeros(width)
    gain, project = old["embeddings.norm.weight"], old["embeddings.project.weight"]
    stretch = math.sqrt(len(gain) / width)
    stretched: DoubleArray = stretch * ((project * gain) @ turn)  # [H, E]
    new["embeddings.project.weight"] = stretched
    new["embeddings.project.bias"] = (
        old["embeddings.project.bias"] + project @ old["embeddings.norm.bias"]
    )
    if windows:
        _fit_mapping(new, old, windows)
    return {name: value.astype(np.float32) for name, value in new.items()}


def _fit_mapping(
    new: dict[str, DoubleArray],
    old: Mapping[str, DoubleArray],
    windows: Sequence[TrainingWindow],
) -> None:
    """Least squares: what `project` makes of the new normalised rows, against the old outputs."""
    wanted: DoubleArray = _normalised(old, windows) * old["embeddings.norm.weight"]
    wanted += old["embeddings.norm.bias"]
    outputs = wanted @ old["embeddings.project.weight"].T  # [R, H]
    outputs += old["embeddings.project.bias"]
    rows = _normalised(new, windows)  # [R, E]
    inputs: DoubleArray = np.concatenate((rows, np.ones((len(rows), 1))), axis=1)
    moments = inputs.T @ inputs
    moments[np.diag_indices(len(moments))] += 1e-6 * np.trace(moments) / len(moments)
    mapping = np.linalg.solve(moments, inputs.T @ outputs).astype(np.float64)  # [E + 1, H]
    new["embeddings.project.weight"] = mapping[:-1].T.copy()
    new["embeddings.project.bias"] = mapping[-1].copy()


def _normalised(
    tensors: Mapping[str, DoubleArray], windows: Sequence[TrainingWindow]
) -> DoubleArray:
    """The normalised sum of word, position and type of every token, before gain and shift."""
    word, position, kind = (tensors[name] for name in _TABLES)
    rows = [
        word[list(window.token_ids)]
        + position[: len(window)]
        + kind[(np.arange(len(window)) >= window.question_tokens).astype(int)]
        for window in windows
    ]
    summed = _centred(np.concatenate(rows))
    normal: DoubleArray = summed / np.sqrt(np.square(summed).mean(axis=1, keepdims=True))
    return normal


def _centred(rows: DoubleArray) -> DoubleArray:
    centred: DoubleArray = rows - rows.mean(axis=1, keepdims=True)
    return centred


def _rows_that_sum_to_zero(width: int) -> DoubleArray:
    """`[E, E - 1]` orthonormal columns, each of which sums to 0."""
    start = np.concatenate((np.ones((width, 1)), np.eye(width)[:, : width - 1]), axis=1)
    return np.linalg.qr(start)[0][:, 1:]
