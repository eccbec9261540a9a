"""clustersim's own processes as a Hydra launcher, for sweepers that are plug-ins. All Hydra programs import it: keep it light."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class ClustersimLauncherConfig:
    """`hydra/launcher=clustersim`; `workers` is a key of clustersim's own config."""

    _target_: str = "hydra_plugins.clustersim_launcher.ClustersimLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="clustersim", node=ClustersimLauncherConfig, provider="clustersim_launcher"
)


class ClustersimLauncher(Launcher):
    """Jobs over the processes of this machine, each reused where its results are there."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from clustersim.sweeps.plugins import launch

        folder: Any = self.config.hydra.sweep.dir
        return launch(job_overrides, initial_job_idx, folder=str(folder), workers=self.config.workers)
