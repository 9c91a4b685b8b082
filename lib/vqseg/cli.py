"""The command line `vqseg`. Exit codes: 0 done, 1 failed, 2 wrong use."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from vqseg.errors import ConfigError, DataError, VQSegError
from vqseg.monai_import import import_monai
from vqseg.progress import image_bar, progress_report
from vqseg.token_commands import token

__all__ = ["main"]

_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
_NEW_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
_MODEL = click.option("--model", required=True, type=_FOLDER, help="a run, a store or one version of a model")


class _Commands(click.Group):
    """Says what a user can mend without a stack trace, with the exit code that fits."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ConfigError as error:
            raise click.UsageError(str(error)) from None
        except VQSegError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'a file'}: {error.strerror or error}") from None


class _OnImages(click.Command):
    """One that works with images, for which monai is needed."""

    def invoke(self, context: click.Context) -> Any:
        import_monai()
        return super().invoke(context)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=None, version=__import__("vqseg").__version__)
def main() -> None:
    """VQ-Seg: segmentation from few labelled and many unlabelled studies."""


main.add_command(token)


@main.command(cls=_OnImages)
@click.option("--images", required=True, type=_FOLDER, help="images: NIfTI files or folders with a DICOM series")
@click.option("--labels", required=True, type=_FOLDER, help="masks with the names of their images; some may be missing")
@click.option("--out", required=True, type=_NEW_FOLDER, help="the run's folder")
@click.option("--split", type=_FILE, help="split file: labels, train, val and labelled subsets")
@click.option("--labelled", help="subset of the split whose masks are used; without it all of `train`")
@click.option("--config", "source", help="preset or settings file")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a setting, for example train.seed=1"
)
@click.option("--method", default="vqseg", show_default=True, help="training method; a wrong one lists those there are")
@click.option("--steps", type=click.IntRange(min=1), help="short for --set train.steps=N")
@click.option("--seed", type=click.IntRange(min=0), help="short for --set train.seed=N")
@click.option("--resume", is_flag=True, help="continue the unfinished training in --out")
@_DEVICE
def train(
    images: Path,
    labels: Path,
    out: Path,
    split: Path | None,
    labelled: str | None,
    source: str | None,
    overrides: tuple[str, ...],
    method: str,
    steps: int | None,
    seed: int | None,
    resume: bool,
    device: str,
) -> None:
    """Train a model on labelled and unlabelled images."""
    from vqseg.config import load_config
    from vqseg.data.studies import find_studies, label_names, read_split, without_labels
    from vqseg.report.listing import REPORTS
    from vqseg.training.run import train as run_training

    settings = _settings(overrides, steps, seed)
    if labelled and not split:
        raise click.UsageError("--labelled names a subset of a split file; give it with --split")
    studies, validation = find_studies(images, labels), None
    if split:
        parts = read_split(split)
        settings.setdefault("data.labels", parts.labels)
        training = parts.members("train", studies)
        with_masks = {study.id for study in (parts.members(labelled, studies) if labelled else training)}
        validation = parts.members("val", studies)
        studies = [s if s.id in with_masks else without_labels([s])[0] for s in training]
        _need_labels(
            [study for study in [*studies, *validation] if study.id in with_masks or study in validation], labels
        )
    config = load_config(source, settings)
    if not config.data.labels:
        config = load_config(source, settings | {"data.labels": label_names(images, studies)})
    with progress_report(config.train.steps) as report:
        result = run_training(
            studies,
            out,
            config,
            method=method,
            device=device,
            resume=resume,
            validation=validation,
            on_progress=report,
        )
    for entry in result.left_out:
        click.echo(f"left out: {entry['reason']}", err=True)
    live = result.live.name if result.live else "none"
    click.echo(f"{result.steps} steps; best Dice {_number(result.best)} on {result.validated_on}")
    click.echo(f"live version {live} in {out / 'models'}")
    if result.report:
        click.echo(f"report in {out / REPORTS / result.report}")


@main.command(cls=_OnImages)
@click.option("--images", required=True, type=_FOLDER, help="images: NIfTI files or folders with a DICOM series")
@click.option("--out", required=True, type=_NEW_FOLDER, help="the run's folder")
@click.option("--config", "source", help="preset or settings file")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a setting")
@click.option("--steps", type=click.IntRange(min=1), help="short for --set train.steps=N")
@click.option("--seed", type=click.IntRange(min=0), help="short for --set train.seed=N")
@_DEVICE
def pretrain(
    images: Path,
    out: Path,
    source: str | None,
    overrides: tuple[str, ...],
    steps: int | None,
    seed: int | None,
    device: str,
) -> None:
    """Train a codebook on images alone, for `vqseg rank` before anything is labelled."""
    from vqseg.config import load_config
    from vqseg.data.studies import find_studies
    from vqseg.training.self_supervised import pretrain as run_training

    config = load_config(source, _settings(overrides, steps, seed))
    with progress_report(config.train.steps) as report:
        result = run_training(find_studies(images), out, config, device=device, on_progress=report)
    for reason in result.left_out.values():
        click.echo(f"left out: {reason}", err=True)
    click.echo(f"version {result.version.name} in {out / 'models'}; it segments nothing")


@main.command(cls=_OnImages)
@_MODEL
@click.option("--images", required=True, type=_FOLDER, help="images to segment")
@click.option("--out", required=True, type=_NEW_FOLDER, help="folder for one mask per image")
@_DEVICE
def predict(model: Path, images: Path, out: Path, device: str) -> None:
    """Segment every image of a folder; each mask lies on its image's own grid."""
    from vqseg.data.reading import read_image, write_mask
    from vqseg.data.studies import find_studies
    from vqseg.evaluation import PREDICTIONS_FILE
    from vqseg.files import write_json
    from vqseg.inference.predictor import Predictor

    if out.resolve() == images.resolve():
        raise click.UsageError("--out must be another folder than --images: the masks have the names of their images")
    predictor = Predictor.load(model, device)
    failed = []
    studies = find_studies(images)
    for study in image_bar(studies, "predict"):
        try:
            volume = read_image(study.image)
            write_mask(predictor.predict(volume).mask, volume.grid, out / f"{study.id}.nii.gz")
        except VQSegError as error:
            failed.append(str(error))
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / PREDICTIONS_FILE,
        {
            "labels": predictor.labels,
            "version": predictor.version,
            "masks": len(studies) - len(failed),
            "failed": failed,
        },
    )
    if failed:
        raise DataError("\n".join([f"{len(failed)} of {len(studies)} images could not be segmented:", *failed]))
    click.echo(f"{len(studies)} masks in {out}")


@main.command(cls=_OnImages)
@_MODEL
@click.option("--images", required=True, type=_FOLDER, help="all images, those with a label as well")
@click.option("--strategy", required=True, help="name of a strategy; a wrong one lists those there are")
@click.option("--labelled", type=_FOLDER, help="masks of the studies that are labelled; default: none is")
@click.option("--top", type=click.IntRange(min=1), help="choose and list this many; default: list all")
@click.option("--progress", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="share of labelling done")
@click.option("--seed", default=0, show_default=True, help="of the strategies that draw")
@click.option("--out", required=True, type=_FILE, help="JSON file for the ranking")
@_DEVICE
def rank(
    model: Path,
    images: Path,
    strategy: str,
    labelled: Path | None,
    top: int | None,
    progress: float,
    seed: int,
    out: Path,
    device: str,
) -> None:
    """Rank unlabelled studies: which one to label next, and why."""
    from vqseg.active.ranking import rank_studies
    from vqseg.active.strategies import make_strategy
    from vqseg.data.studies import find_studies
    from vqseg.files import write_json
    from vqseg.inference.predictor import Predictor

    make_strategy(strategy)
    studies = find_studies(images, labelled)
    predictor = Predictor.load(model, device)
    ranking = rank_studies(predictor, image_bar(studies, "rank"), strategy, top=top, seed=seed, progress=progress)
    for reason in ranking["left_out"].values():
        click.echo(f"left out: {reason}", err=True)
    write_json(out, ranking)
    for study in ranking["studies"][:10]:
        click.echo(f"{study['rank']:4}  {study['id']}  {study['reason']}")
    click.echo(f"{ranking['scored']} studies scored by version {predictor.version}; ranking in {out}")


@main.command(cls=_OnImages)
@click.option("--images", required=True, type=_FOLDER, help="images of the pool")
@click.option("--labels", required=True, type=_FOLDER, help="masks of all images")
@click.option("--out", required=True, type=_NEW_FOLDER, help="folder for the results; what is in it is not made again")
@click.option(
    "--split", type=_FILE, help="split file: `train` is the pool, `val` is scored; default: a share of all is scored"
)
@click.option("--config", "source", help="preset or settings file")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="override a setting")
@click.option("--method", default="vqseg", show_default=True, help="training method")
@click.option("--arms", help="strategies and controls, with commas between them; default: all")
@click.option(
    "--start",
    default=3,
    show_default=True,
    type=click.IntRange(min=0),
    help="studies labelled at first; 0: arms choose",
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="how often an arm chooses")
@click.option("--picks", default=3, show_default=True, type=click.IntRange(min=1), help="studies labelled each round")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="number of seeds, from 0 on")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="trainings at a time")
@_DEVICE
def simulate(
    images: Path,
    labels: Path,
    out: Path,
    split: Path | None,
    source: str | None,
    overrides: tuple[str, ...],
    method: str,
    arms: str | None,
    start: int,
    rounds: int,
    picks: int,
    seeds: int,
    jobs: int,
    device: str,
) -> None:
    """Replay annotation on a pool whose masks are known, and compare strategies."""
    from vqseg.config import load_config
    from vqseg.data.split import lock_split
    from vqseg.data.studies import find_studies, label_names, read_split
    from vqseg.simulation.arms import arm_names
    from vqseg.simulation.replay import Protocol
    from vqseg.simulation.report import TABLE_FILE
    from vqseg.simulation.simulation import Simulation
    from vqseg.simulation.simulation import simulate as run_simulation

    settings = _settings(overrides)
    studies = find_studies(images, labels)
    out.mkdir(parents=True, exist_ok=True)
    if split:
        parts = read_split(split)
        settings.setdefault("data.labels", parts.labels)
        pool, validation = (parts.members(name, studies) for name in ("train", "val"))
    config = load_config(source, settings)
    if not config.data.labels:
        config = load_config(source, settings | {"data.labels": label_names(images, studies)})
    if not split:
        data = config.data
        locked = lock_split(studies, data.validation_fraction, data.patient_pattern, out / "split.json")
        pool, validation = locked.training, locked.validation
    _need_labels([*pool, *validation], labels)
    simulation = Simulation(pool, validation, config, method, Protocol(start, rounds, picks), out, device)
    names = arms.split(",") if arms else arm_names(config.active.strategy)
    with progress_report(seeds * (len(names) + 1), "simulate", "replay") as report:
        summary = run_simulation(simulation, names, range(seeds), jobs, report)
    for name, arm in summary["arms"].items():
        click.echo(f"{name:32} {arm['area']['mean']:.4f}")
    click.echo(f"area under Dice over {rounds} rounds; all of it in {out / TABLE_FILE}")


@main.command(cls=_OnImages)
@click.option("--predictions", required=True, type=_FOLDER, help="masks to score")
@click.option("--labels", required=True, type=_FOLDER, help="reference masks with the names of the predictions")
@click.option("--out", required=True, type=_FILE, help="JSON file for the scores")
def evaluate(predictions: Path, labels: Path, out: Path) -> None:
    """Score predicted masks: Dice, HD95 and ASSD in millimetres, per volume and class."""
    from vqseg.evaluation import evaluate as score
    from vqseg.files import write_json

    scores = score(predictions, labels)
    write_json(out, scores)
    mean = scores["mean"]
    click.echo(f"{len(scores['per_case'])} cases: " + ", ".join(f"{name} {_number(mean[name])}" for name in mean))


@main.command()
@click.option("--store", required=True, type=_FOLDER, help="a store or a run")
@click.argument("action", type=click.Choice(["list", "show", "rollback"]))
@click.argument("version", required=False)
def models(store: Path, action: str, version: str | None) -> None:
    """List a model's versions, show the manifest of one (by default the live one), or go back to an earlier one."""
    from vqseg.store import ModelStore, find_version

    versions = ModelStore(store / "models" if (store / "models").is_dir() else store)
    if action == "rollback":
        live = versions.make_live(version) if version else versions.rollback()
        click.echo(f"version {live.name} is live")
    elif action == "show":
        click.echo(json.dumps(find_version(versions.folder / version if version else store).manifest, indent=1))
    else:
        current = versions.live()
        for one in versions.versions():
            mark = "live" if current and one.name == current.name else ""
            click.echo(f"{one.name}  {one.manifest.get('created', '')}  Dice {_number(one.score)}  {mark}".rstrip())
        if current is None:
            click.echo(f"{store}: holds no trained model yet")


@main.command("fetch-foundation")
@click.argument("name")
@click.argument("folder", type=_NEW_FOLDER)
def fetch_foundation(name: str, folder: Path) -> None:
    """Put the foundation model NAME of the Hugging Face hub, such as facebook/dinov2-small, into FOLDER.

    For machines without internet: fetch it elsewhere, copy the folder, and give it as foundation.name or
    model.pretrained.
    """
    from vqseg.networks.foundation import fetch_foundation as fetch

    fetch(name, folder)
    click.echo(f"{name} is in {folder}; use it with --set foundation.name={folder}")


@main.command()
def doctor() -> None:
    """Say in words what is installed, which devices there are and what is missing."""
    from vqseg.doctor import report

    findings = report()
    for finding in findings:
        click.echo(f"{'ok     ' if finding.fine else 'MISSING'}  {finding.words}")
    if not all(finding.fine for finding in findings):
        raise DataError("something is missing; see above")


def _settings(overrides: Iterable[str], steps: int | None = None, seed: int | None = None) -> dict[str, Any]:
    """Settings by key, of the options that give them."""
    from vqseg.settings_source import key_and_value

    settings: dict[str, Any] = dict(map(key_and_value, overrides))
    short = {"train.steps": steps, "train.seed": seed}
    return settings | {key: value for key, value in short.items() if value is not None}


def _need_labels(studies: Iterable, labels: Path) -> None:
    missing = [study.id for study in studies if study.label is None]
    if missing:
        raise DataError(f"{labels}: holds no mask for {missing[0]}, which is needed ({len(missing)} missing in all)")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
