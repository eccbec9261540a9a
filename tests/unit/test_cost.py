"""GPU-hours, dollars and joules are arithmetic on a step, and nothing where an input is missing."""

import pytest

import clustersim as cs
from clustersim.cli import main
from clustersim.cluster import load_cluster
from clustersim.cost import COLUMNS, Cost, cost_row, switch_ports
from clustersim.types import InputError

STEP = {"step_s": 2.0, "compute_s": 1.5, "tokens": 4000, "nic_bytes": 0.0}


def test_deepseek_v3_s_price_is_its_gpu_hours_times_two_dollars():
    # arXiv 2412.19437 table 1: 2,664,000 H800 hours for 14.8 trillion tokens, 5.328 million dollars; 180,000 hours a trillion
    h800 = load_cluster("h800_sxm")
    step = STEP | {"step_s": 180_000 * 3600 / 1e12 * 4096 * 15360 / 2048, "tokens": 4096 * 15360}
    row = cost_row(step, Cost(price=2.0, tokens=14.8e12), h800, gpus=2048)
    assert row["gpu_hours_per_million_tokens"] == pytest.approx(0.18)
    assert row["run_gpu_hours"] == pytest.approx(2.664e6)
    assert row["run_dollars"] == pytest.approx(5.328e6)


def test_a_gpu_draws_its_idle_power_and_up_to_its_peak_while_it_computes():
    one = load_cluster("h100_sxm", nodes=1, power={"gpu_idle": "80 W", "gpu_peak": "700 W", "port_idle": None, "port_peak": None})
    row = cost_row(STEP, Cost(), one, gpus=8)
    assert row["joules_per_step"] == pytest.approx(8 * (80 * 2.0 + 620 * 1.5))
    assert row["joules_per_token"] == pytest.approx(row["joules_per_step"] / 4000)
    assert cost_row(STEP, Cost(), one, gpus=16)["joules_per_step"] == 2 * row["joules_per_step"]     # as many again like these


def test_nics_and_switch_ports_work_as_long_as_their_bytes_take():
    power = {"gpu_idle": "0 W", "gpu_peak": "0 W", "nic_idle": "10 W", "nic_peak": "30 W", "port_idle": "5 W", "port_peak": "6 W"}
    two = load_cluster("h100_sxm", nodes=2, power=power)
    half = STEP | {"nic_bytes": 16 * 50e9 * 1.0}        # 16 NICs of 50 GB/s, busy for 1 of 2 s
    assert cost_row(half, Cost(), two, gpus=16)["joules_per_step"] == pytest.approx(16 * (10 * 2 + 20 * 1) + 16 * (5 * 2 + 1 * 1))
    four = cost_row(STEP | {"nic_bytes": 32 * 50e9 * 1.0}, Cost(), two, gpus=32)["joules_per_step"]
    assert four == pytest.approx(2 * cost_row(half, Cost(), two, gpus=16)["joules_per_step"]), "two nodes stand for four"
    unknown = cost_row(STEP | {"nic_bytes": None}, Cost(), two, gpus=16)["joules_per_step"]
    assert unknown == pytest.approx(16 * 30 * 2 + 16 * 6 * 2)


def test_ports_of_a_leaf_spine_network_are_three_per_nic():
    # a NIC's port on the leaf; its share of a cable to the spine has a port at either end; 2:1 halves that
    assert switch_ports(load_cluster("h100_sxm", nodes=4)) == 32
    spines = {"name": "leaf_spine", "spines": 2}
    assert switch_ports(load_cluster("h100_sxm", nodes=4, fabric=spines)) == pytest.approx(3 * 32)
    assert switch_ports(load_cluster("h100_2to1", nodes=4)) == pytest.approx(2 * 32)


def test_tokens_that_a_draft_verifies_in_vain_are_not_made():
    # 4,000 tokens looked at, 3,000 kept in the 2 s: 8 GPUs x 2 s for 3,000
    row = cost_row(STEP | {"tokens_per_s": 1500.0}, Cost(), load_cluster("ideal_rail", nodes=1), gpus=8)
    assert row["gpu_hours_per_million_tokens"] == pytest.approx(8 * 2 / 3600 / 3000 * 1e6)


def test_a_price_shows_at_the_end_of_a_run_and_of_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["topology.nodes=1", "model.n_layers=2", "network=bound", "workload.tokens_per_gpu=16"]
    assert main([*small, "cost.price=3"]) == 0
    row = cs.scan("results/runs").collect().row(0, named=True)
    hours = row["gpu_hours_per_million_tokens"]
    assert f"${3 * hours:.3g} and {hours:.3g} GPU-hours a million tokens, {row['joules_per_token']:.3g} J a token" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["-m", *small, "cost.price=3,6", "workers=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "$/M tokens" in lines[0]
    assert f" {3 * hours:.3f} " in lines[1]
    assert main(small) == 0
    assert "GPU-hours" not in capsys.readouterr().out


def test_nothing_comes_of_what_is_not_given():
    row = cost_row(STEP, Cost(), load_cluster("ideal_rail", nodes=1), gpus=8)
    assert tuple(row) == COLUMNS
    assert [name for name, value in row.items() if value is not None] == ["gpu_hours_per_million_tokens"]


def test_the_summary_of_a_run_has_them():
    small = ["topology.nodes=1", "model.n_layers=2", "network=bound", "workload.tokens_per_gpu=16"]
    row = cs.simulate([*small, "cost=deepseek_v3", "cost.tokens=1e9"]).summary
    assert row["dollars_per_million_tokens"] == pytest.approx(2 * row["gpu_hours_per_million_tokens"])
    assert row["run_dollars"] == pytest.approx(1000 * row["dollars_per_million_tokens"])
    assert 8 * 80.3 * row["step_s"] < row["joules_per_step"] < 8 * (700 + 26.9) * row["step_s"]
    assert cs.simulate(small).summary["run_dollars"] is None


@pytest.mark.parametrize(("override", "said"), [
    ("cost.price=-1", "cost.price=-1: must be a number above 0, or null"),
    ("cost.tokens=many", "cost.tokens=many: must be a number above 0, or null"),
    ("topology.power.gpu_peak=700", "topology.power.gpu_peak = 700: expected a power from 0 up with its unit"),
    ("topology.power.gpu_peak=50 W", "topology.power.gpu_idle = 80.3 W: cannot exceed gpu_peak = 50 W"),
    ("topology.power.gpu_peak=null", "topology.power.gpu_peak: is needed beside the other, or both are null"),
    ("+topology.power.gpu_peek=700 W", "topology.power.gpu_peek: there is no such key; did you mean gpu_peak?"),
])  # fmt: skip
def test_what_cannot_be_is_refused(override, said):
    with pytest.raises(InputError) as caught:
        cs.simulate(["topology.nodes=1", "model.n_layers=1", "workload.tokens_per_gpu=16", "network=bound", override])
    assert said in str(caught.value)
