"""Programs on two streams: closed forms by hand on machines of a few GPUs whose ports carry 1 GB/s."""

import numpy as np
import pytest

from clustersim import load_cluster
from clustersim.engine.program import COMMUNICATE, COMPUTE, Op, Work, exposed, play_program
from clustersim.network import bound, fluid
from clustersim.types import independent

GB = 1e9
NETWORKS = pytest.mark.parametrize("network", [fluid, bound])


def machine(n):
    """One node: every GPU has one port of 1 GB/s each way."""
    nvlink = {"bandwidth": "1 GB/s", "latency": 0}
    return load_cluster("ideal_rail", nodes=1, gpus_per_node=n, nvlink=nvlink, nic={"bandwidth": None})


def swap(seconds):
    """Two GPUs send each other what takes a port so many seconds."""
    return independent(np.array([0, 1]), np.array([1, 0]), np.full(2, seconds * GB))


def program(*rows):
    """Ops from (name, stream, part, batch, names of what comes before)."""
    places = {name: i for i, (name, *_) in enumerate(rows)}
    return [
        Op(stream=stream, part=part, layer=0, batch=batch, after=tuple(places[other] for other in after))
        for _, stream, part, batch, after in rows
    ]


def layer_work(a, d, g, c, **more):
    each = {"attention": a, "expert": g}
    work = Work(
        seconds={name: np.full(2, float(s)) for name, s in each.items()},
        transfers={"dispatch": swap(d), "combine": swap(c)}, **more,
    )
    return lambda layer, batch: work


ONE_LAYER = (
    ("A", COMPUTE, "attention", 0, ()), ("D", COMMUNICATE, "dispatch", 0, "A"), ("G", COMPUTE, "expert", 0, "D"),
    ("C", COMMUNICATE, "combine", 0, "G"),
)  # fmt: skip


@NETWORKS
def test_one_batch_is_the_sum_and_every_exchange_is_exposed(network):
    ops = program(*ONE_LAYER)
    ran = play_program(machine(2), network, ops, layer_work(3, 2, 3, 2))
    assert ran.step_s == pytest.approx(10, rel=1e-12)
    np.testing.assert_allclose(exposed(ops, ran), np.array([0, 2, 0, 2])[:, None] * np.ones(2))


@NETWORKS
def test_two_micro_batches_hide_one_another_s_exchanges(network):
    # compute A0 0-3, A1 3-6, G0 6-9, G1 9-12; exchanges D0 3-5, D1 6-8, C0 9-11, C1 12-14
    ops = program(
        ("A0", COMPUTE, "attention", 0, ()), ("A1", COMPUTE, "attention", 1, ()), ("G0", COMPUTE, "expert", 0, ("D0",)),
        ("G1", COMPUTE, "expert", 1, ("D1",)),
        ("D0", COMMUNICATE, "dispatch", 0, ("A0",)), ("D1", COMMUNICATE, "dispatch", 1, ("A1",)),
        ("C0", COMMUNICATE, "combine", 0, ("G0",)), ("C1", COMMUNICATE, "combine", 1, ("G1",)),
    )  # fmt: skip
    ran = play_program(machine(2), network, ops, layer_work(3, 2, 3, 2))
    assert ran.step_s == pytest.approx(14, rel=1e-12)
    np.testing.assert_allclose(exposed(ops, ran).sum(axis=0), 2)            # C1 alone; the step is 12 of computing and this


def test_exposed_and_computing_are_the_whole_step_of_every_gpu():
    def uneven(layer, batch):
        return Work(
            seconds={"attention": np.array([1.0, 4.0]), "expert": np.array([5.0, 0.5])},
            transfers={"dispatch": swap(2), "combine": swap(1)},
        )

    ops = program(*ONE_LAYER)
    ran = play_program(machine(2), fluid, ops, uneven)
    computing = (ran.end - ran.start)[[0, 2]].sum(axis=0)
    np.testing.assert_allclose(computing + exposed(ops, ran).sum(axis=0), ran.end.max(axis=0))


def test_sms_that_an_exchange_holds_slow_down_what_computes_meanwhile():
    # beside the 2 s of the exchange the 3 s of work go at half speed: 1 s of it is done by then, 2 s are left
    ops = program(("A", COMPUTE, "attention", 0, ()), ("D", COMMUNICATE, "dispatch", 0, "A"), ("O", COMPUTE, "expert", 0, ()))
    work = layer_work(1, 2, 3, 0, beside={"expert": np.full(2, 6.0)})
    ran = play_program(machine(2), fluid, ops, work)
    np.testing.assert_allclose(ran.end[2], 1 + 2 + 2)


def test_a_gpu_that_gets_nothing_goes_on_at_once_and_a_missing_sender_is_a_bug_that_is_seen():
    one_way = Work(
        seconds={"attention": np.zeros(2), "expert": np.ones(2)},
        transfers={"dispatch": independent(np.array([0]), np.array([1]), np.array([3 * GB])), "combine": swap(1)},
    )
    ran = play_program(machine(2), fluid, program(*ONE_LAYER), lambda layer, batch: one_way)
    np.testing.assert_allclose(ran.end[1], [0, 3])              # the sender's compute goes on at once
    np.testing.assert_allclose(ran.free[1], [3, 3])             # its communication stream is busy until all has left
    np.testing.assert_allclose(ran.start[3], [3, 4])


@pytest.mark.parametrize("n", [2, 8])
def test_at_most_five_events_per_gpu_and_operation(n):
    every = [(a, b) for a in range(n) for b in range(n) if a != b]
    src, dst = np.array(every).T
    sizes = np.random.default_rng(1).uniform(0.1, 1, len(every)) * GB
    work = Work(
        seconds={name: np.random.default_rng(2).uniform(1, 2, n) for name in ("attention", "expert")},
        transfers={name: independent(src, dst, sizes) for name in ("dispatch", "combine")},
    )
    ops = program(*ONE_LAYER)
    ran = play_program(machine(n), fluid, ops, lambda layer, batch: work)
    assert ran.events <= 5 * n * len(ops)
