"""The work that the network does is counted, so that a change that makes it do more is seen on any machine."""

import pytest

from tests.bench.counts import default_run_cost, direct_cost


@pytest.mark.parametrize("n_gpus", [64, 128])
def test_a_uniform_exchange_takes_two_solves(n_gpus):
    """All start together; those inside a node end together, and so do those between nodes. Ends that free nobody cost nothing,
    so one solve finds the rates, and one more the end of what saturates the NVLink ports."""
    cost = direct_cost("uniform", n_gpus)
    assert cost.flows == n_gpus * (n_gpus - 1)
    assert cost.solves <= 3
    assert cost.events == 2 * cost.flows, "each flow begins and ends"


@pytest.mark.parametrize(("n_gpus", "solves", "flow_visits"), [(64, 2950, 1190), (128, 7300, 5350)])
def test_a_skewed_exchange_takes_no_more_solves_than_its_flows_end_at_different_times(n_gpus, solves, flow_visits):
    cost = direct_cost("skewed", n_gpus)
    assert cost.solves <= cost.flows
    assert cost.solves == pytest.approx(solves, rel=0.03)
    assert cost.flow_visits == pytest.approx(flow_visits, rel=0.05)


@pytest.mark.parametrize(("phase", "solves"), [("dispatch", 2756), ("combine", 2726)])
def test_flows_that_are_held_by_others_cost_no_solve_of_their_own(phase, solves):
    """Of some 4,000 flows those on the NIC, and the last chunks of those on NVLink, change rates; the rest follow."""
    cost = default_run_cost(phase)
    assert cost.solves == pytest.approx(solves, rel=0.05)
    assert cost.solves < cost.flows
