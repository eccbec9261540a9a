"""Routers with experts that cost nothing beside the real ones: every GPU has them, so choosing one sends no byte.

The last columns of the scores are these experts. Where one is chosen the id is -1 and the weight 0.
"""

from __future__ import annotations

import numpy as np

from clustersim.types import Floats, InputError, Ints
from clustersim.workload.routers.activation import Scores, activated, best, check_k, check_numbers, pieces, weights_of


def moe_plus_plus(scores: Scores, *, k: int, n_zero: int = 4) -> tuple[Ints, Floats]:
    """The k largest softmax over real and zero-computation experts, renormalised; the zero expert itself weighs nothing.

    The last columns are, in this order, constant experts, the copy expert and the zero expert. (The original adds to the
    scores a learned product of the scores of the layer before, which is not known here.)

    Args:
        n_zero: zero-computation experts, the last of which is the zero expert.

    Raises:
        InputError: no real expert is left, k does not fit, a score is NaN.

    Source: MoE++ (arXiv 2410.07348); SkyworkAI/MoE-plus-plus, moe_plus_plus_layer.py.
    """
    real = _real(scores, n_zero)
    ids = best(scores, k)
    weights = np.empty(ids.shape)
    for part in pieces(len(scores)):
        values = activated(scores[part], "softmax")
        values[:, -1] = 0.0
        weights[part] = weights_of(values, ids[part], renormalise=True)
    return _without_zero(ids, weights, real)


def longcat(
    scores: Scores, *, k: int, n_zero: int = 256, scale: float = 6.0, bias: Floats | None = None
) -> tuple[Ints, Floats]:
    """The k largest of softmax plus bias over real and identity experts; weights are softmax times scale, not renormalised.

    Args:
        n_zero: identity experts.
        bias: float [experts + n_zero].

    Raises:
        InputError: no real expert is left, k does not fit, a score is NaN.

    Source: LongCat-Flash (arXiv 2509.01322); its router in transformers (`longcat_flash`).
    """
    real = _real(scores, n_zero)
    check_k(k, scores.shape[1])
    ids, weights = np.empty((len(scores), k), np.int64), np.empty((len(scores), k))
    for part in pieces(len(scores)):
        check_numbers(scores[part], part.start)
        values = activated(scores[part], "softmax")
        ids[part] = best(values, k, bias)
        weights[part] = weights_of(values, ids[part], renormalise=False, scale=scale)
    return _without_zero(ids, weights, real)


def _real(scores: Scores, n_zero: int) -> int:
    real = int(scores.shape[1]) - n_zero
    if n_zero < 1 or real < 1:
        raise InputError(f"router.n_zero={n_zero}: must be from 1 to {scores.shape[1] - 1}, so that a real expert is left")
    return real


def _without_zero(ids: Ints, weights: Floats, real: int) -> tuple[Ints, Floats]:
    zero = ids >= real
    ids[zero] = -1
    weights[zero] = 0.0
    return ids, weights
