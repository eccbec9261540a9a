"""What the network refuses: each wrong input ends in one InputError, one line that names it."""

import numpy as np
import pytest

from clustersim import InputError, flow_times, load_cluster, transfer

RAIL = load_cluster("ideal_rail", nodes=2)
NAN, INF = float("nan"), float("inf")


def refused(call, *named):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in named:
        assert word in message


def matrix(value, at=(0, 1)):
    nbytes = np.ones((16, 16))
    nbytes[at] = value
    return nbytes


@pytest.mark.parametrize("value", [-1.0, NAN, INF, -INF])
@pytest.mark.parametrize("at", [(0, 1), (3, 3), (0, 15)])
def test_bytes_that_are_negative_or_no_number(value, at):
    refused(lambda: transfer(RAIL, matrix(value, at)), "nbytes")


@pytest.mark.parametrize("shape", [(), (16,), (8, 8), (16, 15), (16, 16, 1), (0, 0)])
def test_a_matrix_of_the_wrong_size(shape):
    refused(lambda: transfer(RAIL, np.ones(shape)), "nbytes", "16")


@pytest.mark.parametrize("values", ["abc", [[1.0, 2.0], [3.0]], np.ones((16, 16)) * 1j, None])
def test_what_is_no_array_of_numbers(values):
    refused(lambda: transfer(RAIL, values), "nbytes")
    if values is not None:
        refused(lambda: transfer(RAIL, np.ones((16, 16)), release=values), "release")


def test_more_gpus_than_a_machine_may_have():
    refused(lambda: load_cluster("ideal_rail", nodes=2**30), "topology.nodes=1073741824", "262,144")


def test_a_pair_without_a_route():
    refused(lambda: load_cluster("ideal_rail", nodes=2, nic={"bandwidth": None}), "GPU 8", "GPU 0")
    refused(lambda: load_cluster("ideal_rail", nodes=1, nvlink={"bandwidth": None}, nic={"bandwidth": None}), "GPU 1", "GPU 0")


@pytest.mark.parametrize("capacity", [0.0, -1.0, NAN, INF])
def test_a_used_link_that_cannot_carry(capacity):
    refused(lambda: flow_times([1.0, capacity], [[0, 1]], [1.0], 0.0), "link 1", "capacity")
    assert flow_times([1.0, capacity], [[0]], [1.0], 0.0) == [1.0], "one that nobody uses is let be"


def test_a_used_port_that_cannot_carry():
    refused(lambda: load_cluster("ideal_rail", nodes=2, nic={"bandwidth": "0 GB/s"}), "topology.nic.bandwidth")
    refused(lambda: load_cluster("ideal_rail", nodes=2, nvlink={"bandwidth": "-1 GB/s"}), "topology.nvlink.bandwidth")


@pytest.mark.parametrize("bandwidth", ["1e400 GB/s", "1e300 GB/s"])
def test_a_bandwidth_that_overflows(bandwidth):
    refused(lambda: load_cluster("ideal_rail", nodes=2, nic={"bandwidth": bandwidth}), "topology.nic.bandwidth")


def test_a_port_whose_links_together_overflow():
    nic = {"bandwidth": "1e299 GB/s", "per_gpu": 100_000_000}
    refused(lambda: load_cluster("ideal_rail", nodes=2, nic=nic), "topology", "nic_up 0")


@pytest.mark.parametrize(("capacity", "nbytes"), [(1e-308, 1e308), (5e-324, 1.0), (1.0, 1.7e308)])
def test_a_time_that_overflows(capacity, nbytes):
    refused(lambda: flow_times([capacity], [[0]] * 3, [nbytes] * 3, 0.0), "link 0")


@pytest.mark.parametrize("release", [-1.0, NAN, INF, [0.0] * 15, [0.0] * 15 + [NAN]])
def test_a_release_that_cannot_be(release):
    refused(lambda: transfer(RAIL, np.ones((16, 16)), release=release), "release")


@pytest.mark.parametrize("route", [[2], [-1], [0, 99]])
def test_a_route_over_a_link_that_is_not_there(route):
    refused(lambda: flow_times([1.0, 1.0], [[0], route], [1.0, 1.0], 0.0), f"link {route[-1]}")


@pytest.mark.parametrize("lists", [{"nbytes": [1.0]}, {"release": [0.0] * 3}, {"routes": [[0]]}])
def test_lists_of_different_lengths(lists):
    refused(lambda: flow_times(**{"capacity": [1.0], "routes": [[0], [0]], "nbytes": [1.0, 1.0], "release": 0.0} | lists))


@pytest.mark.parametrize("resolution", [-0.01, NAN, INF])
def test_a_resolution_that_cannot_be(resolution):
    refused(lambda: transfer(RAIL, np.ones((16, 16)), resolution=resolution), "resolution")
    refused(lambda: flow_times([1.0], [[0]], [1.0], 0.0, resolution=resolution), "resolution")


@pytest.mark.parametrize("network", ["fluidd", "", "Fluid"])
def test_a_network_that_is_not_there(network):
    refused(lambda: transfer(RAIL, np.ones((16, 16)), network=network), "network=")


@pytest.mark.parametrize(
    "wrong", [{"capacity": ["fast"]}, {"nbytes": ["much"]}, {"release": "soon"}, {"capacity": [[1.0]]}, {"routes": [[0.5]]}],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_what_is_no_number_at_all(wrong):
    good = {"capacity": [1.0], "routes": [[0]], "nbytes": [1.0], "release": 0.0}
    refused(lambda: flow_times(**good | wrong), next(iter(wrong)))


@pytest.mark.parametrize("cap", [[0.0, 1.0], [-1.0, 1.0], [NAN, 1.0], [1.0]])
def test_a_rate_cap_that_cannot_be(cap):
    refused(lambda: flow_times([1.0], [[0], [0]], [1.0, 1.0], 0.0, rate_cap=cap), "rate_cap")


@pytest.mark.parametrize(
    "change",
    [
        (1.0, 1, 1.0), (1.0, -1, 1.0), (NAN, 0, 1.0), (1.0, 0, -1.0), (1.0, 0, NAN), (1.0, 0, INF), (1.0, 0),
    ],
)
def test_a_change_of_capacity_that_cannot_be(change):
    refused(lambda: flow_times([1.0], [[0]], [1.0], 0.0, changes=[change]), "changes")


def test_a_link_that_stops_for_good_under_a_flow():
    refused(lambda: flow_times([1.0], [[0]], [2.0], 0.0, changes=[(1.0, 0, 0.0)]), "link 0", "stays down")


@pytest.mark.parametrize("weights", [[[0.0]], [[-1.0]], [[NAN]], [[1.0, 1.0]], []])
def test_a_weight_that_cannot_be(weights):
    refused(lambda: flow_times([1.0], [[0]], [1.0], 0.0, weights=weights), "weights")


def test_a_change_of_a_link_that_only_a_rate_cap_brings():
    """Caps are links of the flows' own inside; they have no numbers outside."""
    refused(lambda: flow_times([1.0], [[0]], [2.0], 0.0, rate_cap=[0.5], changes=[(1.0, 1, 1.0)]), "link 1", "there are 1")
