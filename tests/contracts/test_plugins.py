"""One contract for every placement and every exchange on offer, whoever wrote it."""

import inspect
import math
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from clustersim import exchange, placement
from clustersim.pick import find, pick
from clustersim.placement import replicas
from clustersim.placement.objective import Price
from clustersim.types import InputError, Routing
from clustersim.workload import sampler_popularity
from tests import placed

MODEL = SimpleNamespace(top_k=4, hidden=50, dispatch_token_bytes=100.0, combine_token_bytes=200.0)
CLUSTER = SimpleNamespace(
    n_gpus=12, n_nodes=3, gpus_per_node=4, node_of=np.arange(12) // 4, local_of=np.arange(12) % 4,
    gpu=SimpleNamespace(
        name="some GPU", sms=132, memory_bandwidth=3e12, memory_latency=377e-9, l2_bandwidth=None, fp4_flops=None
    ),
)
RACK = SimpleNamespace(
    **{**vars(CLUSTER), "n_nodes": 1, "gpus_per_node": 12, "node_of": np.zeros(12, int), "local_of": np.arange(12)}
)
INSIDE = {"trtllm_one_sided"}       # work inside one NVLink domain
IN_PIECES = [name for name in exchange.__all__ if "chunk_tokens" in inspect.signature(getattr(exchange, name)).parameters]
N_EXPERTS = 20


def routing(tokens_per_gpu=30, seed=0):
    """Uneven popularity, some choices missing, some dropped."""
    rng = np.random.default_rng(seed)
    tokens = tokens_per_gpu * CLUSTER.n_gpus
    asked = (rng.gumbel(size=(tokens, N_EXPERTS)) + rng.normal(size=N_EXPERTS)).argsort(axis=1)[:, :4]
    asked[rng.random(asked.shape) < 0.1] = -1
    return Routing(
        asked=asked, assigned=np.where(rng.random(asked.shape) < 0.2, -1, asked), weights=rng.random(asked.shape),
        source=np.repeat(np.arange(CLUSTER.n_gpus), tokens_per_gpu), index=np.tile(np.arange(tokens_per_gpu), CLUSTER.n_gpus),
        capacity=None,
    )


def direct_hops(home, gpus):
    """Copies of one token as (from, to), and which of them each follows: straight to every expert."""
    return [((home, gpu), None) for gpu in gpus if gpu != home]


def node_dedup_hops(home, gpus):
    """Copies of one token: once to every other node, then once to every GPU that is not the forwarder."""
    hops = []
    for node in {gpu // 4 for gpu in gpus}:
        forwarder = node * 4 + home % 4
        if forwarder != home:
            hops.append(((home, forwarder), None))
        for gpu in {gpu for gpu in gpus if gpu // 4 == node} - {forwarder}:
            hops.append(((forwarder, gpu), (home, forwarder) if forwarder != home else None))
    return hops


def rank_dedup_hops(home, gpus):
    return [((home, gpu), None) for gpu in set(gpus) - {home}]


def pxn_hops(home, gpus):
    """Copies of one token to each expert, over the own node's GPU that has the destination's place."""
    hops = []
    for gpu in gpus:
        relay = home // 4 * 4 + gpu % 4
        if relay != home:
            hops.append(((home, relay), None))
        if gpu // 4 != home // 4:
            hops.append(((relay, gpu), (home, relay) if relay != home else None))
    return hops


def allgather_hops(home, gpus):
    return node_dedup_hops(home, range(12))


def tensor_hops(home, gpus):
    """Groups of 2: to the one of the own parity, which hands on to the other; coupling is tested with the golden figures."""
    hops = []
    for gpu in gpus:
        first = gpu // 2 * 2 + home % 2
        if first != home:
            hops.append(((home, first), None))
        hops.append(((first, first ^ 1), None))
    return hops


ALIGNED = {"dispatch": 16 * math.ceil((100 + 8 + 32) / 16), "combine": 16 * math.ceil((200 + 8 + 16) / 16)}     # DeepEP's copies
PLAIN = {"dispatch": 100.0, "combine": 200.0}
TOKEN_BY_TOKEN = {      # name: hops of one token, bytes of a copy, options, and whether what follows what is told by the hops
    "direct": (direct_hops, PLAIN, {}, True), "pairwise": (direct_hops, PLAIN, {}, False),
    "nccl_alltoall": (direct_hops, {phase: 2 * size for phase, size in PLAIN.items()}, {}, True),      # small: a flag per word
    "node_dedup": (node_dedup_hops, PLAIN, {"metadata_bytes": 0}, True), "deepep_normal": (node_dedup_hops, ALIGNED, {}, True),
    "hybrid_ep": (node_dedup_hops, PLAIN, {}, True), "deepep_v2": (node_dedup_hops, ALIGNED, {}, True),
    "rank_dedup": (rank_dedup_hops, PLAIN, {}, True),
    "trtllm_one_sided": (rank_dedup_hops, {"dispatch": 132.0, "combine": 200.0}, {}, True),
    "deepep_low_latency": (direct_hops, {"dispatch": 116.0, "combine": 200.0}, {}, True),
    "deepep_low_latency_rdma": (direct_hops, {"dispatch": 116.0, "combine": 200.0}, {}, True),
    "allgather": (allgather_hops, PLAIN, {}, True), "tensor_expert": (tensor_hops, PLAIN, {}, False),
    "pxn": (pxn_hops, PLAIN, {}, None), "hierarchical_2d": (pxn_hops, PLAIN, {}, None),   # relays of the node that sends
}  # fmt: skip


# what a placement cannot do without, and slots that all of them can deal
NEEDS = {"shadow": {"hidden": 64}, "milp": {"time_limit": 0.5}, "local_search": {"moves": 500}, "annealing": {"moves": 500}}
EVEN = ("eplb", "eplb_global", "eplb_hierarchical", "eplb_vllm", "sglang_vec")
UNPRICED = Price(
    unit="node", route_start=np.zeros(145, int), route_links=np.zeros(0, int), route_weights=np.zeros(0),
    forwarder=np.arange(3)[None, :] * 4 + np.arange(12)[:, None] % 4, dispatch_s=np.ones(1), combine_s=np.ones(1),
    token_s=1.0, token_memory_s=0.0, slot_memory_s=0.0,
)


def made(name, slots, seed=0, n_experts=N_EXPERTS):
    """A placement of `slots` on the cluster of 3 nodes of 4, decided on random tokens; experts' time is all that it costs."""
    past = placed.tokens(n_experts, 12, per_gpu=8, price=lambda: UNPRICED)
    options = {"groups": 3} if name == "eplb_hierarchical" else NEEDS.get(name, {})
    return placed.place(name, n_experts, slots, 12, past=past, per_node=4, seed=seed, **options)


@pytest.mark.parametrize("name", sampler_popularity.__all__)
def test_every_family_of_popularity_gives_shares_that_its_parameter_makes_more_or_less_even(name):
    family = find(sampler_popularity, name, "popularity")
    cv = []
    for spread in (0.3, 3.0):
        shares = np.array([family(np.random.default_rng(seed), 48, spread) for seed in range(50)])
        assert shares.shape == (50, 48)
        assert (shares >= 0).all()
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        assert (shares[0] == family(np.random.default_rng(0), 48, spread)).all(), "not the same twice"
        assert (shares[0] != shares[1]).any()
        cv.append(shares.std(axis=1).mean())
    assert cv[0] > cv[1] if name == "dirichlet" else cv[1] > cv[0]


@pytest.mark.parametrize("name", placement.__all__)
def test_every_placement_keeps_the_placement_contract(name):
    for n_experts, slots in [(24, 24), (24, 36), (12, 48), (24, [3, 1, 2, 2, 2, 2, 4, 2, 2, 2, 2, 3])]:
        if name == "sglang_topology" and slots != n_experts:
            with pytest.raises(InputError, match=rf"sglang_topology has no replicas, so {n_experts} slots"):
                made(name, slots, n_experts=n_experts)
            continue
        if isinstance(slots, list) and name in EVEN:
            with pytest.raises(InputError, match=rf"placement\.slots: {name} deals every GPU the same .* 24 or 36 would do"):
                made(name, slots, n_experts=n_experts)
            continue
        if isinstance(slots, list) and name == "shadow":
            with pytest.raises(InputError, match=r"shadow .* needs 2 slots on every GPU"):
                made(name, slots, n_experts=n_experts)
            continue
        p = made(name, slots, n_experts=n_experts)
        of_each = placed.room(slots, 12).slots_of
        assert p.gpu_of.dtype == p.expert_of.dtype == np.int64
        assert p.gpu_of.shape == p.expert_of.shape == (of_each.sum(),)
        assert (np.bincount(p.gpu_of, minlength=12) == of_each).all(), "a GPU has more slots or fewer than it was given"
        assert (np.bincount(p.expert_of, minlength=n_experts) >= 1).all(), "an expert has no slot"
        assert p.expert_of.max() == n_experts - 1
        assert p.expert_of.min() == 0
        assert p.replica in replicas.__all__
        if name == "milp":
            continue            # what stands when its time is up depends on the machine
        again = made(name, slots, n_experts=n_experts)
        assert (p.gpu_of == again.gpu_of).all(), "the same seed gives the same placement"
        assert (p.expert_of == again.expert_of).all()
    with pytest.raises(InputError, match=r"placement\.slots=12: (fewer slots than the 24 .* at least 24 on|.* no replicas)"):
        made(name, 12, n_experts=24)


@pytest.mark.parametrize("name", placement.__all__)
def test_a_placement_that_needs_tokens_says_so_and_all_others_do_with_the_load(name):
    options = {"groups": 4} if name == "eplb_hierarchical" else NEEDS.get(name, {})
    if name in ("coactivation", "next_layer", "source_aware", "sglang_topology", "local_search", "annealing"):
        with pytest.raises(InputError, match=r"looks at tokens, and the load that it is to be decided on has counts only"):
            placed.place(name, 8, 8, 4, per_node=2, **options)
    else:
        assert placed.place(name, 8, 8, 4, per_node=2, **options).n_slots == 8


@pytest.mark.parametrize("name", [name for name in placement.__all__ if name != "sglang_topology"])
def test_every_placement_and_replica_rule_sends_a_choice_to_a_slot_that_holds_its_expert(name):
    r = routing()
    p = made(name, 36, n_experts=24)
    for rule in replicas.__all__:
        slots = pick(replicas, rule)(r.assigned, r.index, r.source, p, CLUSTER.node_of)
        assert slots.dtype == np.int64
        assert ((slots < 0) == (r.assigned < 0)).all()
        assert (p.expert_of[slots] == r.assigned)[slots >= 0].all()


@pytest.mark.parametrize("name", exchange.__all__)
@pytest.mark.parametrize("phase", ["dispatch", "combine"])
def test_every_exchange_keeps_the_transfers_contract(name, phase):
    r, p = routing(), placed.contiguous(N_EXPERTS, 24, CLUSTER.n_gpus)
    cluster = RACK if name in INSIDE else CLUSTER
    t = pick(exchange, name)(phase, r, p, cluster, MODEL)
    again = pick(exchange, name)(phase, r, p, cluster, MODEL)
    for column, dtype in {
        "src": np.int64, "dst": np.int64, "nbytes": np.float64, "release": np.float64,
        "chunk": np.float64, "after_start": np.int64, "after": np.int64,
    }.items():
        values = getattr(t, column)
        assert values.dtype == dtype
        assert values.size == (t.after_start[-1] if column == "after" else t.n + (column == "after_start"))
        assert (values == getattr(again, column)).all(), "not the same twice"
    assert (t.nbytes > 0).all()
    assert (t.src != t.dst).all()
    assert (t.release >= 0).all()
    assert t.after_start[0] == 0
    follower = np.repeat(np.arange(t.n), np.diff(t.after_start))
    assert (t.after < follower).all(), "a transfer comes before one that it follows"
    assert (t.dst[t.after] == t.src[follower]).all(), "a transfer starts where those that it follows end"
    assert (t.chunk[follower] > 0).all()


@pytest.mark.parametrize("name", IN_PIECES)
@pytest.mark.parametrize("chunk", [0, -1])
def test_no_exchange_moves_pieces_of_less_than_one_token(name, chunk):
    with pytest.raises(InputError, match=rf"exchange\.chunk_tokens={chunk}: at least one token moves at a time"):
        pick(exchange, name, chunk_tokens=chunk)("dispatch", routing(), placed.contiguous(N_EXPERTS, 24, 12), CLUSTER, MODEL)


@pytest.mark.parametrize("name", exchange.__all__)
@pytest.mark.parametrize("rule", replicas.__all__)
def test_every_exchange_sends_exactly_the_copies_that_following_each_token_finds(name, rule):
    assert name in TOKEN_BY_TOKEN, f"write down above which copies of one token {name} sends"
    cluster = RACK if name in INSIDE else CLUSTER
    r, p = routing(), placed.round_robin(N_EXPERTS, 36, cluster.n_gpus)
    slots = pick(replicas, rule)(r.assigned, r.index, r.source, p, cluster.node_of)
    p = type(p)(gpu_of=p.gpu_of, expert_of=p.expert_of, replica=rule)
    hops, sizes, options, told = TOKEN_BY_TOKEN[name]
    rows = zip(r.source.tolist(), slots.tolist(), strict=True)
    where = [(home, [int(p.gpu_of[s]) for s in row if s >= 0]) for home, row in rows]
    function = pick(exchange, name, **options)
    for phase in ("dispatch", "combine"):
        turn = phase == "combine" and told is not None          # seen as if on the way to the expert
        copies, followed = Counter(), defaultdict(set)
        for home, gpus in where:
            if told is None and phase == "combine":             # what sends is the expert's GPU
                paths = [hop for gpu in gpus for hop in hops(gpu, [home])]
            else:
                paths = hops(home, gpus)
            for hop, parent in paths:
                copies[hop] += 1
                if parent:
                    followed[hop].add(parent)
        t = function(phase, r, p, cluster, MODEL)
        src, dst = (t.dst, t.src) if turn else (t.src, t.dst)
        sent = Counter()
        for hop, nbytes in zip(zip(src.tolist(), dst.tolist(), strict=True), t.nbytes, strict=True):
            sent[hop] += nbytes / sizes[phase]
        assert sent == copies
        coupled = defaultdict(set)
        follower = np.repeat(np.arange(t.n), np.diff(t.after_start))
        for child, parent in zip(follower.tolist(), t.after.tolist(), strict=True):
            first, then = (child, parent) if turn else (parent, child)
            coupled[int(src[then]), int(dst[then])].add((int(src[first]), int(dst[first])))
        if name == "hierarchical_2d":       # all that comes to a relay, before anything leaves it
            assert all(coupled[hop] >= parents for hop, parents in followed.items())
        elif told is not False:
            assert coupled == followed
