"""Captured ids are what the model's experts were given, in every class of model; a capture that is replayed sends the same bytes.

Models are tiny, with random weights, built from configs (tests/hf_models.py); transformers is needed for those.
"""

import json

import numpy as np
import pytest

from clustersim.types import InputError
from clustersim.workload.trace import read_trace
from tests.hf_models import CASES, build

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inputs(name, rows=2, length=7, seed=1):
    """Two sequences, the first with two tokens of padding on its left."""
    rng = np.random.default_rng(seed)
    ids, mask = torch.from_numpy(rng.integers(3, 97, (rows, length))), torch.ones(rows, length, dtype=torch.long)
    mask[0, :2] = 0
    more = {"decoder_input_ids": ids[:, :4]} if "Switch" in name else {}
    return {"input_ids": ids, "attention_mask": mask, **more}


def given_to_experts(model, run):
    """What the modules that hold experts are called with while `run` runs: name -> the index tensor among the arguments."""
    found, handles = {}, []

    def watch(name):
        def hook(module, arguments, keywords):
            whole = [a for a in (*arguments, *keywords.values()) if isinstance(a, torch.Tensor) and not a.is_floating_point()]
            if whole:
                found[name] = whole[0].detach().clone()

        return hook

    for name, module in model.named_modules():
        if type(module).__name__.endswith("Experts"):
            handles.append(module.register_forward_pre_hook(watch(name), with_kwargs=True))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", CASES)
def test_ids_are_the_routers_own_and_what_the_experts_were_given(name):
    """Where the experts module takes indices, against these; Llama 4's takes tokens scaled by the scores, and is compared with
    those that are not 0; Switch's takes a one-hot mask."""
    pytest.importorskip("transformers")
    from clustersim.capture.recording import record

    model, experts, top_k, layers = build(name)
    returned = {}
    with record(model, scores=True) as recording:
        handles = [
            site.module.register_forward_hook(lambda m, a, out, name=site.name: returned.__setitem__(name, out))
            for site in recording.sites
        ]
        given = given_to_experts(model, lambda: model(**inputs(name)))
    for handle in handles:
        handle.remove()
    trace = recording.trace()
    assert (trace.n_experts, trace.top_k, trace.n_layers) == (experts, top_k, layers)
    assert trace.gate_weights is not None
    keep = inputs(name)["attention_mask"].ravel().numpy() > 0
    for layer, site in enumerate(recording.sites):
        own = trace.expert_ids[:, layer]
        own = own[(own >= 0).any(1)]
        output = returned[site.name]
        if "Switch" in name:
            mask = output[0].flatten(0, -2).numpy()
            expected = np.where(mask.any(1), mask.argmax(1), -1)[keep if "encoder" in site.name else slice(None)]
            np.testing.assert_array_equal(own[:, 0], expected[expected >= 0])
        elif "Llama4" in name:
            np.testing.assert_array_equal(own[:, 0], output[0].detach().numpy()[keep].argmax(1))
            assert ((output[0] != 0).sum(1) == 1).all()
        else:
            expected = next(t for t in output if not t.is_floating_point()).numpy()[keep]
            np.testing.assert_array_equal(own, expected)
            block = site.name.rpartition(".")[0]
            at = [value for key, value in given.items() if key.startswith(block)]
            assert at, "the experts were called"
            np.testing.assert_array_equal(own, at[0].reshape(-1, top_k).numpy()[keep])
    if "Switch" not in name:
        assert trace.pos.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]
        assert trace.seq.tolist() == [0] * 5 + [1] * 7


def test_generated_tokens_are_decoding_of_the_same_sequences():
    pytest.importorskip("transformers")
    from clustersim.capture.recording import record

    model, *_ = build("MixtralForCausalLM")
    with torch.no_grad(), record(model) as recording:
        model.generate(**inputs("Mixtral"), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    trace = recording.trace()
    assert trace.phase.tolist() == [0] * 12 + [1] * 4, "the last token was never fed back"
    assert trace.seq[12:].tolist() == [0, 1, 0, 1]
    assert trace.pos[12:].tolist() == [5, 7, 6, 8]
    assert trace.step[12:].tolist() == [1, 1, 2, 2]


def test_recording_changes_neither_outputs_nor_gradients_and_goes_away():
    pytest.importorskip("transformers")
    from clustersim.capture.recording import record

    model, *_ = build("OlmoeForCausalLM")
    model.train()
    given = inputs("Olmoe")

    def step():
        model.zero_grad()
        loss = model(**given, labels=given["input_ids"]).loss
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    loss, gradients = step()
    with record(model) as recording:
        again, same = step()
    assert loss == again
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=0, atol=0)
    assert set(recording.trace().phase.tolist()) == {2}
    passes = len(recording.parts)
    step()
    assert len(recording.parts) == passes, "no hook is left behind"


class Router(torch.nn.Module):
    """Somebody's own: returns (indices, weights)."""

    def __init__(self, hidden, experts, k):
        super().__init__()
        self.weight, self.k = torch.nn.Parameter(torch.randn(experts, hidden)), k

    def forward(self, x):
        best, chosen = (x @ self.weight.T).topk(self.k)
        return chosen, best.softmax(-1)


class Own(torch.nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.blocks = torch.nn.ModuleList(torch.nn.ModuleDict({"pick": Router(8, 6, 2)}) for _ in range(layers))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            chosen, weight = block["pick"](x)
            x = x + 0.1 * (weight * chosen).sum(-1, keepdim=True)
        return x


def test_any_module_with_a_router_is_recorded_in_any_loop():
    from clustersim.capture.recording import record

    torch.manual_seed(0)
    model = Own().eval()
    with record(model, meta={"model": "own"}) as recording:
        for _ in range(3):
            model(torch.randint(0, 50, (2, 5)))
    trace = recording.trace()
    assert trace.expert_ids.shape == (30, 2, 2)
    assert trace.seq.tolist() == np.repeat(np.arange(6), 5).tolist()
    assert trace.meta["model"] == "own"
    with record(model, routers=["blocks.1.pick"]) as recording:
        model(torch.zeros(1, 3, dtype=torch.long))
    assert recording.trace().n_layers == 1
    with pytest.raises(InputError, match="no such module"), record(model, routers=["blocks.7.pick"]):
        pass
    with pytest.raises(InputError, match="Linear: no router found"), record(torch.nn.Linear(2, 2)):
        pass


def test_a_capture_that_is_replayed_sends_what_the_live_router_sends(tmp_path):
    """Bit for bit: the byte matrices of every layer from the ids that the router returned, and from the trace on disk."""
    from clustersim.capture.recording import record
    from clustersim.exchange.counted import traffic_of
    from clustersim.types import Placement

    class Machine:
        n_gpus, n_nodes, gpus_per_node = 4, 2, 2
        node_of, local_of = np.arange(4) // 2, np.arange(4) % 2

    torch.manual_seed(1)
    model, live = Own(3).eval(), []
    with record(model) as recording:
        handles = [site.module.register_forward_hook(lambda m, a, out: live.append(out[0])) for site in recording.sites]
        model(torch.randint(0, 50, (8, 16)))
    for handle in handles:
        handle.remove()
    recording.save(tmp_path)
    placement = Placement(gpu_of=np.array([0, 1, 2, 3, 0, 1]), expert_of=np.arange(6))
    sent = traffic_of(tmp_path, lambda rank, first: (first + np.arange(rank.size)) // 32, placement, Machine)
    for layer, ids in enumerate(live):
        expected = np.zeros((4, 4))
        for token, row in enumerate(ids.flatten(0, 1).tolist()):
            for expert in row:
                expected[token // 32, expert % 4] += 14336.0
        np.fill_diagonal(expected, 0)
        np.testing.assert_array_equal(sent.matrix(layer, 14336.0), expected)


def stored(tmp_path, name="OlmoeForCausalLM"):
    pytest.importorskip("transformers")
    model, *_ = build(name)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text("one and two and three and four, " * 6)
    (tmp_path / "b.txt").write_text("five. " * 20)
    return str(tmp_path / "model"), [tmp_path / "a.txt", tmp_path / "b.txt"]


def test_text_goes_through_a_stored_model_batch_by_batch_and_resumes(tmp_path, monkeypatch):
    from clustersim.capture import huggingface

    model, texts = stored(tmp_path)
    options = {"tokenizer": "bytes", "length": 32, "batch": 3, "scores": True, "device": "cpu"}
    facts = huggingface.capture_hf(model, texts, tmp_path / "whole", **options)
    whole = read_trace(tmp_path / "whole")
    assert facts["tokens"] == whole.n_tokens == 192 + 120
    assert whole.domain == {i: "a" if i < 6 else "b" for i in range(10)}
    assert whole.token_id.tolist() == [3 + b % 94 for text in texts for b in text.read_bytes()]
    chosen = np.take_along_axis(whole.scores, whole.expert_ids.astype(int), axis=2)
    np.testing.assert_allclose(chosen, -np.sort(-whole.scores, axis=2)[:, :, :2], rtol=2e-3, atol=2e-3)

    real, calls = huggingface._routed, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(huggingface, "_routed", stops)
    with pytest.raises(KeyboardInterrupt):
        huggingface.capture_hf(model, texts, tmp_path / "cut", **options)
    with pytest.raises(InputError, match="holds batches of a capture with other settings"):
        huggingface.capture_hf(model, texts, tmp_path / "cut", **options | {"batch": 2})
    monkeypatch.setattr(huggingface, "_routed", real)
    assert huggingface.capture_hf(model, texts, tmp_path / "cut", **options)["resumed"] == 2
    again = read_trace(tmp_path / "cut")
    np.testing.assert_array_equal(again.expert_ids, whole.expert_ids)
    assert not (tmp_path / "cut" / ".parts").exists()


@pytest.mark.parametrize(("change", "says"), [
    ({"batch": 0}, "batch=0: must be at least 1"), ({"tokenizer": None}, "no tokens in the text|no tokenizer for"),
    ({"texts": ["absent.txt"]}, "--text absent.txt: cannot be read"), ({"device": "warp"}, "device=warp: torch cannot use it"),
    ({"dtype": "float7"}, "dtype=float7: must be auto"), ({"model": "no/where/at/all"}, "transformers cannot load it"),
    ({"texts": []}, "needs text; give --text FILE"),
])
def test_what_cannot_be_captured_is_refused_in_one_line(tmp_path, change, says):
    from clustersim.capture.huggingface import capture_hf

    model, texts = stored(tmp_path)
    given = {"model": model, "texts": texts, "out": tmp_path / "out", "tokenizer": "bytes", "device": "cpu"} | change
    with pytest.raises(InputError, match=says) as refused:
        capture_hf(given.pop("model"), given.pop("texts"), given.pop("out"), **given)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "tokens.parquet").exists()


def test_a_module_without_experts_names_what_it_lacks(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing known"}))
    pytest.importorskip("transformers")
    from clustersim.capture.huggingface import capture_hf

    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="transformers cannot load it"):
        capture_hf(str(tmp_path), [tmp_path / "a.txt"], tmp_path / "out")
