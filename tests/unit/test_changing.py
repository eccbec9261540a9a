"""Loads that moved on: how far is what was asked for, and a placement that was decided before is the worse for it."""

import numpy as np
import pytest

from clustersim import simulate
from clustersim.placement.changing import drifted, included
from clustersim.types import InputError


@pytest.mark.parametrize("drift", [0.03, 0.105, 0.4])
def test_loads_move_by_as_much_as_asked(drift):
    rng = np.random.default_rng(0)
    before = included(rng.lognormal(size=256), 8)
    after = drifted(rng, before, drift, 8)
    assert np.sqrt(((after - before) ** 2).sum() / (before**2).sum()) == pytest.approx(drift, rel=1e-6)
    assert after.sum() == pytest.approx(8)
    assert after.max() <= 1


RUN = [
    "trace=sampled", "model.n_layers=6", "workload.tokens_per_gpu=256", "topology.nodes=2", "placement=eplb",
    "placement.slots=48",
]  # fmt: skip


def test_eplb_on_older_loads_balances_less():
    """The loads themselves are balanced to what chance leaves; a quarter of them elsewhere cannot be, whatever the seed."""
    fresh, old = ([simulate([*RUN, f"seed={seed}", *more]).summary["imbalance"] for seed in range(3)]
                  for more in ([], ["decide.drift=0.25"]))
    assert np.mean(old) > np.mean(fresh)


@pytest.mark.parametrize("value", [-0.1, 1, "true"])
def test_a_drift_is_a_share(value):
    with pytest.raises(InputError, match=r"decide\.drift"):
        simulate([*RUN, f"decide.drift={value}"])
