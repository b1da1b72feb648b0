"""int4 rounding that makes up for its own errors (GPTQ, Frantar et al. 2023, algorithm 1).

In: a matrix and statistics of what it is multiplied with. Out: int4 codes and scales, and what to
add to the bias. Neighbours: `activations` measures the inputs on text, `steps` writes the folder.

Rounding a column of W to its grid leaves an error that the columns after it can partly undo, given
how the inputs go together: minimise E|W x - Q x|^2 column by column, through the Cholesky factor of
the inverse of H = E[x x^T]. The bias takes care of the mean of the error, so H here is the
covariance of x: only what varies has to be undone by other columns.
"""

from __future__ import annotations

import numpy as np

from cloud_worker.compress.activations import InputStatistics
from reader.arrays import FloatArray
from reader.encodings import GROUP_COLUMNS, best_int4_scales, encode_int4_groups
from reader.storage import StoredTensor

DAMPING = 0.01  # of the mean diagonal, added to it: inputs that never vary stay solvable


def round_to_int4(matrix: FloatArray, inputs: InputStatistics) -> tuple[StoredTensor, FloatArray]:
    """`matrix` `[rows, columns]` in int4, and what that adds to the mean output, `[rows]`, negated:
    to be added to the bias.

    Columns must be a multiple of `GROUP_COLUMNS`. A group's scale is chosen when its turn comes,
    for the columns as the errors before them have left them.
    """
    width = matrix.shape[1]
    moments = inputs.covariance.copy()
    moments[np.diag_indices(width)] += DAMPING * max(float(np.trace(moments)) / width, 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T  # upper triangle
    left = matrix.astype(np.float64)  # what is still to be rounded, errors passed on
    scales = np.empty((len(matrix), width // GROUP_COLUMNS), dtype=np.float16)
    rounded = np.empty_like(matrix, dtype=np.float32)
    for group in range(scales.shape[1]):
        first, last = group * GROUP_COLUMNS, (group + 1) * GROUP_COLUMNS
        scales[:, group] = best_int4_scales(left[:, first:last].astype(np.float32))[:, 0]
        step = scales[:, group].astype(np.float64)
        errors = np.empty((len(matrix), GROUP_COLUMNS))
        for column in range(first, last):
            value = np.clip(np.rint(left[:, column] / step), -8, 7) * step
            error = (left[:, column] - value) / factor[column, column]
            left[:, column + 1 : last] -= np.outer(error, factor[column, column + 1 : last])
            errors[:, column - first] = error
            rounded[:, column] = value
        left[:, last:] -= errors @ factor[first:last, last:]
    correction = (matrix - rounded) @ inputs.mean
    stored = StoredTensor("int4", *encode_int4_groups(rounded, scales))
    return stored, correction.astype(np.float32)
