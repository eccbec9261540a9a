"""What must hold of every router whatever the scores, and of every router with every capacity policy: exact, in integers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim.places import group_folder
from clustersim.workload import capacity_policies as policies
from clustersim.workload.routing import router_from
from tests.contests import assigned

N_EXPERTS, TOP_K, TOKENS = 16, 3, 32
MODEL = SimpleNamespace(name="toy", n_experts=N_EXPERTS, top_k=TOP_K, router={})
FILES = [path for path in sorted(group_folder("router").glob("*.yaml")) if path.stem not in ("recorded", "model")]
GROUPS = 8                      # of neighbours, in the routers that have any
NUMBERED = {"hash_table", "random", "round_robin", "swipe", "soft_moe"}         # go by an expert's number
DRAWN = {"noisy_top_k"}         # noise for a column stays with the column
relaxed = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)


def router_of(path: Path):
    options = yaml.safe_load(path.read_text())
    return router_from(options.pop("name"), options, MODEL)


def scores_for(router, rng, spread=1.0):
    shape = (TOKENS, N_EXPERTS + router.extra)
    return rng.gumbel(size=shape) + spread * rng.normal(size=shape[1])


def chosen(router, scores, seed, near=None, bias=None):
    everything = {
        "rng": np.random.default_rng(seed), "bias": bias, "token_ids": np.random.default_rng(seed).integers(0, 999, TOKENS),
        "layer": 0, "sequence": np.arange(TOKENS) // 16, "near": np.arange(N_EXPERTS) < 4 if near is None else near,
    }
    return router.function(scores, **{key: everything[key] for key in router.wants})


def loads(ids, source, n_gpus):
    flat = (source[:, None] * N_EXPERTS + ids)[ids >= 0]
    return np.bincount(flat, minlength=n_gpus * N_EXPERTS).reshape(n_gpus, N_EXPERTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@relaxed
@given(seed=seeds, spread=st.sampled_from([0.0, 1.0, 4.0]), room=st.integers(0, 12))
def test_laws_1_and_2_choices_are_conserved_under_every_policy_and_capacity_only_adds(path, seed, spread, room):
    router = router_of(path)
    ids, weights = chosen(router, scores_for(router, np.random.default_rng(seed), spread), seed)
    source = np.repeat([0, 1], TOKENS // 2)
    for name in sorted(set(policies.__all__) - {*policies.ELSEWHERE}):
        kept, more, enough = (
            assigned(name, ids, [c, c], weights=weights, source=source, n_experts=N_EXPERTS, rng=np.random.default_rng(seed))
            for c in (room, room + 1, TOKENS)
        )
        assert ((kept == ids) | (kept == -1)).all()
        assert (loads(kept, source, 2) == np.minimum(loads(ids, source, 2), room)).all()
        assert (kept >= 0).sum() + ((ids >= 0) & (kept < 0)).sum() == (ids >= 0).sum()
        assert ((kept == more) | (kept == -1)).all()
        assert (enough == ids).all()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@relaxed
@given(seed=seeds)
def test_law_3_a_token_never_holds_one_expert_twice(path, seed):
    router = router_of(path)
    ids, _ = chosen(router, np.round(scores_for(router, np.random.default_rng(seed))), seed)        # with ties
    for row in ids.tolist():
        real = [expert for expert in row if expert >= 0]
        assert len(set(real)) == len(real)


@pytest.mark.parametrize("path", [p for p in FILES if router_of(p).name not in NUMBERED | DRAWN], ids=lambda path: path.stem)
@relaxed
@given(seed=seeds)
def test_law_6_renaming_the_experts_renames_the_choices_and_changes_nothing_else(path, seed):
    """Groups are renamed as wholes and experts inside them; columns beside the experts keep their place."""
    router, rng = router_of(path), np.random.default_rng(seed)
    size = N_EXPERTS // GROUPS
    old = (rng.permutation(GROUPS)[:, None] * size + rng.permuted(np.tile(np.arange(size), (GROUPS, 1)), axis=1)).ravel()
    columns = np.append(old, np.arange(N_EXPERTS, N_EXPERTS + router.extra))        # new column i is old column columns[i]
    name = np.argsort(old)
    scores, near = scores_for(router, rng), rng.permutation(np.arange(N_EXPERTS) < 5)
    bias = rng.normal(size=columns.size) * 0.01
    ids, weights = chosen(router, scores, seed, near, bias)
    renamed, same = chosen(router, np.ascontiguousarray(scores[:, columns]), seed, near[old], bias[columns])
    assert (renamed == np.where(ids < 0, -1, name[ids])).all()
    np.testing.assert_allclose(same, weights, rtol=1e-9)
