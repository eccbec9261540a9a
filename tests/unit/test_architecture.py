"""Models as data: each kind of part written out, what follows for the whole, and every way in which a file can be wrong."""

import copy
from pathlib import Path

import pytest
import yaml

from clustersim.architecture import DTYPES, describe
from clustersim.model import model_from
from clustersim.parts import Attention, Dense, Latent, Mamba, Mamba2, Moe, Retention
from clustersim.types import InputError

CONF = Path(__file__).parents[2] / "clustersim" / "conf" / "model"
HYBRID = {
    "name": "hybrid", "hidden": 64, "vocab": 100, "tied_embeddings": False,
    "parts": {
        "attention": {"kind": "attention", "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 8},
        "scan": {"kind": "mamba", "inner": 128, "state": 16, "conv": 4, "dt_rank": 4},
        "dense": {"kind": "dense", "size": 32, "matrices": 2},
        "moe": {"kind": "moe", "experts": 6, "top_k": 2, "size": 48, "shared_size": 24, "zero_experts": 2},
    },
    "layers": [{"times": 2, "of": ["scan dense", "attention moe"]}, {"times": 1, "of": ["scan"]}],
}  # fmt: skip
H = 64
SCAN = 2 * H * 128 + 128 * 4 + 128 * (4 + 32) + 4 * 128 + 128 * 16 + 2 * 128 + 128 * H
ATTENTION = H * 16 * (4 + 2 + 2) + 4 * 16 * H
EXPERT, MOE_REST = 3 * H * 48, 3 * H * 24 + H * 8


def changed(path, value):
    config = copy.deepcopy(HYBRID)
    target = config
    for key in path[:-1]:
        target = target[key]
    if value is None:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return config


def test_layers_come_in_the_order_they_are_written():
    kinds = [[type(part).__name__ for part in layer] for layer in describe(HYBRID).core.layers]
    assert kinds == [["Mamba", "Dense"], ["Attention", "Moe"], ["Mamba", "Dense"], ["Attention", "Moe"], ["Mamba"]]


def test_parameters_of_a_hybrid_by_hand():
    """Six experts and two without weights: a token's two choices meet 2 x 6 / 8 real ones."""
    model = describe(HYBRID)
    rest = 3 * SCAN + 2 * ATTENTION + 2 * 2 * H * 32 + 2 * MOE_REST + 2 * 100 * H
    assert model.total_params == rest + 2 * 6 * EXPERT
    assert model.active_params == rest + 2 * 1.5 * EXPERT


def test_flops_of_a_token_by_hand():
    """Two per active weight (the embedding is a look-up), 4 per head value and token seen, 6 per state value; back is twice."""
    model = describe(HYBRID)
    matrices = 2 * (model.active_params - 100 * H)
    for context, seen in ((5, 5), (1000, 8)):
        expected = matrices + 2 * 4 * 4 * 16 * seen + 3 * 6 * 128 * 16
        assert model.flops("prefill", context) == model.flops("decode", context) == pytest.approx(expected, rel=1e-12)
        assert model.flops("training", context) == pytest.approx(3 * expected, rel=1e-12)


def test_what_a_sequence_keeps_by_hand():
    """Keys and values of the window, a state that does not grow; 2 bytes each."""
    for context, seen in ((5, 5), (1000, 8)):
        assert describe(HYBRID).cache_bytes(context) == 2 * (2 * 2 * 2 * 16 * seen + 3 * 128 * (16 + 4))


def test_decode_reads_weights_once_for_all_and_caches_for_each():
    """One sequence touches 2 of 8 choices, 1.5 experts; a great many all 6. The embedding is looked up, not read."""
    model = describe(HYBRID)
    read = model.total_params - 100 * H
    assert model.decode_bytes(1, 5) == pytest.approx(2 * (read - 2 * 4.5 * EXPERT) + model.cache_bytes(5), rel=1e-12)
    assert model.decode_bytes(1e6, 5) == pytest.approx(2 * read / 1e6 + model.cache_bytes(5), rel=1e-9)


def test_latent_attention_is_cheap_to_keep_and_dear_to_look_back_with():
    """DeepSeek-V3: 576 values a token; per head and token seen 2 (192 + 128) expanded, 2 (576 + 512) absorbed."""
    mla = Latent(heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)
    assert mla.cached(1000) == 576_000
    assert mla.mixing_flops(1000, False) == 2 * 128 * 320 * 1000
    assert mla.mixing_flops(1000, True) == 2 * 128 * (576 + 512) * 1000


@pytest.mark.parametrize(
    ("part", "params"),
    [
        (Attention(heads=8, kv_heads=8, head_dim=8), 4 * 64 * 64),                          # multi-head
        (Attention(heads=8, kv_heads=1, head_dim=8), 2 * 64 * 64 + 2 * 64 * 8),             # multi-query
        (Attention(heads=8, kv_heads=1, head_dim=8, gated=True), 3 * 64 * 64 + 2 * 64 * 8),
        (Retention(heads=2, key_dim=64, value_dim=128), 8 * 64 * 64),                       # RetNet: 8 d^2
        (Mamba2(inner=128, state=16, conv=4, heads=8), 64 * (2 * 128 + 2 * 16 + 8) + (128 + 32) * 4 + 128 * 64 + 24),
        (Dense(size=256), 3 * 64 * 256), (Dense(size=256, matrices=2), 2 * 64 * 256),
        (Dense(size=256, share=0.125), 3 * 64 * 256 + 64),                                  # Mixture-of-Depths has a router
        (Moe(experts=4, top_k=1, size=32), 4 * 3 * 64 * 32 + 64 * 4),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_weights_of_every_kind_written_out(part, params):
    assert part.params(64) == params
    assert part.active(64) <= params
    assert part.mixing_flops(10, False) >= 0
    assert part.cached(10) >= 0


def test_mixture_of_depths_lets_an_eighth_of_the_tokens_pass():
    part = Dense(size=256, share=0.125)
    assert part.active(64) == 3 * 64 * 256 / 8 + 64


def test_states_do_not_grow_and_keys_do():
    retention, mamba = Retention(heads=4, key_dim=64, value_dim=128), Mamba(inner=128, state=16, conv=4, dt_rank=4)
    assert retention.cached(10) == retention.cached(10**6) == 4 * 16 * 32
    assert mamba.cached(10) == mamba.cached(10**6)
    assert Attention(heads=4, kv_heads=2, head_dim=8).cached(10) * 10 == Attention(heads=4, kv_heads=2, head_dim=8).cached(100)


def test_experts_touched_by_a_batch():
    """Each token misses an expert with probability 3/4, independently."""
    moe = Moe(experts=8, top_k=2, size=32)
    assert moe.touched(1) == pytest.approx(2)
    assert moe.touched(2) == pytest.approx(8 * (1 - 9 / 16))
    assert moe.touched(1000) == pytest.approx(8)


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss_20b", "mixtral_8x7b", "glm_4_5", "deepseek_v2"])
def test_the_short_form_says_the_same_as_the_engine_s_model(name):
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    model, described = model_from(config), describe(config)
    assert (described.total_params, described.active_params) == (model.total_params, model.active_params)
    attention = sum(score_flops(model.attention) * min(4096, window(model, layer)) for layer in range(model.n_layers))
    matrices = 2 * (model.active_params - model.embedding_params)
    assert described.flops("prefill", 4096) == pytest.approx(matrices + attention, rel=1e-12)
    experts = model.n_moe_layers * model.n_experts * model.expert_params
    expected = experts * model.expert_weight_bytes + (model.total_params - experts) * model.weight_bytes
    assert described.weight_bytes == pytest.approx(expected, rel=1e-12)


def score_flops(a):
    """Query · key, then weight · value, of all heads and one pair of tokens; multi-head latent attention expanded."""
    return 4 * a.heads * a.head_dim if a.kind == "gqa" else 2 * a.heads * (a.qk_nope_head_dim + a.qk_rope_head_dim + a.v_head_dim)


def window(model, layer):
    return model.attention.sliding_window if model.attention.windowed(layer) else 10**9


def test_weights_in_every_format():
    model = describe(HYBRID)
    assert {name: model.weight_bytes_as(name) / model.total_params for name in DTYPES} == pytest.approx(
        {"bf16": 2, "fp8": 1.000244140625, "int8": 1.015625, "int4": 0.515625, "mxfp4": 0.53125, "nvfp4": 0.5625}
    )
    assert describe(HYBRID | {"dtypes": {"experts": "mxfp4"}}).weight_bytes == pytest.approx(
        2 * (model.total_params - 12 * EXPERT) + 0.53125 * 12 * EXPERT
    )


def test_an_encoder_stands_before_the_core_and_a_retrieval_adds_context():
    vision = {
        "hidden": 32, "tokens": 10, "outputs": 4, "parts": {"dense": {"kind": "dense", "size": 16, "matrices": 2}},
        "layers": [{"times": 3, "of": ["dense"]}],
    }  # fmt: skip
    found = {"latency": "5ms", "bytes": "1 MB", "tokens": 2000}
    plain, model = describe(HYBRID), describe(HYBRID | {"encoders": {"vision": vision}, "retrieval": found})
    stack = 3 * 2 * 32 * 16
    assert model.total_params - plain.total_params == stack + 32 * H        # the projection to the core, where none is given
    assert model.active_params == plain.active_params, "text does not pass the encoder"
    assert model.encoder_flops("vision") == 10 * 2 * stack + 4 * 2 * 32 * H
    assert (model.retrieval.latency_s, model.retrieval.nbytes, model.retrieval.tokens) == (5e-3, 1e6, 2000)


REFUSED = [
    (["hiden"], 3, "model.hiden: there is no such key; did you mean hidden?"),
    (["vocab"], None, "model.vocab: is missing"),
    (["hidden"], 64.0, "model.hidden=64.0: must be a whole number from 1 up"),
    (["tied_embeddings"], "no", "model.tied_embeddings=no: must be true or false"),
    (["status"], "guess", "model.status=guess: must be rumour or estimate"),
    (["dtypes"], {"experts": "fp5"}, "model.dtypes.experts=fp5: must be one of bf16"),
    (["parts", "scan", "kind"], "mambo", "model.parts.scan.kind=mambo: must be one of"),
    (["parts", "scan", "inner"], None, "model.parts.scan.inner: is missing"),
    (["parts", "scan", "iner"], 4, "model.parts.scan.iner: mamba has no such key; did you mean inner?"),
    (["parts", "attention", "kv_heads"], 3, "model.parts.attention.kv_heads=3: must divide heads = 4"),
    (["parts", "attention", "window"], 0, "model.parts.attention.window=0: must be a whole number from 1 up"),
    (["parts", "moe", "top_k"], 9, "model.parts.moe.top_k=9: asks for more than the 8 experts"),
    (["parts", "dense", "share"], 1.5, "model.parts.dense.share=1.5: must be above 0 and at most 1"),
    (["parts", "other"], {"kind": "dense", "size": 1}, "model.parts.other: no layer has it"),
    (["layers", 0, "times"], 0, "model.layers[0].times=0: must be a whole number from 1 up"),
    (["layers", 0, "of"], ["scan dens"], "model.layers[0]: there is no part dens; did you mean dense?"),
    (["layers", 1], {"of": ["scan"]}, "model.layers[1]={'of': ['scan']}: must have times"),
    (["retrieval"], {"latency": "1ms"}, "model.retrieval={'latency': '1ms'}: must have latency, bytes, tokens"),
    (["encoders"], {"vision": {"hiden": 4}}, "model.encoders.vision.hiden: there is no such key; did you mean hidden?"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "said"), REFUSED, ids=[said.partition(":")[0] for _, _, said in REFUSED])
def test_a_description_that_cannot_be_is_refused_in_one_line(path, value, said):
    with pytest.raises(InputError) as refused:
        describe(changed(path, value))
    assert said in str(refused.value)


def test_what_cannot_be_asked():
    with pytest.raises(InputError, match=r"^phase=decod: .*did you mean decode"):
        describe(HYBRID).flops("decod", 10)
    with pytest.raises(InputError, match=r"^dtype=fp7"):
        describe(HYBRID).weight_bytes_as("fp7")
