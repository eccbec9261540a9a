"""Imbalance before and after redundant experts: EPLB takes most of what is asked for away, drift brings some back."""

import numpy as np
import pytest

from clustersim.placement.changing import included
from clustersim.types import InputError
from clustersim.validation.imbalances import _batch, _loads, imbalance

CASE = {
    "what": "imbalance", "gpus": 32, "experts": 256, "top_k": 8, "tokens_per_gpu": 64, "uneven": 1.5, "slots": 256, "drift": 0,
    "metric": "ratio",
}  # fmt: skip


def of(**changes):
    return imbalance({**CASE, **changes})


def test_loads_are_as_uneven_as_asked_and_tokens_take_distinct_experts():
    loads = _loads(32, 256, 8, 1.5)
    np.testing.assert_allclose(loads.sum(axis=1), 8)
    assert loads.max() <= 1
    gpus = loads.reshape(len(loads), 32, 8).sum(axis=2)
    np.testing.assert_allclose((gpus.max(axis=1) / gpus.mean(axis=1) - 1).mean(), 1.5, rtol=1e-6)


def test_sampled_loads_have_the_asked_expectation():
    """Expert e is in a token with probability p[e]: 20,000 tokens are within five standard errors of it."""
    p = included(np.random.default_rng(1).random(16) ** 3, 4)
    counts = _batch(np.random.default_rng(0), p, 20000)
    assert counts.sum() == 4 * 20000
    assert (np.abs(counts / 20000 - p) <= 5 * np.sqrt(p * (1 - p) / 20000) + 1e-12).all()


def test_redundant_experts_take_most_of_it_away_and_drift_brings_some_back():
    before, after, drifted = of(), of(slots=288), of(slots=288, drift=0.1)
    assert before == pytest.approx(1.5, rel=0.1)
    assert after < 0.1 * before
    assert after < drifted < before


@pytest.mark.parametrize(("change", "said"), [
    ({"slots": 300}, "do not fill 32 GPUs evenly"), ({"slots": 128}, "do not fill"),
    ({"uneven": 31}, "cannot be chosen as unevenly"),
    ({"uneven": None}, "case.uneven"), ({"drift": -1}, "case.drift=-1"), ({"colour": 1}, "not in the vocabulary of imbalance"),
])  # fmt: skip
def test_what_cannot_be_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        of(**change)
