"""From overrides to a run: what is composed, swept and refused; and how a plug-in is found and its options judged."""

import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from clustersim import exchange, network, placement
from clustersim.config import compose, is_sweep, positive, sweep, whole
from clustersim.pick import bind, did_you_mean, offered, pick
from clustersim.places import data_folder, group_folder, options
from clustersim.types import InputError


def test_the_default_run_is_the_one_of_the_main_job():
    run = compose([])
    assert (run.study, run.topology, run.model.name) == ("runs", "h100_sxm", "gpt_oss_20b")
    assert (run.seed, run.output) == (0, Path("results"))
    assert (run.tokens_per_gpu, run.capacity_factor, run.overrides) == (384, None, ())
    assert run.options("trace") == ("tiny", {})
    assert run.options("placement") == ("contiguous", {"slots": None, "spare": 0, "replica": "token_hash"})
    assert run.options("exchange") == ("node_dedup", {"chunk_tokens": 16, "metadata_bytes": None})
    assert run.options("network") == ("fluid", {"resolution": 0.0, "changes": []})
    assert run.options("compute") == ("kernels", {"tiles": "deepgemm_2025_07", "constants": "gemm", "sms_taken": 0})
    assert run.config["topology"]["nodes"] * run.config["topology"]["gpus_per_node"] == 64


def test_overrides_choose_options_and_set_keys():
    run = compose(["model=deepseek_v3", "topology=h800_sxm", "topology.nodes=4", "capacity.factor=1.25", "seed=7", "output=a/b"])
    assert (run.model.n_experts, run.topology, run.capacity_factor) == (256, "h800_sxm", 1.25)
    assert (run.seed, run.output) == (7, Path("a/b"))
    assert run.config["topology"]["nodes"] == 4
    assert run.config["topology"]["nvlink"]["achievable"] == "160 GB/s"
    assert compose(["capacity.factor=2"]).capacity_factor == 2.0
    assert compose(["+exchange.metadata_bytes=0"]).options("exchange")[1]["metadata_bytes"] == 0
    assert compose(["seed=1", "seed=2"]).seed == 2
    assert compose(["seed=${workload.tokens_per_gpu}"]).seed == 384
    assert compose(["trace=file", "trace.path=/some where/else"]).options("trace")[1]["path"] == "/some where/else"


def test_a_run_is_frozen_and_two_of_them_do_not_share():
    one, two = compose([]), compose(["capacity.factor=2"])
    with pytest.raises(FrozenInstanceError):
        one.seed = 3
    assert one.config["capacity"]["factor"] is None
    assert two.config["capacity"]["factor"] == 2


def test_every_model_and_topology_makes_a_run():
    for model in options(group_folder("model")):
        if "layers:" not in (group_folder("model") / f"{model}.yaml").read_text():      # counted, not played
            assert compose([f"model={model}"]).model.name == model
    for topology in options(group_folder("topology")):
        assert compose([f"topology={topology}"]).topology == topology


def test_a_study_names_the_folder_of_its_runs():
    assert compose(["+experiment=capacity_factor", "capacity.factor=1.5"]).study == "capacity_factor"


def test_it_works_inside_another_hydra_application():
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_module("clustersim.conf", version_base="1.3"):
        callers = GlobalHydra.instance().hydra
        assert compose(["seed=3"]).seed == 3
        with pytest.raises(InputError):
            compose(["nothing=3"])
        assert GlobalHydra.instance().hydra is callers
    assert not GlobalHydra.instance().is_initialized()


# ---- sweeps


def test_a_sweep_is_the_product_with_the_last_list_fastest():
    assert list(sweep(["seed=0,1", "exchange=direct", "capacity.factor=1.0,null"])) == [
        ["seed=0", "exchange=direct", "capacity.factor=1.0"], ["seed=0", "exchange=direct", "capacity.factor=null"],
        ["seed=1", "exchange=direct", "capacity.factor=1.0"], ["seed=1", "exchange=direct", "capacity.factor=null"],
    ]  # fmt: skip
    assert list(sweep([])) == [[]]
    assert list(sweep(["seed=3"])) == [["seed=3"]]
    assert list(sweep(["seed=range(2,5)"])) == [["seed=2"], ["seed=3"], ["seed=4"]]
    assert list(sweep(["seed=choice(4,2)"])) == [["seed=4"], ["seed=2"]]
    assert [job[0] for job in sweep(["model=mixtral_8x7b,kimi_k2"])] == ["model=mixtral_8x7b", "model=kimi_k2"]
    added = "+exchange.metadata_bytes"
    assert list(sweep([f"{added}=0,8"])) == [[f"{added}=0"], [f"{added}=8"]]


def test_a_study_brings_lists_of_its_own_and_the_command_line_wins():
    jobs = list(sweep(["+experiment=replicas", "seed=1"]))
    assert [job[:2] for job in jobs] == [
        [f"placement.replica={rule}", f"exchange={name}"]
        for rule in ("token_hash", "nearest")
        for name in ("direct", "node_dedup")
    ]
    assert all(job[2:] == ["+experiment=replicas", "seed=1"] for job in jobs)
    assert all(compose(job).study == "replicas" for job in jobs)
    assert [job[0] for job in sweep(["+experiment=replicas", "exchange=direct"])] == [
        "placement.replica=token_hash", "placement.replica=nearest",
    ]  # fmt: skip
    assert len(list(sweep(["+experiment=replicas", "exchange=direct", "placement.replica=nearest"]))) == 1
    assert is_sweep(["+experiment=replicas"])
    assert not is_sweep(["seed=1,2"])
    assert not is_sweep([])


def test_a_list_without_a_sweep_is_refused():
    with pytest.raises(InputError, match=r"seed=1,2: several values make a sweep; add -m"):
        compose(["seed=1,2"])


# ---- values


def test_numbers_are_judged():
    assert whole("k", 3, least=0) == 3
    assert positive("k", 2) == 2.0
    for wrong in (True, 1.0, "1", None, -1):
        with pytest.raises(InputError, match=r"^k="):
            whole("k", wrong, least=0)
    for wrong in (True, "1", None, 0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match=r"^k="):
            positive("k", wrong)


# ---- plug-ins


def test_what_is_on_offer_is_what_the_module_lists():
    assert {"contiguous", "eplb", "local_search"} <= set(offered(placement))
    for group, module in {"placement": placement, "exchange": exchange, "network": network}.items():
        assert sorted(options(group_folder(group))) == offered(module), f"conf/{group} and its module differ"
    assert pick(network, "fluid", resolution=0.0)


def test_the_nearest_name_is_offered_when_one_is_near():
    assert did_you_mean("fluids", ["fluid", "bound"]) == "; did you mean fluid?"
    assert did_you_mean("zzz", ["fluid", "bound"]) == ""


def own_exchange(phase, routing, placement, cluster, model, *, share: float = 1.0, label: str | None = None, exact=False):
    return share, label, exact


def test_a_function_of_ones_own_is_found_by_its_path():
    mine = pick(exchange, f"{__name__}:own_exchange", share=2, label=None, exact="anything goes without an annotation")
    assert mine("dispatch", None, None, None, None) == (2, None, "anything goes without an annotation")
    with pytest.raises(InputError, match="no function"):
        pick(exchange, "math:pi")
    with pytest.raises(InputError, match="No module named 'nowhere'"):
        pick(exchange, "nowhere:at_all")
    with pytest.raises(InputError, match="at_all"):
        pick(exchange, "math:at_all")


@pytest.mark.parametrize(
    ("options_", "says"),
    [
        ({"share": "much"}, r"^exchange\.share=much: must be a number$"),
        ({"share": True}, r"^exchange\.share=True: must be a number$"),
        ({"share": None}, r"^exchange\.share=None: must be a number$"),
        ({"label": 3}, r"^exchange\.label=3: must be text or null$"),
        ({"shape": 3}, r"^exchange\.shape: mine takes share, label, exact; did you mean share\?$"),
    ],
)
def test_an_option_has_a_name_and_a_type(options_, says):
    with pytest.raises(InputError, match=says):
        bind("exchange", "mine", own_exchange, options_)


def test_annotations_that_cannot_be_read_are_left_alone():
    def strange(*, size: "NoSuchType" = 1):  # noqa: F821
        return size

    assert bind("exchange", "strange", strange, {"size": "x"})() == "x"


# ---- places


def test_the_data_files_are_found_where_they_are():
    assert "h100_sxm" in options(data_folder("topologies"))
    assert "capacity_factor" in options(data_folder("experiments"))


def test_an_option_is_described_by_its_first_comment(tmp_path):
    (tmp_path / "b.yaml").write_text("# @package _global_\n\n#  What it is \n# more\nname: b\n")
    (tmp_path / "a.yaml").write_text("name: a\n# too late\n")
    (tmp_path / "c.txt").write_text("# no")
    assert options(tmp_path) == {"a": "", "b": "What it is"}


def test_an_installed_package_carries_its_data(tmp_path, monkeypatch):
    monkeypatch.setattr("clustersim.places.PACKAGE", tmp_path / "clustersim")
    assert data_folder("topologies") == tmp_path / "topologies"
    (tmp_path / "clustersim" / "_bundled" / "topologies").mkdir(parents=True)
    assert data_folder("topologies") == tmp_path / "clustersim" / "_bundled" / "topologies"


@pytest.mark.parametrize("overrides", ["model=deepseek_v3", [1.25], [["capacity.factor=1"]]])
def test_overrides_that_are_no_list_of_texts_are_refused_as_such(overrides):
    with pytest.raises(InputError, match="overrides: must be a list of texts"):
        compose(overrides)
