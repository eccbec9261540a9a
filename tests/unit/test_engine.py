"""GPUs as processes: closed forms by hand on machines of a few GPUs whose ports carry 1 GB/s."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim import load_cluster
from clustersim.engine.exchanged import covered
from clustersim.engine.gpu import ATTENDED, BEGUN, COMBINED, COMPUTED, DISPATCHED, ENDED, LayerWork, play
from clustersim.network import bound, fluid
from clustersim.types import Transfers, independent

GB = 1e9
NETWORKS = pytest.mark.parametrize("network", [fluid, bound])


def machine(n, latency=0):
    """One node: every GPU has one port of 1 GB/s each way."""
    nvlink = {"bandwidth": "1 GB/s", "latency": latency}
    return load_cluster("ideal_rail", nodes=1, gpus_per_node=n, nvlink=nvlink, nic={"bandwidth": None})


def sends(n, *rows):
    """Transfers on n GPUs, rows of (from, to, seconds that the bytes take a port)."""
    src, dst, seconds = np.array(rows, float).reshape(-1, 3).T
    return independent(src.astype(int), dst.astype(int), seconds * GB)


def everyone(n, seconds):
    """Every GPU sends the same to every other."""
    return sends(n, *((a, b, seconds) for a in range(n) for b in range(n) if a != b))


def work(n, dispatch=None, combine=None, attention=0.0, expert=0.0, other=0.0):
    times = (np.broadcast_to(np.asarray(x, float), (n,)) for x in (attention, expert, other))
    return LayerWork(**dict(zip(("attention_s", "expert_s", "other_s"), times, strict=True)), dispatch=dispatch, combine=combine)


def played(n, *layers, network=fluid, latency=0):
    return play(machine(n, latency), network, len(layers), lambda layer: layers[layer])


# ---- one layer


@NETWORKS
def test_symmetric_load_adds_up(network):
    n = 4
    p = played(n, work(n, everyone(n, 1), everyone(n, 2), attention=0.5, expert=10, other=0.25), network=network)
    for mark, seconds in {BEGUN: 0, ATTENDED: 0.5, DISPATCHED: 3.5, COMPUTED: 13.5, COMBINED: 19.5, ENDED: 19.75}.items():
        np.testing.assert_allclose(p.marks[0, mark], seconds, rtol=1e-12)
    assert p.step_s == pytest.approx(19.75, rel=1e-12)
    for one, seconds in zip(p.exchanges[0], (3, 6), strict=True):
        np.testing.assert_allclose(one.busy_s, seconds)
        np.testing.assert_allclose(one.wait_s, 0, atol=1e-12)
        np.testing.assert_allclose([one.span_s, one.bound_s], seconds)
        np.testing.assert_allclose(one.sent, seconds * GB)
        np.testing.assert_allclose(one.received, seconds * GB)
        np.testing.assert_allclose(one.link_bytes, seconds * GB)


@NETWORKS
def test_latency_comes_on_top_of_the_bytes(network):
    p = played(2, work(2, everyone(2, 1), everyone(2, 1)), network=network, latency="250ms")
    np.testing.assert_allclose(p.marks[0, DISPATCHED], 1.25, rtol=1e-12)
    np.testing.assert_allclose(p.marks[0, COMBINED], 2.5, rtol=1e-12)


def test_a_slow_expert_delays_exactly_those_that_wait_for_it():
    """GPUs 0 and 1 exchange tokens, and so do 2 and 3; GPU 0 computes 7 s, the others 1 s."""
    pairs = [(0, 1, 1), (1, 0, 1), (2, 3, 1), (3, 2, 1)]
    p = played(4, work(4, sends(4, *pairs), sends(4, *pairs), expert=[7, 1, 1, 1]))
    np.testing.assert_allclose(p.marks[0, DISPATCHED], 1)
    np.testing.assert_allclose(p.marks[0, COMPUTED], [8, 2, 2, 2])
    np.testing.assert_allclose(p.marks[0, COMBINED], [8, 9, 3, 3])      # GPU 1's results came home while GPU 0 computed
    _, combine = p.exchanges[0]
    np.testing.assert_allclose(combine.wait_s, [0, 5, 0, 0])            # GPU 1: from 3, its own results sent, to 8
    np.testing.assert_allclose(combine.busy_s, [2, 2, 1, 1])


def test_bound_makes_everybody_leave_together():
    pairs = [(0, 1, 1), (1, 0, 1), (2, 3, 1), (3, 2, 1)]
    p = played(4, work(4, sends(4, *pairs), sends(4, *pairs), expert=[7, 1, 1, 1]), network=bound)
    np.testing.assert_allclose(p.marks[0, COMBINED], 9)


def test_waiting_by_hand_on_two_gpus():
    """GPU 0 is ready at 0 s, GPU 1 at 5 s. 0 -> 1 takes 1 s (0 to 1), 1 -> 0 takes 2 s (5 to 7)."""
    p = played(2, work(2, sends(2, (0, 1, 1), (1, 0, 2)), sends(2, (0, 1, 1)), attention=[0, 5]))
    np.testing.assert_allclose(p.marks[0, ATTENDED], [0, 5])
    np.testing.assert_allclose(p.marks[0, DISPATCHED], [7, 5])          # what GPU 1 waits for was there before it was
    dispatch, combine = p.exchanges[0]
    np.testing.assert_allclose(dispatch.wait_s, [4, 0])                 # GPU 0 from 1 to 5: nothing of its own moves
    np.testing.assert_allclose(dispatch.busy_s, [3, 3])
    assert dispatch.span_s == pytest.approx(7)
    assert dispatch.bound_s == pytest.approx(7)
    # GPU 1 is done computing at 5, but its communication stream sends until 7: it enters the combine then
    np.testing.assert_allclose(p.marks[0, COMBINED], [7, 8])
    np.testing.assert_allclose(combine.wait_s, 0)
    assert combine.span_s == pytest.approx(1)


def test_a_gpu_that_gets_nothing_does_not_wait():
    p = played(3, work(3, sends(3, (0, 1, 4)), sends(3, (1, 0, 4)), expert=1))
    np.testing.assert_allclose(p.marks[0, DISPATCHED], [0, 4, 0])
    np.testing.assert_allclose(p.marks[0, COMBINED], [9, 5, 1])
    assert p.step_s == pytest.approx(9)


@NETWORKS
def test_an_exchange_without_bytes_takes_no_time(network):
    p = played(3, work(3, sends(3), sends(3), attention=1, expert=2, other=3), network=network)
    np.testing.assert_allclose(p.marks[0, ENDED], 6)
    for one in p.exchanges[0]:
        assert one.span_s == one.bound_s == 0
        for values in (one.wait_s, one.busy_s, one.sent, one.received, one.link_bytes):
            assert values.dtype == np.float64
            assert not values.any()


def test_a_forwarded_transfer_starts_when_its_first_piece_is_there():
    """0 -> 1 -> 2, 10 s each, in pieces of 1 s: the second hop runs one piece behind the first."""
    chained = Transfers(
        src=np.array([0, 1]), dst=np.array([1, 2]), nbytes=np.full(2, 10 * GB), release=np.zeros(2), chunk=np.full(2, GB),
        after_start=np.array([0, 0, 1]), after=np.array([0]),
    )  # fmt: skip
    p = played(3, work(3, chained, sends(3)))
    np.testing.assert_allclose(p.marks[0, DISPATCHED], [0, 10, 11])
    np.testing.assert_allclose(p.exchanges[0][0].busy_s, [10, 11, 10])
    np.testing.assert_allclose(p.exchanges[0][0].wait_s, [0, 0, 1])


def test_what_a_gpu_forwards_after_it_has_gone_on_is_not_taken_off_its_waiting():
    """GPU 1 comes at 5 s and sends to GPU 0 until 6 s; only then does GPU 0 pass it on to GPU 2, until 10 s."""
    chained = Transfers(
        src=np.array([1, 0]), dst=np.array([0, 2]), nbytes=np.array([1, 4]) * GB, release=np.zeros(2),
        chunk=np.array([1, 4]) * GB,
        after_start=np.array([0, 0, 1]), after=np.array([0]),
    )  # fmt: skip
    p = played(3, work(3, chained, sends(3), attention=[0, 5, 0]))
    np.testing.assert_allclose(p.marks[0, DISPATCHED], [6, 5, 10])
    dispatch, _ = p.exchanges[0]
    np.testing.assert_allclose(dispatch.wait_s, [5, 0, 6])
    np.testing.assert_allclose(dispatch.busy_s, [5, 1, 4])


# ---- several layers


def test_a_dense_layer_is_compute_alone():
    p = played(2, work(2, attention=[1, 2], other=[3, 5]), work(2, everyone(2, 1), everyone(2, 1)))
    np.testing.assert_allclose(p.marks[0, ENDED], [4, 7])
    np.testing.assert_allclose(p.marks[0, ATTENDED], p.marks[0, COMBINED])
    assert p.exchanges[0] is None
    assert p.exchanges[1] is not None
    np.testing.assert_allclose(p.marks[1, DISPATCHED], [8, 7])          # 1 -> 0 from 7 to 8, 0 -> 1 from 4 to 5: no barrier
    only_dense = played(3, work(3, attention=1, other=2), work(3, attention=1, other=2))
    assert only_dense.step_s == 6
    assert only_dense.exchanges == [None, None]
    assert only_dense.solves == 0


def test_a_busy_communication_stream_holds_back_the_next_exchange():
    """GPU 0 gets nothing back and computes on, but sends its results until 10 s: its next dispatch begins then."""
    p = played(2, work(2, sends(2), sends(2, (0, 1, 10))), work(2, sends(2, (0, 1, 1)), sends(2), attention=2))
    np.testing.assert_allclose(p.marks[0, COMBINED], [0, 10])
    np.testing.assert_allclose(p.marks[1, ATTENDED], [2, 12])
    np.testing.assert_allclose(p.marks[1, DISPATCHED], [10, 12])        # GPU 1 would have its bytes at 11, and comes at 12
    dispatch, _ = p.exchanges[1]
    np.testing.assert_allclose(dispatch.busy_s, 1)
    np.testing.assert_allclose(dispatch.wait_s, 0)
    assert dispatch.span_s == pytest.approx(1)


def test_a_combine_waits_for_what_its_own_dispatch_still_sends():
    p = played(3, work(3, sends(3, (0, 1, 6), (0, 2, 6)), sends(3, (0, 2, 1)), expert=[1, 0, 0]))
    np.testing.assert_allclose(p.marks[0, COMPUTED], [1, 12, 12])
    np.testing.assert_allclose(p.marks[0, COMBINED], [12, 12, 13])


def test_work_is_asked_for_once_per_layer_and_progress_told_in_order():
    asked, told = [], []

    def work_of(layer):
        asked.append(layer)
        return work(4, everyone(4, 1), everyone(4, 1))

    play(machine(4), fluid, 5, work_of, told.append)
    assert asked == told == [0, 1, 2, 3, 4]


def test_a_gpu_that_waits_for_bytes_of_nobody_is_a_bug_that_is_seen():
    after_itself = Transfers(
        src=np.array([0, 1]), dst=np.array([1, 0]), nbytes=np.full(2, GB), release=np.zeros(2), chunk=np.full(2, 2 * GB),
        after_start=np.array([0, 1, 2]), after=np.array([1, 0]),
    )  # fmt: skip
    with pytest.raises(AssertionError):
        played(2, work(2, after_itself, sends(2)))


# ---- laws


seconds = st.integers(0, 6)


@st.composite
def passes(draw, n=4, most_layers=3):
    """Forward passes with whole seconds everywhere."""
    layers = []
    for _ in range(draw(st.integers(1, most_layers))):
        rows = []
        for _ in range(2):
            sizes = [(a, b, draw(seconds)) for a in range(n) for b in range(n) if a != b]
            rows.append(sends(n, *(row for row in sizes if row[2])))
        times = {name: draw(st.lists(seconds, min_size=n, max_size=n)) for name in ("attention", "expert", "other")}
        layers.append(work(n, *rows, **times))
    return layers


@settings(deadline=None, max_examples=40)
@given(passes())
def test_laws_13_and_29_nobody_goes_on_before_the_bytes_it_waits_for_nor_faster_than_it_computes(layers):
    p = played(4, *layers)
    for layer, marks in zip(layers, p.marks, strict=True):
        compute = layer.attention_s + layer.expert_s + layer.other_s
        assert (marks[ENDED] - marks[BEGUN] >= compute - 1e-9).all()
        for t, before, after in ((layer.dispatch, ATTENDED, DISPATCHED), (layer.combine, COMPUTED, COMBINED)):
            for src, dst, nbytes in zip(t.src, t.dst, t.nbytes, strict=True):
                assert marks[after, dst] >= marks[before, src] + nbytes / GB - 1e-9


@settings(deadline=None, max_examples=40)
@given(passes(most_layers=1), seconds, seconds)
def test_law_29_where_all_start_together_every_gpu_needs_its_own_path(layers, attention, expert):
    """Its attention, its own inbound bytes, its experts, what then comes home, and the rest."""
    (given_layer,) = layers
    layer = work(4, given_layer.dispatch, given_layer.combine, attention, expert, given_layer.other_s)
    p = played(4, layer)
    inbound = np.bincount(layer.dispatch.dst, layer.dispatch.nbytes / GB, 4)
    assert (p.marks[0, DISPATCHED] >= attention + inbound - 1e-9).all()
    assert (p.marks[0, COMPUTED] >= attention + inbound + expert - 1e-9).all()
    assert (p.marks[0, ENDED] >= attention + inbound + expert + layer.other_s - 1e-9).all()


@settings(deadline=None, max_examples=40)
@given(passes(), st.permutations(range(4)))
def test_law_31_nothing_depends_on_the_order_in_which_gpus_are_started(layers, order):
    """GPUs of one node are alike: with other numbers they do the same at the same times."""
    new = np.array(order)

    def renamed(layer):
        def moved(values):
            out = np.empty_like(values)
            out[new] = values
            return out

        exchanges = (independent(new[t.src], new[t.dst], t.nbytes) for t in (layer.dispatch, layer.combine))
        return work(4, *exchanges, moved(layer.attention_s), moved(layer.expert_s), moved(layer.other_s))

    here, there = played(4, *layers), played(4, *map(renamed, layers))
    np.testing.assert_allclose(there.marks[:, :, new], here.marks, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(passes())
def test_the_same_pass_twice_is_the_same_to_the_last_bit(layers):
    one, two = played(4, *layers), played(4, *layers)
    assert (one.marks == two.marks).all()
    assert (one.events, one.solves) == (two.events, two.solves)


@settings(deadline=None, max_examples=40)
@given(passes(), st.sampled_from([fluid, bound]))
def test_every_exchange_keeps_its_books(layers, network):
    p = played(4, *layers, network=network)
    for layer, marks, both in zip(layers, p.marks, p.exchanges, strict=True):
        for transfers, one, before, after in (
            (layer.dispatch, both[0], ATTENDED, DISPATCHED), (layer.combine, both[1], COMPUTED, COMBINED),
        ):  # fmt: skip
            assert one.sent.sum() == one.received.sum() == transfers.nbytes.sum()
            assert one.link_bytes.sum() == pytest.approx(2 * transfers.nbytes.sum())        # a port up and a port down
            assert one.span_s >= one.bound_s * (1 - 1e-9)
            assert (one.wait_s >= 0).all()
            assert (one.wait_s <= marks[after] - marks[before] + 1e-9).all()
            assert (one.busy_s <= one.span_s + 1e-9).all()


@pytest.mark.parametrize("n", [4, 16])
def test_at_most_five_events_per_gpu_and_exchange(n):
    """However many transfers there are; compute and the start of a process are beside it."""
    rng = np.random.default_rng(0)
    layers = 3

    def uneven():
        return sends(n, *((a, b, 1 + rng.random()) for a in range(n) for b in range(n) if a != b))

    p = played(n, *(work(n, uneven(), uneven(), attention=rng.random(n), expert=rng.random(n)) for _ in range(layers)))
    beside = n * (3 + 2 * layers)           # start, end and first free stream of a process; two computations per layer
    assert p.events <= 5 * n * 2 * layers + beside


# ---- the union of intervals


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(0, 20)), max_size=30), st.integers(-10, 10))
def test_covered_is_the_length_of_the_union(intervals, shift):
    owner, start, length = np.array(intervals, int).reshape(-1, 3).T
    expected = [
        sum(any(o == me and a <= t < a + d for o, a, d in intervals) for t in range(41)) for me in range(5)
    ]  # fmt: skip
    got = covered(owner, start + float(shift), start + length + float(shift), 5)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_covered_does_not_count_intervals_that_end_before_they_begin():
    np.testing.assert_array_equal(covered(np.array([0, 0]), np.array([5.0, 1.0]), np.array([3.0, 2.0]), 1), [1])
    np.testing.assert_array_equal(covered(np.array([0, 1]), np.array([1.0, 2.0]), np.array([4.0, 4.0]), 3), [3, 2, 0])


def test_covered_keeps_its_digits_with_many_owners():
    n = 2000
    start = np.tile([0.0, 1e-3], n)
    got = covered(np.repeat(np.arange(n), 2), start, start + 1e-6, n)
    np.testing.assert_allclose(got, 2e-6, rtol=1e-6)
