"""A model that routes while it is played: choices and drops are those of the same model run in one go with the same drops."""

import numpy as np
import pytest

from clustersim.types import InputError
from clustersim.workload.source import uniform_blocks

torch = pytest.importorskip("torch")

from clustersim.capture.live import Live, _workload  # noqa: E402

LAYERS, EXPERTS, TOKENS = 3, 32, 128


def network(seed=0):
    """Layers of a router and a shift of the token by its experts, top-4 of 32: x + 0.5 sum of weight times expert's vector."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(LAYERS, 8, EXPERTS)), rng.normal(size=(LAYERS, EXPERTS, 8)), rng.normal(size=(5, TOKENS, 8))


def forward(block, limit, parts):
    routers, experts, words = parts
    x = words[block].copy()
    for layer in range(LAYERS):
        scores = x @ routers[layer]
        ids = np.argsort(-scores, axis=1)[:, :4]
        odds = np.exp(np.take_along_axis(scores, ids, 1) - scores.max(1, keepdims=True))
        weights = odds / odds.sum(1, keepdims=True)
        keep = limit(layer, ids, weights)
        kept = weights if keep is None else weights * keep
        x = x + 0.5 * (kept[:, :, None] * experts[layer][ids]).sum(1)
    return float((x**2).mean())


def half(ids):
    """What a capacity might leave: choices of experts of odd number are dropped."""
    return np.where(ids % 2, -1, ids)


def in_one_go(block, drops):
    """(ids of every layer, loss) of a pass that is never stopped."""
    seen = []

    def limit(layer, ids, weights):
        seen.append(ids)
        return (half(ids) >= 0) if drops else None

    loss = forward(block, limit, network())
    return seen, loss


def live(closed):
    parts = network()
    return Live(lambda block, limit: forward(block, limit, parts), LAYERS, closed=closed)


@pytest.mark.parametrize("closed", [True, False])
def test_layer_by_layer_is_the_pass_in_one_go(closed):
    """Five layers of the cluster's model are the three of the live one, and two of a second pass over other tokens."""
    model = live(closed)
    ids = []
    for layer in range(5):
        chosen = model.choose(layer)
        np.testing.assert_array_equal(chosen.ids, model.choose(layer).ids, err_msg="asking twice changes nothing")
        ids.append(chosen.ids)
        model.kept(layer, half(chosen.ids))
    first, loss = in_one_go(0, closed)
    second, _ = in_one_go(1, closed)
    for found, expected in zip(ids, [*first, *second[:2]], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert model.measure() == {"live_loss": loss}


def test_a_drop_changes_later_layers_in_a_closed_loop_only():
    dropped, plain = in_one_go(0, True)[0], in_one_go(0, False)[0]
    np.testing.assert_array_equal(dropped[0], plain[0])
    assert (dropped[1] != plain[1]).any()


def test_a_layer_that_was_passed_is_asked_for_by_running_again():
    model = live(closed=True)
    first = [model.choose(layer).ids for layer in range(LAYERS)]        # nobody says what was kept: all was
    np.testing.assert_array_equal(model.choose(0).ids, first[0])
    np.testing.assert_array_equal(model.choose(2).ids, first[2])
    np.testing.assert_array_equal(first[2], in_one_go(0, False)[0][2])


def test_an_error_in_the_model_reaches_whoever_waits():
    def breaks(block, limit):
        limit(0, np.zeros((2, 1), int), None)
        raise InputError("the model broke")

    model = Live(breaks, 2, closed=True)
    chosen = model.choose(0)
    with pytest.raises(InputError, match="the model broke"):
        model.kept(0, chosen.ids)


def test_a_choice_that_went_elsewhere_is_refused():
    model = live(closed=True)
    chosen = model.choose(0)
    with pytest.raises(InputError, match="went to another expert"):
        model.kept(0, (chosen.ids + 1) % EXPERTS)


def made(model, n_gpus, tokens_per_gpu, seed, *, loop="closed", sequence=16, steps=0, network=None, text=None):
    """A source as a user would name it: trace.source=tests.unit.test_live:made."""
    assert uniform_blocks(n_gpus, tokens_per_gpu, sequence)[0].size == TOKENS
    return _workload(live(loop == "closed"), LAYERS, model, n_gpus, tokens_per_gpu, sequence)


def run(*more):
    import clustersim as cs

    return cs.simulate([
        "trace=live", "trace.source=tests.unit.test_live:made", "trace.sequence=16", "topology.nodes=1", "network=bound",
        "exchange=direct", "workload.tokens_per_gpu=16", f"model.n_layers={LAYERS}", *more,
    ]).summary


def test_a_run_drops_inside_the_model_and_tells_both_losses():
    """Closed and open drop alike in the first layer, differ after it; without a limit both losses are that of no drop."""
    free = run()
    assert free["live_loss"] == free["live_loss_dropless"] == in_one_go(0, False)[1]
    closed, open_loop = (run("capacity.factor=0.5", f"trace.loop={loop}") for loop in ("closed", "open"))
    assert open_loop["live_loss"] == closed["live_loss_dropless"] == free["live_loss"]
    assert closed["live_loss"] != free["live_loss"]
    assert closed["drop_rate"] > 0
    assert closed["drop_rate"] != open_loop["drop_rate"]


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "GptOssForCausalLM", "DeepseekV3ForCausalLM"])
def test_a_hugging_face_model_is_live_with_its_drops_inside(name):
    """Kept all: the loss of the model alone. Dropped: the choices of the first layer as before, and another loss."""
    pytest.importorskip("transformers")
    from clustersim.capture.live import from_network
    from tests.hf_models import build

    network_, experts, top_k, layers = build(name)
    words = np.random.default_rng(0).integers(3, 97, 64)
    ids = torch.from_numpy(words.reshape(4, 16))
    with torch.no_grad():
        alone = float(network_(input_ids=ids, labels=ids).loss)

    class Needed:
        n_experts, n_moe_layers = experts, layers

    Needed.top_k, Needed.name = top_k, name
    played, free = from_network(network_, words, Needed, 2, 32, sequence=16), []
    for layer in range(layers):
        chosen = played.choose(layer)
        free.append(chosen.ids)
        played.kept(layer, chosen.ids)
    assert played.measure()["live_loss"] == pytest.approx(alone, rel=1e-6)
    changed = []
    for layer in range(layers):
        chosen = played.choose(layer)
        changed.append(chosen.ids)
        played.kept(layer, half(chosen.ids))
    np.testing.assert_array_equal(changed[0], free[0])
    assert played.measure()["live_loss"] != pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize(("more", "says"), [
    (["workload.steps=2"], "trace=live: plays one pass"),
    (["trace.source=tests.unit.test_live:absent"], "has no attribute 'absent'"),
    (["trace.loop=ajar", "trace.source=clustersim.capture.live:from_nowhere"], "has no attribute"),
    (["trace.source=clustersim.capture.live:small_model", "trace.text=x"], "trace.network, trace.text: are for"),
    (["trace.source=clustersim.capture.live:hf_model"], "needs both"),
])
def test_what_cannot_be_live_is_refused(more, says):
    with pytest.raises(InputError, match=says):
        run(*more)
