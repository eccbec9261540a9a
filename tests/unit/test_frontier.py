"""Dense against sparse: published setups are what was published, and the tables say what a step says."""

import pytest
import yaml
from rich.console import Console

import clustersim as cs
from clustersim.architecture import describe
from clustersim.config import compose, sweep
from clustersim.parallel import parallel_from
from clustersim.places import group_folder, options
from clustersim.results.frontier import PUBLISHED, frontier_notes, frontier_tables
from clustersim.types import InputError

SETUPS = sorted(options(group_folder("setup")))


def gpus_of(run):
    return run.config["topology"]["nodes"] * run.config["topology"]["gpus_per_node"]


@pytest.mark.parametrize("name", SETUPS)
def test_a_setup_is_a_whole_training_run_of_the_published_model_and_size(name):
    run = compose([f"+setup={name}"])
    said = PUBLISHED[name]
    assert run.config["model"]["name"] == name
    assert run.config["workload"]["phase"] == "training"
    assert said.gpus in (None, gpus_of(run))
    assert run.config["cost"]["tokens"] == said.tokens
    assert (said.gpus is None) == bool(said.missing), "what was not published is said"
    sizes = {key: value for key, value in run.config["parallel"].items() if key not in ("order", "stage_layers")}
    parallel = parallel_from(sizes, gpus_of(run))
    assert run.config["workload"]["global_batch"] % parallel.data == 0


@pytest.mark.parametrize("name", SETUPS)
def test_parameters_are_the_published_ones(name):
    arch = describe(yaml.safe_load((group_folder("model") / f"{name}.yaml").read_text()))
    assert arch.total_params == pytest.approx(PUBLISHED[name].total, rel=0.01)
    assert arch.active_params == pytest.approx(PUBLISHED[name].active, rel=0.02)        # printed with two digits


def test_deepseek_v3_s_published_hours_are_180_000_a_trillion_tokens():
    said = PUBLISHED["deepseek_v3"]
    assert said.gpu_hours / said.tokens * 1e12 == pytest.approx(180_000)


def test_the_study_is_these_four_one_command():
    jobs = list(sweep(["+experiment=frontier"]))
    assert [job[0] for job in jobs] == [f"+setup={name}" for name in PUBLISHED]
    assert set(PUBLISHED) == set(SETUPS)
    assert [compose(job).study for job in jobs] == ["frontier"] * 4


ROW = {
    "model": "deepseek_v3", "topology": "h800_sxm", "gpus": 2048, "step_s": 10.0, "compute_s": 6.0, "memory_bandwidth_s": 1.0,
    "tensor_comm_s": 0.0, "exchange_comm_s": 2.0, "gradient_comm_s": 0.5, "wait_s": 0.5, "bubble_s": 1.0,
    "model_flops_per_s_per_gpu": 400e12, "gpu_hours_per_trillion_tokens": 90_000.0, "dollars_per_million_tokens": 0.18,
    "joules_per_token": 3.6, "cost.tokens": 14.8e12, "cost.price": 2.0, "run_gpu_hours": 1.332e6, "run_dollars": 2.664e6,
    "run_joules": 5.328e13, "model.gemm": "fp8", "topology.gpu.fp8_achieved": "1000 TFLOP/s",
}  # fmt: skip


def printed(rows):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))      # noqa: SIM115
    for table in frontier_tables(rows):
        console.print(table)
    return [line.split() for line in console.export_text().splitlines() if line.startswith("deepseek_v3")]


def test_a_line_says_what_the_step_says():
    sizes, costs, totals, times = printed([ROW])
    # half the published hours; 0.18 dollars a million are 180,000 a trillion; 3.6 J a token are 1,000 MWh a trillion
    assert sizes[1:] == ["671", "B", "38", "B", "671,", "37", "B", "5.6", "%", "2,048", "h800", "400"]
    assert costs[1:] == ["90,000", "180,000", "0.50", "180,000", "1,000"]
    assert totals[1:] == ["14.8", "T", "1.332", "M", "2.664", "M", "2", "2.664", "M", "5.328", "M", "14.8"]
    # 400 of 1,000 TFLOP/s for 10 s are 4 s of GEMMs; 6 s of computing less 1 s of memory leave 1 s
    assert times[1:] == ["10", "s", "40.0", "%", "10.0", "%", "10.0", "%", "25.0", "%", "5.0", "%", "10.0", "%"]


def test_what_was_not_published_or_not_asked_is_a_dash():
    row = ROW | {"model": "deepseek_v3", "cost.price": None, "run_dollars": None, "dollars_per_million_tokens": None,
                 "joules_per_token": None, "run_joules": None, "memory_bandwidth_s": None}  # fmt: skip
    _, costs, totals, times = printed([row])
    assert costs[-2:] == ["-", "-"]
    assert totals[-4:] == ["-", "-", "-", "-"]
    assert times[5] == "-"
    (note,) = frontier_notes([{"model": "mixtral_8x22b"}])
    assert note.startswith("mixtral_8x22b: cluster, tokens and hours were not published")
    assert frontier_tables([ROW | {"model": "of_my_own"}]) == []


def test_memory_bandwidth_is_what_computing_is_longer_by():
    small = ["workload=training", "workload.global_batch=8", "model=llama_3_2_1b", "topology.nodes=1", "network=bound"]
    plain, asked = (cs.simulate([*small, f"causes={causes}"]).summary for causes in ("false", "true"))
    assert plain["memory_bandwidth_s"] is None
    assert asked["compute_s"] == plain["compute_s"]
    assert 0 < asked["memory_bandwidth_s"] < asked["compute_s"]
    slow = cs.simulate([*small, "causes=true", "topology.gpu.memory_achieved=1 TB/s"]).summary
    assert slow["memory_bandwidth_s"] - asked["memory_bandwidth_s"] == pytest.approx(slow["compute_s"] - asked["compute_s"])


def test_a_setup_is_written_with_a_plus_and_by_its_name():
    with pytest.raises(InputError, match=r"write \+setup=deepseek_v3"):
        compose(["setup=deepseek_v3"])
    with pytest.raises(InputError, match="there is no such setup; did you mean deepseek_v3"):
        compose(["+setup=deepseek_v4"])
