"""A stand-in model and data set with the study's interfaces, so that studies run in a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

from ablations.launch.local import LocalExecutor, Slot
from ablations.plan import Components
from ablations.registry import Ablation, Study
from ablations.results import StudyResult
from ablations.runner import open_study
from megasr.batch import SRBatch
from megasr.errors import MegaSRError
from megasr.evaluation.protocol import WEIGHT_FREE_V1, Protocol
from megasr.images import resize, upsample_lq
from megasr.rng import torch_generator

FAST = Protocol("fast", 1, WEIGHT_FREE_V1.metrics[:2])  # psnr_y, ssim_y
_GUIDANCE = "model.adapter.guidance"


def _combination(*types: str) -> Ablation:
    return Ablation("+".join(types) or "none", {_GUIDANCE: types}, (_GUIDANCE,), "combination", types)


TINY_STUDY = Study(
    name="tiny",
    question="Which guidance types help?",
    reference=_combination(),
    ablations=(
        _combination("canny"),
        _combination("superpixel"),
        _combination("canny", "superpixel"),
        _combination("noise"),
    ),
    primary_metric="ssim_y",
    controls={"noise": "negative"},
)


_BRIGHTNESS = "model.sampler.brightness"

# Nothing is trained again for these: they differ in how they sample.
TINY_SAMPLING = Study(
    name="tiny",
    question="How bright?",
    reference=Ablation("as-it-is", {_BRIGHTNESS: 0.0}, (_BRIGHTNESS,), "nothing added"),
    ablations=(
        Ablation("bright", {_BRIGHTNESS: 0.1}, (_BRIGHTNESS,), "brighter"),
        Ablation("dark", {_BRIGHTNESS: -0.1}, (_BRIGHTNESS,), "darker"),
    ),
    primary_metric="psnr_y",
)


@dataclass(frozen=True)
class TinySampler:
    """How it restores."""

    brightness: float = 0.0


@dataclass(frozen=True)
class TinyAdapter:
    """The field of the adapter's config that the study changes."""

    guidance: tuple[str, ...] = ()
    width: int = 4


class TinyModule(lightning.LightningModule):
    """A trained residual on lq_up; guidance names shift it, so that different ablations differ."""

    def __init__(
        self,
        adapter: TinyAdapter = TinyAdapter(),
        scale_factor: int = 4,
        seed: int = 0,
        sampler: TinySampler = TinySampler(),
    ) -> None:
        super().__init__()
        self.scale_factor, self.brightness, self.seed = scale_factor, sampler.brightness, seed
        self.weight = torch.nn.Parameter(torch.randn(3, generator=torch_generator(seed, "init")) * 0.01)
        self.shift = 0.02 * len(adapter.guidance)

    def restore(self, batch: SRBatch) -> torch.Tensor:
        """lq -> sr."""
        lq_up = upsample_lq(batch["lq"], self.scale_factor)
        return (lq_up + self.weight.view(1, 3, 1, 1) + self.shift + self.brightness).clamp(0, 1)

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """Squared error."""
        lq_up = upsample_lq(batch["lq"], self.scale_factor)
        loss = (lq_up + self.weight.view(1, 3, 1, 1) + self.shift - batch["hq"]).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TinyData(lightning.LightningDataModule):
    """Smooth random crops: `photos` photographs with two crops each. An epoch is one batch, so it has no position."""

    def __init__(self, scale_factor: int = 4, photos: int = 3, size_px: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.scale_factor, self.photos, self.size_px, self.seed = scale_factor, photos, size_px, seed

    def _loader(self) -> DataLoader:
        keys = [f"photo{p}/0-{c}" for p in range(self.photos) for c in range(2)]
        samples = []
        for key in keys:
            coarse = torch.rand(1, 3, self.size_px // 4, self.size_px // 4, generator=torch_generator(0, key))
            samples.append((key, resize(coarse, self.size_px, self.size_px)[0]))
        collate = lambda items: {"keys": [k for k, _ in items], "hq": torch.stack([i for _, i in items])}  # noqa: E731
        return DataLoader(samples, len(samples), collate_fn=collate)

    def train_dataloader(self) -> DataLoader:
        """The same crops."""
        return self._loader()

    def val_dataloader(self) -> DataLoader:
        """The same crops."""
        return self._loader()

    def on_after_batch_transfer(self, batch: SRBatch, dataloader_idx: int) -> SRBatch:
        """Add lq."""
        size = self.size_px // self.scale_factor
        return {**batch, "lq": resize(batch["hq"], size, size)}


def tiny_components() -> Components:
    """The stand-ins and Lightning's Trainer."""
    return Components(TinyModule, TinyData, lightning.Trainer)


def write_recipe(folder: Path, text: str = "") -> Path:
    """A recipe for the stand-ins; `text` is appended."""
    path = folder / "recipe.yaml"
    path.write_text(
        "study: {name: tiny, seeds: [0, 1]}\n"
        "model: {adapter: {width: 4}}\n"
        "data: {class_path: TinyData, init_args: {photos: 3}}\n"
        "trainer: {max_steps: 2, accelerator: cpu, devices: 1, log_every_n_steps: 1}\n" + text
    )
    return path


def run_tiny(
    study: Study, folder: Path, retries: int = 1, recipe: Path | None = None, **changes: object
) -> StudyResult:
    """Run a study of the stand-ins in `folder/out`; `changes` are arguments of open_study."""
    arguments = {"protocol": FAST, "components": tiny_components()} | changes
    opened = open_study(study, recipe or write_recipe(folder), folder / "out", **arguments)  # type: ignore[arg-type]
    return opened.run(LocalExecutor([Slot("cpu0", 1)], retries))


class SlowModule(TinyModule):
    """Takes its time, so that it can be stopped on the way."""

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """As quick steps, later."""
        time.sleep(0.05)
        return super().training_step(batch, batch_index)


class RankModule(TinyModule):
    """Leaves a file for every process that trains."""

    def on_train_start(self) -> None:
        """rank0, rank1, .. in the folder of the training."""
        Path(self.trainer.default_root_dir, f"rank{self.global_rank}").touch()


class FailingModule(TinyModule):
    """Cannot be trained with seed 1."""

    def training_step(self, batch: SRBatch, batch_index: int) -> torch.Tensor:
        """Raise for seed 1."""
        if self.seed == 1:
            raise MegaSRError("the loss is not finite at step 1")
        return super().training_step(batch, batch_index)
