"""The commonest mistakes are answered before torch is imported, and nothing that the parser takes is refused."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import pytest
import yaml

from megasr import cli
from megasr.commands import early
from megasr.commands.schema import DATA_MODULES, all_keys, class_schema, config_schema, data_modules
from megasr.commands.upscale import add_options
from megasr.errors import MegaSRError, UsageError
from megasr.images import ColorFix
from megasr.inference.pipeline import PRESETS
from tests.helpers.losses import one_step
from tests.helpers.sources import ROOT
from tests.helpers.training import fit, make_batch

RECIPE = "experiments/tiny/megasr.yaml"
STUDY = "experiments/tiny/prior_selection_quick.yaml"
FIT = ("fit", "--config", RECIPE)
ONE_STEP = ("fit", "--config", "experiments/tiny/one_step.yaml", "--trainer.default_root_dir={}/run")
FOLDERS = (*FIT, "--data=FolderDataModule")
# What was typed -> what is said. {} is a folder in which the test has put what is named.
MISTAKES = {
    (*FIT, "--model.sede", "1"): "unknown key 'model.sede'; did you mean model.seed",
    ("fit", "--config", "{}/misspelt.yaml"): "unknown key 'model.adapter.saft_wdth'; did you mean model.adapter.saft_w",
    ("fit", "--config", "{}/absent.yaml"): "absent.yaml: no such file",
    ("fit", "--config", "{}/broken.yaml"): "broken.yaml is not YAML that can be used",
    ("fit",): "no data: name a data module in --config, or with --data: BenchmarkDataModule",
    (*FIT, "--data", "SceneDatModule"): "unknown data module 'SceneDatModule'; did you mean SceneDataModule",
    (*FIT, "--data.batch_sise=1"): "unknown key of SceneDataModule 'batch_sise'; did you mean batch_size",
    (*FIT, "--model.adapter.guidance", "[heed,depth]"): "unknown guidance type 'heed'; did you mean hed?",
    (*FIT, "--model.adapter.guidance", "heed", "depth"): "unknown guidance type 'heed'; did you mean hed?",
    (*FIT, "--model.adapter.gate=liner"): "model.adapter.gate must be one of linear, channel, scalar, got 'liner'",
    (*FIT, "--model.prior=tinny"): "no file, folder, hub id or known weight is called 'tinny'; did you mean tiny?",
    (*FIT, "--model.optimizer.lr=1e-4"): "unknown key 'model.optimizer.lr'; did you mean model.optimizer.learning_rate",
    (*FIT, "--model.wd=0.1"): "unknown key 'model.wd'; did you mean model.optimizer.weight_decay",
    (*FIT, "--trainer.max_stepz=3"): "unknown key 'trainer.max_stepz'; did you mean trainer.max_steps",
    (*FIT, "--trainer.epochs=3"): "unknown key 'trainer.epochs'; did you mean trainer.max_epochs",
    (*ONE_STEP, "--model.objective.terms.ll", "1"): "unknown term of objective.terms 'll'; did you mean",
    (*ONE_STEP, "--model.objective.terms", "{l1: 1, lpips_alx: 2}"): "'lpips_alx'; did you mean lpips_alex, lpips_vgg?",
    (*FIT, "--trainer.default_root_dir={}/held"): "held already holds a run: resume it with --ckpt_path last",
    (*FIT, "--ckpt_path={}/absent.ckpt"): "no checkpoint {}/absent.ckpt: give the path of one that `megasr fit` wrote",
    (*FOLDERS, "--data.train_root={}/absent"): "absent: no such folder",
    (*FOLDERS, "--data.train_root={}/empty"): "empty: holds no image",
    FOLDERS: "FolderDataModule needs data.train_root",
    ("test", "--config", RECIPE, "--evaluation.protocol=weight-fre-v1"): "unknown protocol 'weight-fre-v1'; did you",
    ("test", "--config", RECIPE, "--evaluation.metrics=psnr_yy,ssim_y"): "unknown metric of protocol weight-free-v1",
    ("test", "--config", RECIPE, "--evaluation.protcol=x"): "unknown key 'evaluation.protcol'; did you mean evalu",
    ("pretrain", "--config", "experiments/tiny/vae.yaml", "--model.see=1"): "unknown key 'model.see'; did you",
    ("upscale", "{}/photo.png", "{}/out.png", "--checkpoint", "{}/absent.ckpt"): "no checkpoint {}/absent.ckpt",
    ("upscale", "{}/absent.png", "{}/out.png", "--checkpoint", "tiny"): "absent.png: no such file or folder",
    ("upscale", "{}/empty", "{}/out", "--checkpoint", "tiny"): "empty: holds no image",
    ("upscale", "{}/photo.png", "{}/out.png", "--checkpoint", "tiny", "--preset=best"): "invalid choice: 'best'",
    ("upscale", "{}/photo.png", "{}/out.png", "--checkpoint", "tiny", "--color-fix=x"): "invalid choice: 'x'",
    ("study", "run", "prior_selecton_quick", "--config", STUDY, "--output", "{}/study"): (
        "is a recipe for study 'prior_selection_quick', not for 'prior_selecton_quick'"
    ),
    ("study", "run", "fusion", "--config", "{}/absent.yaml", "--output", "{}/study"): "cannot read recipe",
    ("study", "plan", "fusion", "--config", "{}/study.yaml", "--output", "{}/study"): "unknown key 'model.sede'",
    ("export", "{}/absent", "{}/out"): "no checkpoint {}/absent",
    ("weights", "fetch", "RN50.pt", "sd21-bas"): "unknown weight 'sd21-bas'; did you mean sd21-base",
    ("params", "--guidance", "hed,heed"): "unknown guidance type 'heed'; did you mean hed?",
    ("evaluate", "docs", "--protocol", "weight-fre-v1"): "unknown protocol 'weight-fre-v1'; did you mean weight",
    ("evaluate", "docs", "--metrics", "psnr_yy"): "unknown metric of protocol weight-free-v1 'psnr_yy'; did you mean",
    ("evaluate", "{}/empty", "--hq", "{}/empty"): "empty: holds no image",
}  # fmt: skip
# These are answered after torch is imported, and in one line as well.
LATER = {
    (*ONE_STEP, "--model.objective.terms.l1", "-1"): "objective.terms.l1 must be a weight of 0 or more, got -1.0",
    (*ONE_STEP, "--model.objective.terms={l1:1}"): "model.objective.terms",
    (*ONE_STEP, "--model.sampler.num_steps=20"): "objective.kind one_step needs sampler.num_steps 1, got 20",
    (*ONE_STEP, "--model.objective.kind=null"): "objective.terms would do nothing: objective.kind is denoise",
    ("upscale", "docs/images/demo.png", "{}/out.png", "--checkpoint", "{}/one.ckpt", "--preset=fast"): (
        "preset='fast': the adapter was trained to restore in 1; leave it out"
    ),
    ("study", "plan", "objective", "--config", "{}/objective.yaml", "--output", "{}/study"): (
        "unknown protocol 'paired-v7'; did you mean paired-v1"
    ),
}
RUN_ALL = """
import contextlib, io, json, sys
from megasr.cli import main
for argv in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(argv)
    heavy = sorted({"torch", "lightning", "diffusers", "transformers", "jsonargparse"} & set(sys.modules))
    print(json.dumps([code, said.getvalue(), heavy]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "config.yaml").write_text("model: {}\n")
    (tmp_path / "held" / "last.ckpt").touch()
    (tmp_path / "photo.png").touch()
    text = (ROOT / RECIPE).read_text()
    (tmp_path / "misspelt.yaml").write_text(text.replace("saft_width", "saft_wdth"))
    (tmp_path / "broken.yaml").write_text("model: [1, 2\ndata: x\n")
    (tmp_path / "study.yaml").write_text("study: {name: fusion, seeds: [0]}\nmodel: {sede: 1}\n")
    return tmp_path


def answers(mistakes: Mapping[tuple[str, ...], str], folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Each command of one shell and the heavy modules that its answer took; checks that the answer is the line."""
    typed = [[word.replace("{}", str(folder)) for word in argv] for argv in mistakes]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(typed), capture_output=True, text=True, check=True, cwd=ROOT
    )
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    for argv, says, (code, said, heavy) in zip(typed, mistakes.values(), printed, strict=True):
        assert code in (1, 2), argv
        (line,) = said.splitlines()
        assert line.startswith("megasr: error: ") and says.replace("{}", str(folder)) in line, line
        yield argv, heavy


def test_mistakes_are_answered_before_torch_is_imported(folder: Path) -> None:
    for argv, heavy in answers(MISTAKES, folder):
        assert not heavy, f"{' '.join(argv)} was answered after {', '.join(heavy)}"


def test_mistakes_of_one_step_training_are_answered_in_one_line(folder: Path) -> None:
    text = (ROOT / "experiments/tiny/objective.yaml").read_text()
    (folder / "objective.yaml").write_text(text.replace("paired-v1", "paired-v7"))
    fit(one_step({"l1": 1.0}), make_batch(), 1, default_root_dir=folder).save_checkpoint(folder / "one.ckpt")
    assert len(list(answers(LATER, folder))) == len(LATER)


def recipes() -> list[Path]:
    return sorted((ROOT / "experiments").rglob("*.yaml"))


@pytest.mark.parametrize("path", recipes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_recipe_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    raw = yaml.safe_load(path.read_text())
    try:
        if "study" in raw:
            early.check_recipe(raw)
        else:
            command = "pretrain" if "class_path" in raw.get("model", {}) else "fit"
            overlay = [] if "data" in raw else ["--data=SceneDataModule"]
            early.check_command(command, [*overlay, "--config", str(path), f"--trainer.default_root_dir={tmp_path}"])
    except MegaSRError as error:  # of weights and folders that are made or fetched first
        assert "is not on this machine" in str(error) or "no file, folder" in str(error)
    except UsageError as error:
        assert "no such folder" in str(error)


def test_every_key_of_the_parsers_is_known() -> None:
    from megasr.commands.lightning_cli import ParsedCLI, _call

    cli = _call(ParsedCLI, ["fit", "--data=PhotoDataModule"])
    for command, parser in cli._subcommand_parsers.items():
        if command != "predict":
            assert set(parser.get_defaults().keys()) - {"config"} <= set(all_keys(config_schema(command)))


def test_every_argument_of_the_data_modules_is_known() -> None:
    from jsonargparse import ArgumentParser
    from lightning import LightningDataModule

    from data_pipelines import datamodules
    from data_pipelines.benchmarks import BENCHMARKS
    from megasr.guidance.registry import list_guidance
    from megasr.losses.restoration import TERMS

    for name in datamodules.__all__:
        parser = ArgumentParser()
        parser.add_class_arguments(getattr(datamodules, name), "data")
        taken = {key.split(".")[1] for key in list(parser.get_defaults().keys())}
        assert taken <= set(class_schema(DATA_MODULES, name)["properties"])
    assert sorted(early.guidance_names()) == list_guidance()
    assert early.benchmark_names() == list(BENCHMARKS)
    assert early.term_names() == list(TERMS)
    named = {name: getattr(datamodules, name) for name in datamodules.__all__}
    assert data_modules() == [name for name, made in named.items() if issubclass(made, LightningDataModule)]


@pytest.mark.parametrize("command", ["fit", "pretrain", "study"])
def test_the_schema_is_printed_for_editors(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema", command]) == 0
    properties = json.loads(capsys.readouterr().out)["properties"]
    assert ("study" in properties) == (command == "study")
    if command == "pretrain":
        assert set(properties["export"]["properties"]) >= {"folder"}
        return
    adapter = properties["model"]["properties"]["adapter"]["properties"]
    stage1, gate = adapter["stage1"], adapter["gate"]
    assert stage1["enum"] == ["v1", "v2"] and stage1["default"] == "v2"
    assert {"enum": ["linear", "channel", "scalar"]} in gate["anyOf"] and gate.get("default") is None
    assert gate["description"].startswith("form of CSM's")
    assert properties["trainer"]["properties"]["max_steps"]["type"] == "integer"
    names = [rule["if"]["properties"]["class_path"]["enum"][0] for rule in properties["data"]["anyOf"][1]["allOf"]]
    assert names == data_modules()


def test_no_part_of_a_data_module_is_suggested(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    early.check_command("fit", ["--data=Parts"])  # the parser knows more


@pytest.mark.parametrize(
    "options",
    [
        ["--data=my.module.Data", "--data.anything=1"],
        ["--data=SceneDataModule", "--trainer.callbacks+=my.Callback", "--model.adapter.guidance=[own]"],
        ["--data=realsr", "--root=somewhere"],
        ["--data=SceneDataModule", "--model.optimizer.learning_rate=1e-4", "--model.optimizer.state_bits=null"],
        ["--data=SceneDataModule", "--trainer.precision=bf16-mixed", "--trainer.devices=[0]", "--trainer.max_time=0:1"],
        ["--data=SceneDataModule", "--trainer.limit_val_batches=0.5", "--model.vision.model=tiny", "--model.seed=0x10"],
        ["--data=SceneDataModule", "--data.init_args.batch_size=2", "--data.dict_kwargs.x=1", "--print_config"],
        ["--data=SceneDataModule", "--trainer.logger.class_path=lightning.pytorch.loggers.CSVLogger"],
        ["--config", "{data: SceneDataModule, model: {adapter: {guidance: 'hed,depth'}}}"],
        ["--config", "{data: SceneDataModule, " + "seed_everything: 1, " * 20 + "model: {seed: 1}}"],
        ["--config", "{model: {scale_factor: 2}, data: {class_path: SceneDataModule, init_args: {scale_factor: 2}}}"],
        ["--data=PhotoDataModule", "--data.crop_size_px=64", "--data=SceneDataModule", "--data.pool=3"],
    ],
)
def test_what_may_be_right_is_left_to_the_parser(
    options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    early.check_command("fit", [*options, f"--trainer.default_root_dir={tmp_path}"])


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["--model.adapter.guidance", "hed,depth", "--model.seed", "1"], ["[hed,depth]", "--model.seed", "1"]),
        (["--model.adapter.guidance", "hed", "depth"], ["[hed,depth]"]),
        (["--model.adapter.guidance=hed, depth"], ["[hed,depth]"]),
        (["--model.adapter.guidance", "[hed, depth]"], ["[hed, depth]"]),
        (["--model.adapter.guidance=[]"], ["[]"]),
        (["--model.adapter.guidance="], ["[]"]),
        (["--model.sampler.shown_guidance", "null"], ["null"]),
        (["--evaluation.metrics", "psnr_y", "ssim_y"], ["[psnr_y,ssim_y]"]),
    ],
)
def test_names_may_be_written_in_all_ways(typed: list[str], read: list[str]) -> None:
    key = typed[0].partition("=")[0]
    assert early.join_names(typed) == [f"{key}={read[0]}", *read[1:]]


def test_upscale_offers_what_the_library_has() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    choices = {action.dest: action.choices for action in parser._actions}
    assert set(choices["preset"]) == set(PRESETS)
    assert set(choices["color_fix"]) == set(get_args(ColorFix))
