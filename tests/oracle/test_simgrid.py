"""The fluid network against what SimGrid said of the same flows; see `python -m tests.oracle.simgrid`."""

from functools import cache

import numpy as np
import pytest

from tests.oracle import simgrid
from tests.oracle.systems import KINDS


@cache
def rows(kind):
    return [one for _, _, one in simgrid.compared([kind], live=False)]


def test_there_are_enough_systems_and_sharing_decides_enough_of_them():
    ratios = np.array([one.over_bound for kind in KINDS for one in rows(kind)])
    assert ratios.size >= 60
    assert (ratios > 1.05).sum() >= 30
    assert (ratios[np.isfinite(ratios)] >= 1 - 1e-9).all(), "faster than the busiest link"


@pytest.mark.parametrize("kind", KINDS)
def test_every_flow_ends_when_simgrid_says(kind):
    """To 1e-9 of the time that the flow took; what is stored was computed with a precision of 1e-14 s."""
    for one in rows(kind):
        assert one.apart.max() < 1e-9, one.system.name


@pytest.mark.slow
def test_every_flow_of_256_gpus_ends_when_simgrid_says():
    [(_, _, one)] = simgrid.compared(list(simgrid.LONG), live=False)
    assert one.system.n == 65_280
    assert one.apart.max() < 1e-9


@pytest.mark.slow
def test_simgrid_as_it_is_installed_here_still_says_what_is_stored():
    try:
        simgrid.program()
    except simgrid.NoSimGrid as missing:
        pytest.skip(str(missing))
    answers = simgrid.stored()
    for kind in ("sparse, heavy tailed", "routes of 1 to 6 links", "rate caps", "capacities that change", "small"):
        for system in simgrid.systems(kind):
            np.testing.assert_allclose(simgrid.play(system).finish, answers[kind, system.name][1].finish, rtol=1e-9)
