"""Packets: what follows what, the network on the event loop, states cut and put together again, what is refused."""

import random
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim import exchange as exchanges
from clustersim import load_cluster, simulate, transfer
from clustersim.engine.gpu import DISPATCHED, LayerWork, play
from clustersim.exchange import node_dedup
from clustersim.exchange.software import equipped
from clustersim.lanes import routes_of
from clustersim.network import fluid, packet, packet_records, packets
from clustersim.network.bounds import busiest_link_end
from clustersim.types import InputError, Placement, Routes, Routing, Transfers, independent
from tests.packet_systems import ends, played, run_until, small_system, waiting, weighted

QUEUES = pytest.mark.parametrize("queue", packets.QUEUES)


def with_latency(rng, system):
    """The same system with latencies of up to two packets, and what follows what."""
    n = len(system["routes"])
    after = [rng.sample(range(i), rng.randint(0, min(i, 2))) if rng.random() < 0.5 else [] for i in range(n)]
    return system | {
        "latency": [rng.choice([0, 0, rng.randint(1, 512)]) for _ in system["capacity"]],
        "after": after,
        "piece": [rng.choice([b, b / 2, b / 8, 300]) for b in system["nbytes"]],
    }


# ---- conservation


@QUEUES
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1 << 20))
def test_bytes_sent_are_bytes_received_queues_keep_within_credits_and_no_link_is_overbusy(queue, seed):
    """Watched at many instants: what has crossed a hop never exceeds what crossed the one before, nor trails it by more than the
    credits and what is on the link; in the end every link has carried its bytes x weights, and was busy for that / capacity."""
    rng = random.Random(seed)
    system = with_latency(rng, weighted(rng, small_system(rng, most_flows=8, forward=True)))
    release = np.array(system.pop("release"), float)
    state = waiting(**system, chunk=500.0, queue=queue)
    packets.enter(state, np.arange(release.size), release)
    flows, hops, now = state.flows, state.hops, 0.0
    inner = np.setdiff1d(np.arange(hops.size), flows["hop_end"] - 1)           # hops that another one of the flow comes after
    while now < np.inf:
        now = packets.run(state, now)
        packets.take_ended(state)
        ahead = hops["sent"][inner] - hops["sent"][inner + 1]
        assert (ahead >= 0).all()
        assert (flows["landed"] <= hops["sent"][flows["hop_end"] - 1]).all()
        assert (hops["sent"][flows["hop_start"]] <= flows["allowed"]).all()
        assert (flows["allowed"] <= flows["packets"]).all()
        if queue == "round_robin":
            assert (ahead <= hops["window"][inner] + 1).all(), "its credits, and the packet that is leaving the queue beyond"
        else:
            assert (state.links["queued"] <= state.links["places"]).all()
    load = np.zeros(len(system["capacity"]))
    for route, weights, nbytes in zip(system["routes"], system["weights"], system["nbytes"], strict=True):
        load[route] += nbytes * np.array(weights)
    assert (flows["landed"] == flows["packets"]).all()
    np.testing.assert_allclose(state.links["carried"], load, rtol=1e-12)
    np.testing.assert_allclose(state.links["busy"], load / system["capacity"], rtol=1e-9)
    assert (state.links["busy"] <= state.links["free_at"] * (1 + 1e-9)).all()
    assert packets.solves(state) == flows["packets"] @ (flows["hop_end"] - flows["hop_start"])


@QUEUES
def test_the_same_flows_twice_are_the_same_to_the_last_bit(queue):
    for seed in range(20):
        rng = random.Random(seed)
        system = with_latency(rng, small_system(rng, forward=True))
        one, two = (played(**system, chunk=500.0, queue=queue) for _ in range(2))
        assert (one.flows == two.flows).all()
        assert (one.links == two.links).all()


@QUEUES
def test_no_exchange_beats_its_busiest_link_whatever_the_latencies(queue):
    """Latency passes hop by hop: a link's first flow may have little of it before the link, and its last flow little behind."""
    for seed in range(60):
        rng = random.Random(seed)
        system = small_system(rng, forward=True)
        system = weighted(rng, system) if seed % 2 else system | {"weights": [[1] * len(route) for route in system["routes"]]}
        latency = np.array([rng.randint(0, 40_000) for _ in system["capacity"]], float)
        finish = ends(**system, latency=latency, chunk=256.0, queue=queue)
        pairs = list(zip(system["routes"], system["weights"], strict=True))
        routes = Routes(
            start=np.cumsum([0, *map(len, system["routes"])]), links=np.concatenate(system["routes"]),
            weights=np.concatenate(system["weights"]).astype(float), latency=np.array([latency[r] @ w for r, w in pairs]),
        )  # fmt: skip
        sizes, release = (np.array(system[key], float) for key in ("nbytes", "release"))
        bound, _ = busiest_link_end(np.array(system["capacity"], float), routes, sizes, release, latency)
        assert finish.max() >= bound * (1 - 1e-12)


def test_a_bound_that_adds_whole_latencies_could_be_beaten():
    """A: 10 s of latency after the shared link 1; B: 10 s before it. A's bytes cross link 1 from 0 to 1/2 s, B's from 10 s on:
    both are there at 10.501 s. One second of bytes on link 1 and then 10 s of latency would be 11 s."""
    capacity, latency = np.array([500.0, 1.0, 500.0]), np.array([10.0, 0.0, 10.0])
    routes = Routes(start=np.array([0, 2, 4]), links=np.array([1, 2, 0, 1]), weights=np.ones(4), latency=np.full(2, 10.0))
    finish = ends(capacity, [[1, 2], [0, 1]], [0.5, 0.5], chunk=0.5, latency=latency)
    np.testing.assert_allclose(finish, [10.501, 10.501])
    together, _ = busiest_link_end(capacity, routes, np.full(2, 0.5), np.zeros(2))
    by_hop, _ = busiest_link_end(capacity, routes, np.full(2, 0.5), np.zeros(2), latency)
    assert together == 11.0
    assert by_hop == 10.001, "link 0, and link 2 likewise: 1 ms of bytes and 10 s"


# ---- what follows what


@pytest.mark.parametrize("pieces", [1, 2, 8, 100])
def test_a_fast_second_hop_ends_one_piece_after_the_first(pieces):
    """100 bytes at 10 B/s, then at 50 B/s, pieces and packets of 100/m: the last piece leaves at 10 s and takes 2/m s."""
    p = 100 / pieces
    np.testing.assert_allclose(
        ends([10, 50], [[0], [1]], [100, 100], chunk=p, after=[[], [0]], piece=[p, p]), [10, 10 + 2 / pieces], rtol=1e-9
    )


def test_latency_of_the_first_hop_passes_before_the_second_begins():
    """1 s of it: the last of ten pieces lands at 11 s and takes 0.2 s, and 3 s of latency, from there."""
    end = ends([10, 50], [[0], [1]], [100, 100], chunk=10.0, latency=[1, 3], after=[[], [0]], piece=[10, 10])
    np.testing.assert_allclose(end, [11, 14.2], rtol=1e-12)


def test_packets_of_a_piece_leave_together():
    """Pieces of 40 bytes, packets of 10: at 10 B/s pieces land at 4, 8, 10 s; the follower sends 4, 4 and 2 packets of 0.2 s
    from there. In pieces as large as all of it, it waits for the end."""
    state = waiting([10, 50], [[0], [1]], [100, 100], chunk=10.0, after=[[], [0]], piece=[40, 40])
    packets.enter(state, np.arange(2), np.zeros(2))
    sent = []
    for now in (3.9, 4.1, 4.9, 8.1, 8.9, 10.1, 11.0):
        run_until(state, now)
        sent.append(int(state.hops["sent"][1]))
    assert sent == [0, 1, 4, 5, 8, 9, 10]
    barrier = played([10, 50], [[0], [1]], [100, 100], chunk=10.0, after=[[], [0]], piece=[100, 100])
    np.testing.assert_allclose(barrier.flows["start"], [0, 10])
    np.testing.assert_allclose(packets.finish(barrier), [10, 12])


def test_the_slowest_of_several_parents_counts_and_hops_are_coupled_by_fractions():
    """Parents of 100 bytes end at 10, 5 and 2 s; the follower of 50 bytes sends 5 for every tenth of the slowest: 10.05 s."""
    end = ends(
        [10, 20, 50, 100], [[0], [1], [2], [3]], [100, 100, 100, 50], chunk=5.0, after=[[], [], [], [0, 1, 2]], piece=[5] * 4
    )
    np.testing.assert_allclose(end, [10, 5, 2, 10.05], rtol=1e-9)


def test_a_source_that_enters_late_finds_what_has_landed():
    state = played([10, 50], [[0], [1]], [100, 100], [0, 6], chunk=10.0, after=[[], [0]], piece=[10, 10])
    np.testing.assert_allclose(state.flows["start"], [0, 6])
    np.testing.assert_allclose(packets.finish(state), [10, 10.2])


@QUEUES
def test_a_follower_is_never_ahead_of_what_it_follows(queue):
    """Fraction that has left <= fraction of every parent that has landed, whatever pieces and packets are."""
    for seed in range(60):
        rng = random.Random(seed)
        system = with_latency(rng, small_system(rng, forward=True))
        release = np.array(system.pop("release"), float)
        state = waiting(**system, chunk=700.0, queue=queue)
        packets.enter(state, np.arange(release.size), release)
        flows, now = state.flows, 0.0
        while now < np.inf:
            now = packets.run(state, now)
            packets.take_ended(state)
            left = np.minimum(1, state.hops["sent"][flows["hop_start"]] * 700.0 / flows["nbytes"])
            landed = np.minimum(1, flows["landed"] * 700.0 / flows["nbytes"])
            for child, parents in enumerate(system["after"]):
                assert all(left[child] <= landed[parent] + 1e-9 for parent in parents), (seed, child)
        assert (flows["status"] == packet_records.DONE).all()


# ---- two hops coupled by chunks, against the fluid network


def two_hops(cluster, seed, phase):
    """A node_dedup exchange with uneven experts, in chunks of 16 tokens of 7,168 (dispatch) or 14,336 bytes."""
    rng = np.random.default_rng(seed)
    n, tokens = cluster.n_gpus, int(rng.choice([16, 40, 100, 400]))
    asked = (rng.gumbel(size=(tokens * n, 8)) + rng.normal(size=8)).argsort(axis=1)[:, :2]
    routing = Routing(
        asked=asked, assigned=asked, weights=None, source=np.repeat(np.arange(n), tokens),
        index=np.tile(np.arange(tokens), n), capacity=None,
    )  # fmt: skip
    model = SimpleNamespace(top_k=2, dispatch_token_bytes=7168.0, combine_token_bytes=14336.0)
    placement = Placement(gpu_of=np.arange(8) // 2, expert_of=np.arange(8))
    return node_dedup(phase, routing, placement, cluster, model, metadata_bytes=0)


def finish_on_loop(cluster, transfers, network, enter):
    env = simpy.Environment()
    exchange = network(env, cluster).exchange(transfers)
    for gpu, at in enumerate(enter):
        env.timeout(at).callbacks.append(lambda _, gpu=gpu: exchange.enter(gpu))
    env.run()
    return exchange.finish


@pytest.mark.parametrize("phase", ["dispatch", "combine"])
@pytest.mark.parametrize("topology", ["ideal_rail", "h100_sxm"])
def test_two_hops_coupled_by_chunks_end_within_one_chunk_time_of_the_fluid_ones(topology, phase):
    """2 nodes of 2 GPUs. The chunk time is that of 16 tokens on a NIC, the slowest link. In packets of half a chunk a transfer is
    stored once on its NIC way and once on its NVLink way: half a chunk time, and a ninth of that. Waiting for the packets of
    others in turn is within what is left.

    With latency, one thing more: where the forwarder comes late, the first hop's latency is over by then, and the fluid network
    still adds it. So a transfer may end that much sooner, and no exchange ends later."""
    cluster = load_cluster(topology, nodes=2, gpus_per_node=2)
    first_hop = cluster.latency[[link.kind.startswith("nic") for link in cluster.links]][0] * 2
    for seed in range(25):
        transfers = two_hops(cluster, seed, phase)
        rng = np.random.default_rng(seed)
        enter = rng.choice([0, 1], 4) * rng.exponential(20e-6, 4)
        chunk = float(transfers.chunk[0])
        chunk_time = chunk / cluster.capacity.min()
        smooth = finish_on_loop(cluster, transfers, fluid, enter)
        packed = finish_on_loop(cluster, transfers, partial(packet, chunk=chunk / 2), enter)
        assert (packed - smooth <= chunk_time).all()
        assert (packed - smooth >= -chunk_time - first_hop).all()
        assert abs(packed.max() - smooth.max()) <= chunk_time


# ---- lanes and sprayed routes, against the fluid network


@pytest.mark.parametrize("phase", ["dispatch", "combine"])
@pytest.mark.parametrize("name", ["deepep_normal", "deepep_low_latency", "deepep_low_latency_rdma", "nccl_alltoall"])
def test_exchanges_whose_sms_copy_end_within_packets_of_the_fluid_ones(name, phase):
    """2 nodes of 2 GPUs; SMs and the issue of messages are lanes with a weight per transfer. In packets of 4 KiB a GPU may be
    2 (CREDITS + 1) rounds off on each link of its ways, a round being a packet of everyone who crosses it; with two hops, and a
    piece of 16 tokens between them, each of both."""
    machine = load_cluster("h100_sxm", nodes=2, gpus_per_node=2)
    cluster = equipped(name, {}, machine)
    assert len(cluster.links) > machine.n_wires, "it has lanes"
    rng, tokens, n = np.random.default_rng(3), 256, 4
    asked = (rng.gumbel(size=(tokens * n, 8)) + rng.normal(size=8)).argsort(axis=1)[:, :2]
    routing = Routing(
        asked=asked, assigned=asked, weights=None, source=np.repeat(np.arange(n), tokens),
        index=np.tile(np.arange(tokens), n), capacity=None,
    )  # fmt: skip
    model = SimpleNamespace(top_k=2, hidden=7168, dispatch_token_bytes=7168.0, combine_token_bytes=14336.0)
    placement = Placement(gpu_of=np.arange(8) // 2, expert_of=np.arange(8))
    transfers = getattr(exchanges, name)(phase, routing, placement, cluster, model)
    smooth = finish_on_loop(cluster, transfers, fluid, np.zeros(n))
    packed = finish_on_loop(cluster, transfers, partial(packet, chunk="4KiB"), np.zeros(n))
    routes = routes_of(cluster, transfers)
    each_round = np.bincount(routes.links, routes.weights, cluster.capacity.size) * 4096 / cluster.capacity
    longest = max(each_round[routes.links[a:b]].sum() for a, b in pairwise(routes.start))
    piece = (transfers.chunk * 2 / cluster.capacity[:machine.n_wires].min()).max() if transfers.after.size else 0.0
    hops = 2 if transfers.after.size else 1
    assert abs(packed.max() - smooth.max()) <= hops * 2 * (packets.CREDITS + 1) * longest + piece
    assert packed.max() == pytest.approx(smooth.max(), rel=0.05)


@pytest.mark.parametrize(("latency", "near"), [("0s", 0.015), ("2us", 0.04)])
def test_sprayed_routes_approach_the_fluid_ones(latency, near):
    """Two leaves under two spines, every pair over both: half of each packet over each. With latency less near, as what fits into
    its credits does not feel what is ahead of it."""
    cluster = load_cluster(
        "ideal_rail", nodes=4, gpus_per_node=2, routing={"name": "spray"}, nic={"latency": latency, "rails": False},
        fabric={"name": "leaf_spine", "spines": 2, "nodes_per_leaf": 2},
    )  # fmt: skip
    rng = np.random.default_rng(5)
    nbytes = rng.lognormal(13, 1, (8, 8)) * ~np.eye(8, dtype=bool)
    routes = cluster.routes(*np.nonzero(nbytes))
    assert (routes.weights == 0.5).any()
    smooth = transfer(cluster, nbytes)
    gaps = []
    for kib in (64, 16, 4, 1):
        packed = transfer(cluster, nbytes, network="packet", chunk=kib * 1024.0)
        gaps.append(np.nanmax(np.abs(packed.finish - smooth.finish)) / smooth.makespan)
        assert packed.makespan >= packed.bound * (1 - 1e-12)
        np.testing.assert_allclose(packed.link_bytes, smooth.link_bytes)
    assert gaps[-1] < near
    assert gaps == sorted(gaps, reverse=True)
    assert packed.makespan == pytest.approx(smooth.makespan, rel=1e-3)


# ---- on the event loop


def everyone(n, nbytes, rng):
    src, dst = np.nonzero(~np.eye(n, dtype=bool))
    return independent(src, dst, nbytes * (1 + rng.random(src.size)))


def played_layers(cluster, network, layers, seed=0):
    rng = np.random.default_rng(seed)
    n = cluster.n_gpus
    works = [
        LayerWork(
            attention_s=rng.exponential(5e-6, n), expert_s=rng.exponential(5e-6, n), other_s=np.zeros(n),
            dispatch=everyone(n, 1e5, rng), combine=everyone(n, 1e5, rng),
        )
        for _ in range(layers)
    ]  # fmt: skip
    return play(cluster, network, layers, lambda layer: works[layer])


@QUEUES
@pytest.mark.parametrize("chunk", [1e6, 4096.0])
@pytest.mark.parametrize("n", [4, 16])
def test_at_most_five_events_per_gpu_and_exchange_and_none_per_packet(n, chunk, queue):
    """Compute and the start of a process are beside it."""
    layers = 3
    p = played_layers(load_cluster("h100_sxm", nodes=2, gpus_per_node=n // 2), partial(packet, chunk=chunk, queue=queue), layers)
    beside = n * (3 + 2 * layers)
    assert p.solves >= 2 * 2 * layers * n * (n - 1), "every transfer is at least a packet, on two links"
    assert p.events <= 5 * n * 2 * layers + beside


@QUEUES
def test_layers_that_overlap_are_played_as_if_they_were_one_system(queue):
    """On the loop exchanges come and go, and flows that are through are forgotten on the way. Played afterwards as one system of
    flows, each released when its source entered, all of them end at the same times."""
    cluster = load_cluster("h100_sxm", nodes=2, gpus_per_node=3)
    rng = np.random.default_rng(3)
    env = simpy.Environment()
    network = packet(env, cluster, chunk=20_000.0, queue=queue)
    exchanges = [network.exchange(everyone(6, 2e5, rng)) for _ in range(4)]
    enter = np.cumsum(rng.exponential(8e-6, (4, 6)), axis=0)
    for exchange, at in zip(exchanges, enter, strict=True):
        for gpu in range(6):
            env.timeout(at[gpu]).callbacks.append(lambda _, gpu=gpu, exchange=exchange: exchange.enter(gpu))
    env.run()
    finish = np.concatenate([exchange.finish for exchange in exchanges])
    assert max(e.finish.min() for e in exchanges) < max(e.finish.max() for e in exchanges)
    assert any(a.finish.max() > b.entered.min() for a, b in pairwise(exchanges)), "they overlap"
    transfers = exchanges[0].transfers
    routes = cluster.routes(transfers.src, transfers.dst)
    rows = [list(routes.links[a:b]) for a, b in pairwise(routes.start)]
    expected = ends(
        cluster.capacity, rows * 4, np.concatenate([e.transfers.nbytes for e in exchanges]),
        np.concatenate([e.entered[e.transfers.src] for e in exchanges]), chunk=20_000.0, latency=cluster.latency, queue=queue,
    )  # fmt: skip
    np.testing.assert_allclose(finish, expected, rtol=1e-9)


def test_gpus_go_on_at_the_landing_and_send_again_when_the_last_byte_has_left():
    """Two GPUs, one node. 0 sends 4 packets of 1 s to 1 over two links with 0.25 s of latency each: they leave 0 by 4 s, and have
    landed at 4 + 0.25 + 1 + 0.25 s."""
    nvlink = {"bandwidth": "1 GB/s", "latency": "500ms"}
    cluster = load_cluster("ideal_rail", nodes=1, gpus_per_node=2, nvlink=nvlink, nic={"bandwidth": None})
    env = simpy.Environment()
    exchange = packet(env, cluster, chunk="1 GB").exchange(independent(np.array([0]), np.array([1]), np.array([4e9])))
    heard = {}
    for gpu in (0, 1):
        exchange.enter(gpu).callbacks.append(lambda _, gpu=gpu: heard.setdefault(("arrived", gpu), env.now))
        exchange.done[gpu].callbacks.append(lambda _, gpu=gpu: heard.setdefault(("done", gpu), env.now))
    env.run()
    assert heard == {("arrived", 0): 0, ("done", 0): 4.0, ("arrived", 1): 5.5, ("done", 1): 5.5}


def test_the_engine_goes_on_when_packets_have_landed():
    cluster = load_cluster("h100_sxm", nodes=2, gpus_per_node=2)
    smooth, packed = (played_layers(cluster, network, 2) for network in (fluid, partial(packet, chunk=1000.0)))
    np.testing.assert_allclose(packed.marks[:, DISPATCHED], smooth.marks[:, DISPATCHED], rtol=0.02)
    assert packed.step_s != smooth.step_s


def test_a_run_in_packets_says_what_it_is_and_is_near_the_fluid_one():
    packed = simulate(["network=packet", "network.chunk=256KiB", "topology.nodes=2"])
    assert any("256KiB packets" in note and "served in turn" in note for note in packed.notes)
    smooth = simulate(["topology.nodes=2"])
    assert packed.summary["step_s"] == pytest.approx(smooth.summary["step_s"], rel=0.15)
    assert packed.summary["nic_bytes"] == smooth.summary["nic_bytes"]
    assert packed.run_id != smooth.run_id


def test_a_run_whose_sms_copy_is_played_in_packets_too():
    ask = ["exchange=deepep_normal", "topology.nodes=2"]
    packed, smooth = (simulate([*ask, *network]) for network in (["network=packet", "network.chunk=16KiB"], []))
    assert packed.summary["step_s"] == pytest.approx(smooth.summary["step_s"], rel=0.01)
    lanes = [run.tables["links"].filter(pl.col("kind") == "sm_send") for run in (packed, smooth)]
    np.testing.assert_allclose(*(table["dispatch_bytes"].to_numpy() for table in lanes), rtol=1e-9)


def test_a_run_of_too_many_packets_is_refused_in_its_first_layer():
    with pytest.raises(InputError, match=r"network\.chunk=1B: the run sends"):
        simulate(["network=packet", "network.chunk=1B", "topology.nodes=2"])


# ---- states that are cut and put together


@QUEUES
def test_forgetting_what_has_landed_changes_nothing(queue):
    """At many instants, with packets and credits on the way: the state is reduced to the flows that have not landed, and
    ends to the last bit as one that was left alone."""
    for seed in range(40):
        rng = random.Random(seed)
        system = with_latency(rng, small_system(rng, forward=True))
        system = weighted(rng, system) if seed % 2 else system
        release = np.array(system.pop("release"), float)
        alone, cut = (waiting(**system, chunk=500.0, queue=queue) for _ in range(2))
        for state in (alone, cut):
            packets.enter(state, np.arange(release.size), release)
        while packets.run(alone, np.inf) < np.inf:
            packets.take_ended(alone)
        number, finish, dropped = np.arange(release.size), np.full(release.size, np.nan), 0
        for now in [*np.linspace(0, float(packets.finish(alone).max()), 25), np.inf]:
            while packets.run(cut, now) <= min(now, 1e300):
                packets.take_ended(cut)
            through = packets.drained(cut)
            finish[number[through]] = packets.finish(cut)[through]
            stay = np.setdiff1d(np.arange(number.size), through)
            dropped += through.size * (stay.size > 0)
            cut, number = packets.keep(cut, stay, np.arange(cut.counters.size)), number[stay]
        assert (finish == packets.finish(alone)).all(), seed
        assert dropped or release.size < 3
        assert (cut.links["carried"] == alone.links["carried"]).all()


# ---- what is refused


def two_nodes():
    nbytes = np.zeros((4, 4))
    nbytes[0, 2] = 1e6
    return load_cluster("ideal_rail", nodes=2, gpus_per_node=2), nbytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunk": 0}, r"network\.chunk=0: must be above 0"),
        ({"chunk": -5.0}, r"network\.chunk=-5\.0: must be above 0"),
        ({"chunk": float("nan")}, r"network\.chunk=nan"),
        ({"chunk": "64 Kib"}, r"network\.chunk"),
        ({"queue": "lifo"}, r"network\.queue=lifo: must be round_robin or fifo; did you mean fifo\?"),
        ({"chunk": 1e-4}, r"network\.chunk=0\.0001B: the run sends 2\.0e\+10 packets over links, and may send 1e\+09"),
        ({"resolution": 0.1}, r"resolution"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(options, said):
    cluster, nbytes = two_nodes()
    with pytest.raises(InputError, match=said) as refused:
        transfer(cluster, nbytes, network="packet", **options)
    assert "\n" not in str(refused.value)


def test_fifo_queues_in_a_circle_are_found_to_wait_for_themselves():
    """Three links in a ring, three flows over two of them each: every queue fills with packets that want the next one."""
    ring = ([1, 1, 1], [[0, 1], [1, 2], [2, 0]], [100] * 3)
    with pytest.raises(InputError, match=r"network\.queue=fifo: .* circle"):
        ends(*ring, chunk=1.0, queue="fifo")
    np.testing.assert_allclose(ends(*ring, chunk=1.0), 200, atol=6)             # round robin: each has half of two links


def test_a_run_with_too_many_packets_is_refused_before_it_begins():
    """1e6 bytes over two links in packets of 1 byte, 600 times."""
    cluster, _ = two_nodes()
    one = independent(np.array([0]), np.array([2]), np.array([1e6]))
    assert packets.packet_hops(cluster, [one, one], "1 kB") == 4000
    packets.need_few(cluster, [one], 500, 1.0)
    with pytest.raises(InputError, match=r"network\.chunk=1B: the run sends 1\.2e\+09"):
        packets.need_few(cluster, [one], 600, 1.0)


def test_exchanges_are_counted_together():
    """A state refuses what makes all of its flows too many, those long through included."""
    state = packets.empty(np.ones(1), np.zeros(1), 1.0)
    routes = Routes(start=np.array([0, 1]), links=np.array([0]), weights=np.ones(1), latency=np.zeros(1))
    zero = np.zeros(1, np.int64)
    flow = Transfers(
        src=zero, dst=zero, nbytes=np.array([0.6e9]), release=np.zeros(1), chunk=np.array([0.6e9]),
        after_start=np.zeros(2, np.int64), after=np.zeros(0, np.int64),
    )  # fmt: skip
    state = packets.extend(state, routes, flow, inbox=zero, outbox=zero, n_counters=1)
    with pytest.raises(InputError, match=r"1\.2e\+09"):
        packets.extend(state, routes, flow, inbox=zero, outbox=zero, n_counters=1)


def test_an_exchange_without_bytes_takes_no_time():
    cluster, nbytes = two_nodes()
    empty = transfer(cluster, np.zeros_like(nbytes), network="packet")
    assert empty.makespan == 0
    assert np.isnan(empty.finish).all()
    own = transfer(cluster, np.diag([1.0, 0, 0, 5]), network="packet", release=2.0)
    assert own.makespan == 2.0
