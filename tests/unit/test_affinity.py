"""Placements that look at who goes where with whom: vectors with a known optimum, and what each is for, by hand."""

import numpy as np
import pytest

from clustersim.placement.past import Past
from clustersim.placement.replicas import nearest
from clustersim.types import InputError
from tests.placed import load_alone, loads, place, tokens

# eight tokens of two choices: 0 and 2 go together, and 1 and 3
PAIRS = np.array([[0, 2], [0, 2], [0, 1], [1, 3], [1, 3], [2, 3], [0, 2], [1, 3]])
# ten tokens through two layers, an expert each: those of 0 and 1 go on to 2 and 3, and the other way around
PATHS = np.array([[0, 2], [0, 2], [0, 3], [1, 2], [1, 3], [2, 0], [2, 0], [3, 1], [3, 1], [3, 0]])


def past_of(asked, n_experts, source=None):
    n = len(asked)
    load = np.bincount(asked[asked >= 0], minlength=n_experts).astype(float)[None]
    source = np.zeros(n, np.int64) if source is None else source
    return Past(load=load, asked=asked, source=source, index=np.arange(n), step=np.zeros(n, np.int64))


def copies(asked, p):
    """Copies of all tokens, one to each GPU that holds one of a token's experts."""
    return sum(len(set(row)) for row in p.gpu_of[np.argsort(p.expert_of)][asked].tolist())


def test_experts_that_are_chosen_together_share_a_gpu():
    """14 copies with neighbours on a GPU, 10 with the pairs that go together."""
    past = past_of(PAIRS, 4)
    assert past.together("coactivation").tolist() == [[0, 1, 3, 0], [1, 0, 0, 3], [3, 0, 0, 1], [0, 3, 1, 0]]
    assert copies(PAIRS, place("contiguous", 4, 4, 2)) == 14
    assert copies(PAIRS, place("coactivation", 4, 4, 2, past=past, level="gpu")) == 10
    by_node = place("coactivation", 4, 4, 2, past=past, per_node=1)
    assert copies(PAIRS, by_node) == 10, "a node of one GPU is that GPU"


def test_togetherness_does_not_go_above_the_slack_of_a_nodes_load():
    """Loads 8, 7, 6, 5; 0 and 1 begin. 2 always goes with 0, and both make 14 where the mean is 13."""
    asked = np.array([[0, 2]] * 6 + [[0, 3]] * 2 + [[1, -1]] * 7 + [[3, -1]] * 3)
    for slack, beside in ((0.0, 1), (0.1, 0)):
        p = place("coactivation", 4, 4, 2, past=past_of(asked, 4), per_node=1, slack=slack)
        gpu = p.gpu_of[np.argsort(p.expert_of)]
        assert gpu[2] == gpu[beside]


def test_the_next_layer_stands_where_its_tokens_come_from():
    """Ten crossings with both layers contiguous, none at best: what follows 0 and 1 stands on their GPU."""
    before, now = PATHS[:, :1], PATHS[:, 1:]
    first = place("next_layer", 4, 4, 2, past=past_of(before, 4))
    assert first.expert_of.tolist() == [0, 1, 2, 3]
    past = past_of(now, 4)
    second = place("next_layer", 4, 4, 2, past=Past(**{**fields(past), "before": (before, first)}))

    def crossings(a, b):
        where = [p.gpu_of[np.argsort(p.expert_of)] for p in (a, b)]
        return int((where[0][before] != where[1][now]).sum())

    assert crossings(first, first) == 10
    assert crossings(first, second) == 0


def test_the_next_layer_stands_on_the_node_that_its_tokens_come_from_where_their_gpu_is_full():
    """Two nodes of two GPUs. The 9 and 8 tokens of experts 0 and 1 were on GPU 0 before: 0 stays there and 1 goes to GPU 1, worth
    13.5 + 4, though 4 tokens of expert 3 come from GPU 1, where it would be worth 6; 2 come from GPU 2, worth 3.
    """
    before = np.repeat([0, 0, 1, 2], [9, 8, 4, 2])[:, None]
    now = np.repeat([0, 1, 3, 3], [9, 8, 4, 2])[:, None]
    first = place("next_layer", 4, 4, 4, past=past_of(before, 4), per_node=2)
    past = past_of(now, 4)
    second = place("next_layer", 4, 4, 4, past=Past(**{**fields(past), "before": (before, first)}), per_node=2)
    gpu = second.gpu_of[np.argsort(second.expert_of)]
    assert (gpu[0], gpu[1], gpu[3]) == (0, 1, 2)


def fields(past):
    return {name: getattr(past, name) for name in past.__dataclass_fields__}


def test_without_regard_to_load_experts_stand_where_their_tokens_start():
    """The tokens of expert e start on GPU e // 2 but for one; with much regard to load the two busiest experts part."""
    asked = np.repeat([0, 1, 2, 3, 4, 5, 6, 7], [9, 8, 3, 3, 3, 3, 3, 3])[:, None]
    past = past_of(asked, 8, source=asked[:, 0] // 2)
    near = place("source_aware", 8, 8, 4, past=past, per_node=2, balance=0.0)
    assert near.gpu_of[np.argsort(near.expert_of)].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    even = place("source_aware", 8, 8, 4, past=past, per_node=2, balance=100.0)
    gpu = even.gpu_of[np.argsort(even.expert_of)]
    assert gpu[0] != gpu[1]


def test_islands_hold_every_expert_each_so_that_a_token_leaves_its_node_once_at_most():
    """Four nodes of two GPUs with slots for 16 experts twice: two islands of two nodes; four with slots for them four times."""
    past = tokens(16, 8, top_k=4)
    for slots, islands in ((32, 2), (64, 4), (16, 1)):
        p = place("islands", 16, slots, 8, past=past, per_node=2)
        island = p.gpu_of // 2 // (4 // islands)
        assert all(set(p.expert_of[island == i].tolist()) == set(range(16)) for i in range(islands))
        node_of = np.arange(8) // 2
        went = node_of[p.gpu_of[nearest(past.asked, past.index, past.source, p, node_of)]]
        away = [len(set(row) - {home}) for row, home in zip(went.tolist(), node_of[past.source].tolist(), strict=True)]
        assert max(away) <= 4 // islands - 1
    assert place("islands", 16, 32, 8, per_node=2).n_slots == 32, "the load alone will do"


def test_replicas_stand_on_different_nodes_under_topology_greedy_and_on_different_gpus_under_lpt():
    load = load_alone(np.array([8.0, 8, 8, 8, 1, 1, 1, 1]))
    by_node = place("topology_greedy", 8, 12, 4, past=load, per_node=2)
    by_gpu = place("lpt", 8, 12, 4, past=load, per_node=2)
    for expert in range(4):
        assert np.unique(by_node.gpu_of[by_node.expert_of == expert] // 2).size == 2
        assert np.unique(by_gpu.gpu_of[by_gpu.expert_of == expert]).size == 2
    assert loads(load.total, by_gpu, 4).tolist() == [9.0] * 4


def test_lpt_deals_uneven_slots():
    load = load_alone(np.array([4.0, 3, 2, 1]))
    p = place("lpt", 4, [3, 1], 2, past=load)
    assert p.expert_of[p.gpu_of == 1].tolist() == [1], "the heaviest goes to the first of two empty GPUs, the next to the other"
    assert sorted(p.expert_of[p.gpu_of == 0].tolist()) == [0, 2, 3]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("coactivation", {"level": "rack"}, r"placement\.level=rack: must be node or gpu"),
        ("coactivation", {"slack": -0.1}, r"placement\.slack=-0\.1: must be a number from 0 up"),
        ("islands", {"slack": -0.1}, r"placement\.slack=-0\.1"),
        ("source_aware", {"balance": -1.0}, r"placement\.balance=-1\.0"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, said):
    with pytest.raises(InputError, match=said):
        place(name, 4, 4, 2, past=past_of(PAIRS, 4), **options)


