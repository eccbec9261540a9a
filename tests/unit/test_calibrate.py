"""Constants from a user's logs. The logs under tests/data/logs have the layout of the tools and figures of the published rows."""

from pathlib import Path

import pytest
import yaml

from clustersim.cli import main
from clustersim.cluster import load_cluster
from clustersim.kernels import load_kernel
from clustersim.types import InputError
from clustersim.validation.logs import read_log

LOGS = Path(__file__).parents[1] / "data" / "logs"


def test_every_tool_is_read_for_what_it_measured():
    given = {"gpu": "h100_sxm", "gpus": 8}
    nccl = read_log(LOGS / "nccl_alltoall.txt", {})
    assert next((r.case["bytes_per_gpu"], r.value) for r in nccl) == (1024, pytest.approx(7.89e-6))
    assert {(r.case["gpu"], r.case["gpus"]) for r in nccl} == {("h100_sxm", 8)}, "GPU and ranks stand in the header"
    normal = read_log(LOGS / "deepep_intranode.txt", given)
    assert [(r.case["phase"], r.case["payload"], r.case["sms"]) for r in normal][:2] == [
        ("dispatch", "fp8_block128", 4), ("combine", "bf16", 4)
    ]  # fmt: skip
    assert len(normal) == 8, "the steps of a tuning are not its best"
    dispatch, combine = read_log(LOGS / "deepep_low_latency.txt", given)
    assert (dispatch.value, combine.value) == (pytest.approx(39.35e-6), pytest.approx(72.35e-6)), "mean over ranks"
    (link,) = read_log(LOGS / "nvbandwidth.txt", {})
    assert link.value == pytest.approx(1566.73e9 / 2 / 2), "two pairs, both ways at once"


@pytest.mark.parametrize(("line", "gpus", "value", "unit"), [
    ("[tuning] Best dispatch (FP8): SMs 24, NVL chunk 8, 328.17 GB/s (NVL)", 8, 328.17e9, "GB/s"),
    ("[tuning] Best combine: SMs 24, NVL chunk 16: 310.64 GB/s (NVL)", 8, 310.64e9, "GB/s"),
    ("[tuning] Best dispatch (BF16): SMs 24, NVL chunk 20, 320.10 GB/s (NVL), t: 962.00 us", 8, 962e-6, "us"),
    ("[tuning] Best dispatch (FP8): SMs 24, NVL chunk 32, RDMA chunk 16: 49 + 1234 us, 46.1 GB/s (RDMA), 150.5 GB/s (NVL)", 16,
     1234e-6, "us"),
    ("[tuning] Best combine: SMs 16, NVL chunk 4, RDMA chunk 16: 43.24 GB/s (RDMA), 141.14 GB/s (NVL)", 16, 43.24e9, "GB/s"),
    ("[tuning] Best combine: SMs 20, NVL chunk 7, RDMA chunk 0, transmit: 1085.20 us, notify: 0.00 us, BW: 0.00 GB/s (RDMA), "
     "285.77 GB/s (NVL)", 8, 1085.2e-6, "us"),
])  # fmt: skip
def test_the_best_of_a_tuning_is_read_in_every_layout_that_releases_print(tmp_path, line, gpus, value, unit):
    (tmp_path / "a.log").write_text(f"[config] num_tokens=4096, hidden=7168, num_topk=8\n{line}\n")
    (row,) = read_log(tmp_path / "a.log", {"gpu": "h100_sxm", "gpus": gpus})
    assert (row.value, row.unit) == (pytest.approx(value), unit)
    assert row.case["metric"].startswith("bytes/s" if unit == "GB/s" else "seconds")


def test_a_best_without_a_time_or_the_rate_of_its_link_is_refused(tmp_path):
    (tmp_path / "a.log").write_text(
        "[config] num_tokens=4096, hidden=7168, num_topk=8\n"
        "[tuning] Best dispatch (FP8): SMs 24, NVL chunk 8, 328.17 GB/s (NVL)\n"
    )
    with pytest.raises(InputError, match=r"neither a time nor GB/s \(RDMA\)"):
        read_log(tmp_path / "a.log", {"gpu": "h100_sxm", "gpus": 16})


def test_large_times_of_nccl_tests_come_with_an_exponent(tmp_path):
    head = (LOGS / "nccl_alltoall.txt").read_text().splitlines()[:15]
    line = "  8589934592    4294967296      half    none      -1  1.2e+07    0.72    0.63      0  1.2e+07    0.72    0.63    N/A"
    (tmp_path / "a.log").write_text("\n".join([*head, line]))
    assert {row.case["bytes_per_gpu"]: row.value for row in read_log(tmp_path / "a.log", {})}[8589934592] == pytest.approx(12.0)


def test_a_kernel_and_a_topology_come_out_that_a_run_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logs = [str(LOGS / name) for name in ("nccl_alltoall.txt", "nvbandwidth.txt")]
    assert main(["calibrate", *logs, "-o", "mine.yaml"]) == 0
    assert "too few rows" in capsys.readouterr().out
    kernel, before = load_kernel("mine.yaml"), load_kernel("nccl")
    assert kernel.constants["base_ll"].evidence == "calibrated on yours"
    low, high = kernel.constants["base_ll"].interval
    assert low < kernel["base_ll"] < high
    assert kernel.constants["chunk_nvlink"] == before.constants["chunk_nvlink"]
    assert load_cluster("mine_topology.yaml").capacity[0] == pytest.approx(391.68e9, rel=1e-4)
    assert yaml.safe_load(Path("mine.yaml").read_text())["covers"] == {"gpus": [8, 8]}


def test_held_out_rows_and_what_cannot_be_told_are_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", str(LOGS / "deepep_intranode.txt"), "gpu=h100_sxm", "gpus=8", "-o", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    assert "held out: 2 rows" in out
    assert "says nothing" in out, "one node says nothing of the NIC"
    kernel = load_kernel("mine.yaml")
    assert kernel.constants["nic_share"].same_as == "ports.nic_share"
    assert kernel["sm_rate"] == pytest.approx(41.5e9, rel=0.1)


NCCL, NORMAL, LOW, LINK = (
    str(LOGS / f"{name}.txt") for name in ("nccl_alltoall", "deepep_intranode", "deepep_low_latency", "nvbandwidth")
)


@pytest.mark.parametrize(("arguments", "said"), [
    (["nowhere.log", "-o", "a.yaml"], "cannot be read"), ([NORMAL, "-o", "a.yaml"], "does not say gpus"),
    ([str(Path(__file__).with_name("test_units.py")), "-o", "a.yaml"], "is no output of deepep, nccl_tests, nvbandwidth"),
    ([LINK], "takes logs"),
    ([LINK, "-o", "a.yaml"], "no log of an exchange"),
    ([NCCL, LOW, "gpu=h100_sxm", "gpus=8", "-o", "a.yaml"], "one kernel at a time"),
])  # fmt: skip
def test_what_cannot_be_calibrated_is_one_clear_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
