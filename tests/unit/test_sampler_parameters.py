"""Parameters of the sampler: presets and files, what a key changes, what is refused, what another model makes of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import yaml

from clustersim.types import InputError
from clustersim.workload.sampler_parameters import (
    PER_LAYER,
    SINGLE,
    Domain,
    as_text,
    changed,
    load_parameters,
    preset_names,
    read_parameters,
    write_parameters,
)
from clustersim.workload.sampler_process import Process, unit_directions

GOOD = {
    "schema": "sampler/1", "tokens": "correlated", "popularity": "dirichlet", "spread": 2.0, "domains": 1, "dimension": 5,
    "topic": 0.1, "fast": 0.2, "slow": 0.2, "alignment": 0.5, "fast_memory": 0.4, "slow_memory": 0.95, "turn": 0.5,
    "sharpness": 1.0,
}  # fmt: skip


def file_with(folder, **other):
    file = folder / "p.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in (GOOD | other).items() if value is not ...}))
    return file


def with_loads(layers=3, experts=4, **keys):
    rng = np.random.default_rng(0)
    domains = tuple(
        Domain(name=n, share=s, spread=rng.random(layers) + 0.5, load=rng.dirichlet(np.ones(experts), layers))
        for n, s in (("a", 0.25), ("b", 0.75))
    )
    return replace(load_parameters("moderate"), domains=domains, **keys)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_read_and_says_what_it_is(name):
    parameters = load_parameters(name)
    assert parameters.name == name
    assert sum(domain.share for domain in parameters.domains) == pytest.approx(1)


def test_what_was_written_is_read_back(tmp_path):
    """Loads are whole numbers of 100,000 choices, so they come back to half of one; the rest to four digits."""
    parameters = with_loads(dimension=np.array([3.25, 4.5, 6.0]), turn=0.3)
    write_parameters(parameters, tmp_path / "x.yaml", "a model: of 'ours'")
    again = read_parameters(tmp_path / "x.yaml", "x")
    for key in (*PER_LAYER, *SINGLE):
        np.testing.assert_allclose(getattr(again, key), getattr(parameters, key), rtol=5e-4)
    for one, other in zip(again.domains, parameters.domains, strict=True):
        assert (one.name, one.share) == (other.name, other.share)
        np.testing.assert_allclose(one.spread, other.spread, rtol=5e-4)
        np.testing.assert_allclose(one.load, other.load, atol=1.1e-5)
    assert as_text(parameters, "m").startswith("# Sampler parameters fitted to m")


def test_what_a_token_brings_and_its_memories_make_a_variance_of_one():
    """own^2 + fast^2 + slow^2 + 2 fast slow c = 1, with c the correlation of the memories."""
    p = load_parameters("moderate")
    f, s = p.fast_memory, p.slow_memory
    common = sum(math.sqrt((1 - f * f) * (1 - s * s)) * (f * s) ** i for i in range(10_000))      # both sum the same tokens
    assert p.memory_correlation == pytest.approx(common)
    assert p.own**2 + p.fast**2 + p.slow**2 + 2 * p.fast * p.slow * common == pytest.approx(1)


def test_keys_that_are_not_given_change_nothing():
    p = load_parameters("web_text")
    assert changed(p, {"alpha": None, "topic": None}) is p


@pytest.mark.parametrize(("key", "family"), [("alpha", "dirichlet"), ("sigma", "lognormal"), ("zipf", "zipf")])
def test_saying_how_uneven_experts_are_replaces_recorded_loads_in_every_domain(key, family):
    p = changed(with_loads(), {key: 0.7})
    assert p.popularity == family
    assert [domain.name for domain in p.domains] == ["a", "b"]
    assert [(domain.spread.tolist(), domain.load) for domain in p.domains] == [([0.7], None)] * 2


def test_other_keys_change_one_thing():
    p = changed(load_parameters("moderate"), {"topic": 0.3, "domains": 5, "tokens": "independent", "dimension": 3})
    assert (p.topic.tolist(), len(p.domains), p.tokens, p.dimension.tolist()) == ([0.3], 5, "independent", [3])
    assert p.slow.tolist() == load_parameters("moderate").slow.tolist()


@pytest.mark.parametrize(("keys", "said"), [
    ({"alpha": 1, "sigma": 1}, r"trace\.sigma=1: trace\.alpha says already"),
    ({"alpha": 0}, r"trace\.alpha=0: must be a number above 0"),
    ({"alpha": float("nan")}, r"trace\.alpha=nan: must be a number above 0"),
    ({"sigma": float("inf")}, r"trace\.sigma=inf"),
    ({"domains": 0}, r"trace\.domains=0: must be a whole number from 1"),
    ({"topic": 1.5}, r"trace\.topic=1\.5: must be a number from 0 to 1"),
    ({"dimension": 65}, r"trace\.dimension=65: must be a number from 1 to 64"),
    ({"tokens": "wild"}, r"trace\.tokens=wild: must be correlated or independent"),
    ({"fast": 0.9, "slow": 0.9}, r"trace: fast and slow take .* of the variance"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused_by_key(keys, said):
    with pytest.raises(InputError, match=said):
        changed(load_parameters("moderate"), keys)


@pytest.mark.parametrize(("other", "said"), [
    ({"schema": "sampler/2"}, r"x: schema is 'sampler/2'; `clustersim fit` writes 'sampler/1'"),
    ({"turn": ...}, "x: turn: is missing"),
    ({"trun": 1}, "x: trun: there is no such key; did you mean turn?"),
    ({"topic": "much"}, "x: topic=much: must be a number from 0 to 1"),
    ({"topic": [0.1, -1]}, "x: topic=-1: must be a number from 0 to 1"),
    ({"slow_memory": 1}, "x: slow_memory=1: must be a number from 0 to 0.9999"),
    ({"popularity": "dirichlett"}, "x: popularity=dirichlett: there is no such"),
    ({"spread": ...}, "x: spread=None: must be a number above 0"),
    ({"domains": []}, "x: domains: must be a number of domains, or a list"),
    ({"domains": [{"name": "a", "spread": 1}]}, "x: domain a: share=None: must be a number"),
    ({"domains": [{"name": "a", "share": 1, "spread": 1, "laod": [[1]]}]}, "x: domain a: laod: there is no such key"),
    ({"domains": [{"name": "a", "share": 1, "spread": 1, "load": [[1, 2], [3]]}]}, "x: domain a: load: must be a row of numbers"),
    ({"domains": [{"name": "a", "share": 1, "spread": 1, "load": [[0, 0]]}]}, "none of them all 0"),
    ({"domains": [{"name": "a", "share": 1, "spread": 1, "load": [[1, 2]]}, {"name": "b", "share": 1, "spread": 1}]},
     "x: domains: all have a load of the same layers and experts, or none has"),
])  # fmt: skip
def test_a_file_with_something_wrong_in_it_is_refused_with_one_line(tmp_path, other, said):
    with pytest.raises(InputError) as error:
        read_parameters(file_with(tmp_path, **other), "x")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_yaml_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"x: cannot be read \(No such file"):
        read_parameters(tmp_path / "no.yaml", "x")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="x: not YAML"):
        read_parameters(tmp_path / "bad.yaml", "x")
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"x: cannot be read \(not text"):
        read_parameters(tmp_path / "bin.yaml", "x")
    with pytest.raises(InputError, match=r"trace\.preset=webtext: there is no such preset; did you mean web_text\?"):
        load_parameters("webtext")


def test_recorded_loads_are_used_as_they_are_where_layers_and_experts_fit():
    parameters = with_loads(layers=3, experts=8)
    process = Process(parameters, n_layers=3, n_experts=8, top_k=1, seed=0)
    assert process.notes == ()
    for layer in range(3):
        for domain, used in zip(parameters.domains, process.used(layer), strict=True):
            np.testing.assert_allclose(used, domain.load[layer], rtol=1e-6)


@pytest.mark.parametrize(("layers", "experts"), [(6, 8), (3, 16)])
def test_loads_of_another_shape_are_drawn_anew_and_that_is_said(layers, experts):
    process = Process(with_loads(layers=3, experts=8), n_layers=layers, n_experts=experts, top_k=1, seed=0)
    assert process.used(layers - 1).shape == (2, experts)
    assert process.notes == (
        "moderate has the loads of 8 experts in 3 layers; "
        f"those of this model's {experts} in {layers} are drawn anew, as unevenly",
    )


def test_a_broken_dimension_lies_between_its_neighbours():
    """Columns have length 1. At 2.25 the third component has a quarter of the weight, squared, that it has at 3."""
    normal = np.random.default_rng(0).standard_normal((3, 5))
    for dimension in (1.0, 2.0, 2.25, 3.0):
        directions = unit_directions(normal, dimension)
        assert directions.shape == (4, 5)
        np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1, rtol=1e-6)
        assert (directions[math.ceil(dimension) :] == 0).all()
    third = unit_directions(normal, 2.25)[2] / unit_directions(normal, 2.25)[0]
    np.testing.assert_allclose(third, 0.5 * normal[2] / normal[0], rtol=1e-5)
