"""The work that the network does is counted, so that a change that makes it do more is seen on any machine."""

from functools import cache, partial

import numpy as np
import pytest

from clustersim import load_cluster
from clustersim.network import bound, fluid
from tests.bench.counts import default_run_cost, direct_cost
from tests.bench.forwards import forward
from tests.bench.rows import SCANS
from tests.bench.workloads import layer

EXACT = cache(direct_cost)
SKEWED = pytest.mark.parametrize("n_gpus", [64, 128, pytest.param(256, marks=pytest.mark.slow)])


@pytest.mark.parametrize("n_gpus", [64, 128])
def test_a_uniform_exchange_takes_two_solves(n_gpus):
    """All start together; those inside a node end together, and so do those between nodes. Ends that free nobody cost nothing,
    so one solve finds the rates, and one more the end of what saturates the NVLink ports."""
    cost = EXACT("uniform", n_gpus)
    assert cost.flows == n_gpus * (n_gpus - 1)
    assert cost.solves <= 3
    assert cost.events == 2 * cost.flows, "each flow begins and ends"


@SKEWED
def test_a_skewed_exchange_takes_no_more_solves_than_flows_end_at_different_times(n_gpus):
    cost = EXACT("skewed", n_gpus)
    assert cost.solves <= cost.flows
    assert cost.solves == pytest.approx({64: 2701, 128: 6606, 256: 17392}[n_gpus], rel=0.02)


@SKEWED
def test_a_solve_looks_at_less_than_a_third_of_what_a_plain_scan_does(n_gpus):
    """A plain scan is prefix reuse over whole lists (`tests.bench.rows`). A third of it is more than flows and links together."""
    cost = EXACT("skewed", n_gpus)
    assert cost.flow_visits + cost.link_visits <= SCANS[n_gpus] / 3
    assert cost.flow_visits <= {64: 190, 128: 300, 256: 1800}[n_gpus]
    assert cost.link_visits <= {64: 310, 128: 620, 256: 1240}[n_gpus]


@pytest.mark.parametrize(("phase", "solves"), [("dispatch", 3467), ("combine", 2663)])
def test_flows_that_are_held_by_others_cost_no_solve_of_their_own(phase, solves):
    """Of some 4,000 flows those on the NIC, and the last chunks of those on NVLink, change rates; the rest follow."""
    cost = default_run_cost(phase)
    assert cost.solves == pytest.approx(solves, rel=0.05)
    assert cost.solves < cost.flows


@pytest.mark.parametrize("network", [fluid, partial(fluid, resolution=0.01), bound], ids=["exact", "coarse", "bound"])
@pytest.mark.parametrize("exchange", ["direct", "node_dedup"])
def test_at_most_five_events_of_the_loop_per_gpu_and_exchange(exchange, network):
    """An exchange has 240 flows, 15 per GPU; the loop hears of arrivals and of ranks that are through, `bound` of one for all."""
    jitter = np.random.default_rng(0).exponential(1e-4, (6, 16))
    took = forward(load_cluster("ideal_rail", nodes=2), network, list(layer(exchange, 16)) * 3, jitter)
    assert 1 / 16 <= took.events <= 5


def test_a_coarse_exchange_looks_at_what_moves_by_itself():
    """Of 4,032 flows 3,136 follow others on the way out; most steps do not look at them, as they could not fill their ports."""
    from clustersim.network import coarse_records

    cluster, sent = load_cluster("ideal_rail", nodes=8), layer("node_dedup", 64)
    net = {}
    for phase, transfers in zip(("dispatch", "combine"), sent, strict=True):
        def network(env, cluster, phase=phase):
            net[phase] = fluid(env, cluster, resolution=0.01)
            return net[phase]

        forward(cluster, network, [transfers], np.random.default_rng(0).exponential(1e-4, (1, 64)))
        tally = net[phase]._state.tally
        steps, looks = tally[coarse_records.STEPS], tally[coarse_records.FLOW_VISITS] + tally[coarse_records.LED_VISITS]
        assert steps <= 200
        assert looks <= {"dispatch": 4500, "combine": 5500}[phase] * steps
