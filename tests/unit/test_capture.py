"""`capture tiny` trains a real model, routes held-out text and records what the router did; a few steps suffice to see it."""

import builtins
from dataclasses import replace

import numpy as np
import pytest

from clustersim.capture import tiny
from clustersim.capture.text import DOMAINS, END, UNKNOWN, VOCABULARY, load_corpus
from clustersim.capture.tiny import capture_tiny
from clustersim.types import InputError
from clustersim.workload.trace import read_trace

STEPS, SEQUENCES, LENGTH = 3, 36, 16


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(seed=0, sequences=20, length=LENGTH, train_tokens=20_000)


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """(summary, trace, what the progress callback heard) of a run on the CPU."""
    pytest.importorskip("torch")
    heard = []
    folder = tmp_path_factory.mktemp("captured")
    summary = capture_tiny(
        folder, device="cpu", steps=STEPS, sequences=SEQUENCES, length=LENGTH, scores=True,
        progress=lambda fraction, message: heard.append((fraction, message)),
    )
    return summary, read_trace(folder), heard


def test_the_two_domains_are_parted_by_document(corpus):
    """No held-out sequence can be found in what was trained on: whole documents are held out, and quotes of them are cut."""
    for domain in DOMAINS:
        held, text = corpus.held_out[domain], corpus.train[domain]
        assert held.shape == (20, LENGTH)
        assert text.size >= 20_000
        windows = np.lib.stride_tricks.sliding_window_view(text, LENGTH)
        quoted = sum((windows == sequence).all(1).any() for sequence in held)
        assert quoted == 0, f"{quoted} held-out sequences of {domain} were trained on"
        assert len(corpus.documents[domain]) == 20
        assert max(corpus.documents[domain].count(name) for name in corpus.documents[domain]) <= 8


def test_a_vocabulary_has_each_token_once_and_spells_nearly_everything(corpus):
    assert len(corpus.vocabulary) == VOCABULARY == len(set(corpus.vocabulary))
    for domain in DOMAINS:
        tokens = corpus.train[domain]
        assert tokens.min() >= 0
        assert tokens.max() < VOCABULARY
        assert (tokens == UNKNOWN).mean() < 1e-3
        text = "".join(corpus.vocabulary[t] for t in corpus.held_out[domain].ravel() if t > END)
        assert len(text) > 1.5 * corpus.held_out[domain].size, "tokens are pieces of words, not letters"


def test_the_corpus_depends_on_its_seed_alone(corpus):
    again = load_corpus(seed=0, sequences=20, length=LENGTH, train_tokens=20_000)
    other = load_corpus(seed=1, sequences=20, length=LENGTH, train_tokens=20_000)
    for domain in DOMAINS:
        np.testing.assert_array_equal(again.held_out[domain], corpus.held_out[domain])
        np.testing.assert_array_equal(again.train[domain], corpus.train[domain])
        assert other.documents[domain] != corpus.documents[domain]


def test_more_text_than_there_is_is_refused():
    with pytest.raises(InputError, match="sequences=100000: this Python carries too little code"):
        load_corpus(seed=0, sequences=100_000, length=128, train_tokens=1)


def test_every_held_out_token_is_recorded_once_in_blocks_of_one_domain(captured):
    """36 sequences are 18 of code, then 18 of prose; a pass takes 16 of one domain: 16, 2, 16, 2."""
    _, trace, _ = captured
    assert trace.expert_ids.shape == trace.gate_weights.shape == (SEQUENCES * LENGTH, 6, 4)
    np.testing.assert_array_equal(trace.seq, np.repeat(np.arange(SEQUENCES), LENGTH))
    np.testing.assert_array_equal(trace.pos, np.tile(np.arange(LENGTH), SEQUENCES))
    assert np.bincount(trace.step).tolist() == [16 * LENGTH, 2 * LENGTH] * 2
    assert trace.domain == {i: "code" if i < 18 else "prose" for i in range(SEQUENCES)}
    assert not trace.phase.any()
    assert not trace.rank.any()


def test_the_experts_are_the_best_by_score_and_the_weights_their_softmax(captured):
    """float16 keeps 11 bits: four weights sum to 1 within 4 * 2^-12 and differ from the softmax by 2^-12 relative, plus
    what rounding moves the logits, 2^-12 of at most |logit|."""
    _, trace, _ = captured
    assert trace.n_experts == 32
    assert trace.scores.shape == (SEQUENCES * LENGTH, 6, 32)
    chosen = np.take_along_axis(trace.scores, trace.expert_ids.astype(int), axis=2)
    assert (np.diff(chosen, axis=2) <= 0).all(), "slots stand by descending score"
    best = np.sort(trace.scores, axis=2)[:, :, :-5:-1]
    np.testing.assert_array_equal(chosen, best)
    np.testing.assert_allclose(trace.gate_weights.sum(2), 1, atol=4 * 2**-12)
    softmax = np.exp(chosen - chosen.max(2, keepdims=True))
    softmax /= softmax.sum(2, keepdims=True)
    np.testing.assert_allclose(trace.gate_weights, softmax, rtol=2**-11 * (1 + np.abs(chosen).max()))


def test_the_metadata_says_where_the_trace_comes_from(captured):
    import torch

    summary, trace, _ = captured
    assert summary["tokens"] == trace.n_tokens == SEQUENCES * LENGTH
    for part in ("training", "shape", "text", "made_with"):
        assert trace.meta[part] == summary[part]
    assert summary["made_with"]["torch"] == torch.__version__
    assert summary["made_with"]["device"] == "cpu"
    assert summary["training"]["tokens"] == STEPS * 16 * LENGTH
    assert trace.meta["num_experts"] == 32
    assert set(summary["training"]["held_out_loss_nats"]) == set(DOMAINS)


def test_an_untrained_model_knows_nothing_and_a_trained_one_something(captured):
    """Before training all tokens are about as likely, log(1024) = 6.93 nats; the balance loss starts near 1 per layer."""
    summary, _, _ = captured
    assert abs(summary["training"]["loss_nats_first"] - np.log(VOCABULARY)) < 0.3
    assert max(summary["training"]["held_out_loss_nats"].values()) < summary["training"]["loss_nats_first"]


def test_progress_goes_from_nothing_to_all_and_names_each_step(captured):
    _, _, heard = captured
    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert sum(f"of {STEPS}, loss" in message for _, message in heard) == STEPS


def test_the_same_seed_writes_the_same_bytes_and_scores_only_on_request(captured, tmp_path):
    pytest.importorskip("torch")
    _, trace, _ = captured
    for name in "ab":
        capture_tiny(tmp_path / name, device="cpu", steps=STEPS, sequences=SEQUENCES, length=LENGTH)
    assert (tmp_path / "a" / "tokens.parquet").read_bytes() == (tmp_path / "b" / "tokens.parquet").read_bytes()
    again = read_trace(tmp_path / "a")
    assert again.scores is None
    np.testing.assert_array_equal(again.expert_ids, trace.expert_ids)
    capture_tiny(tmp_path / "c", device="cpu", steps=STEPS, sequences=SEQUENCES, length=LENGTH, seed=1)
    assert (read_trace(tmp_path / "c").expert_ids != trace.expert_ids).any()


def test_the_settings_of_torch_are_left_as_they_were(tmp_path):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()
    capture_tiny(tmp_path, device="cpu", steps=1, sequences=2, length=4)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state().tolist()) == before


def test_the_expert_loop_equals_every_expert_on_every_token():
    """The plain definition: sum over the chosen experts of weight times expert(token); float32 sums of 8 and 16 terms."""
    torch = pytest.importorskip("torch")
    from clustersim.capture import model

    draw = torch.Generator().manual_seed(0)
    x, router = torch.randn(40, 8, generator=draw), torch.randn(8, 6, generator=draw)
    up, down = torch.randn(6, 8, 16, generator=draw), torch.randn(6, 16, 8, generator=draw)
    shape = model.Shape(vocabulary=4, length=4, n_experts=6, top_k=2)
    routed = model._route(router, shape, x)
    everything = torch.einsum("tef,efd->ted", torch.nn.functional.silu(torch.einsum("td,edf->tef", x, up)), down)
    expected = sum(routed.weights[:, [j]] * everything[torch.arange(40), routed.experts[:, j]] for j in range(2))
    torch.testing.assert_close(model._experts(up, down, x, routed), expected, rtol=1e-4, atol=1e-4)


def test_balance_costs_one_per_layer_when_even_and_the_number_of_experts_when_one_takes_all():
    torch = pytest.importorskip("torch")
    from clustersim.capture import model

    even = model.Routed(logits=torch.zeros(8, 4), experts=torch.arange(8)[:, None] % 4, weights=torch.ones(8, 1))
    one = replace(even, logits=torch.tensor([100.0, 0, 0, 0]).expand(8, 4), experts=torch.zeros(8, 1, dtype=torch.long))
    assert float(model.balance_loss([even], 4)) == pytest.approx(1)
    assert float(model.balance_loss([even, one], 4)) == pytest.approx(1 + 4)


def test_a_token_does_not_see_what_comes_after_it():
    torch = pytest.importorskip("torch")
    from clustersim.capture import model

    shape = model.Shape(vocabulary=50, length=12)
    parameters = model.initial_parameters(shape, torch.device("cpu"), 0)
    tokens = np.random.default_rng(0).integers(0, 50, (1, 12))
    changed = tokens.copy()
    changed[0, 8:] = (changed[0, 8:] + 1) % 50
    (a, _), (b, _) = model.route(parameters, shape, tokens), model.route(parameters, shape, changed)
    np.testing.assert_allclose(a["logits"][:8], b["logits"][:8], rtol=1e-4, atol=1e-5)
    assert (a["logits"][8:] != b["logits"][8:]).any()


@pytest.mark.parametrize(("arguments", "says"), [
    ({"steps": 0}, "steps=0: must be at least 1"),
    ({"sequences": 3}, "sequences=3: must be even"),
    ({"sequences": 0}, "sequences=0: must be at least 2"),
    ({"length": 1}, "length=1: must be at least 2"),
    ({"seed": -1}, "seed=-1: must be at least 0"),
])
def test_a_number_out_of_range_is_refused_before_anything_is_done(tmp_path, arguments, says):
    with pytest.raises(InputError, match=says):
        capture_tiny(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: is a file; a trace is a folder"):
        capture_tiny(tmp_path / "out")


def test_a_device_that_is_not_there_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    absent = ["warp"] + ["cuda"] * (not torch.cuda.is_available())
    for name in absent:
        with pytest.raises(InputError, match=f"device={name}: torch cannot use it") as refused:
            capture_tiny(tmp_path, device=name)
        assert "\n" not in str(refused.value)


def test_auto_is_the_gpu_when_there_is_one():
    torch = pytest.importorskip("torch")
    assert tiny._device(torch, "auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_without_torch_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"pip install 'clustersim\[capture\]'"):
        capture_tiny(tmp_path)
