"""Every method trains on the same loop: what it learns from, what network it builds, and that it can be continued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import (
    LABELS,
    TINY_2D,
    cut_off_from_the_hub,
    foundation_folder,
    make_affine,
    make_volume,
    tiny_config,
    tiny_network,
    write_studies,
)

from vqseg.config import Config
from vqseg.data.grid import Grid
from vqseg.data.guidance import guide_study, plan_guidance
from vqseg.data.plan import plan
from vqseg.data.preparation import prepare_study
from vqseg.data.studies import Study
from vqseg.errors import ConfigError
from vqseg.inference.predictor import Predictor
from vqseg.networks.build import build_network
from vqseg.networks.foundation import FoundationModel
from vqseg.networks.network import Network
from vqseg.networks.unet import UNet
from vqseg.networks.vqseg import VQSeg
from vqseg.store import ModelStore
from vqseg.training import run as run_module
from vqseg.training.checkpoint import Checkpoint, load_checkpoint
from vqseg.training.methods import METHODS
from vqseg.training.run import TrainingResult, train
from vqseg.training.trainer import TrainedStep, Trainer

CPU = torch.device("cpu")
# Two steps on labelled patches alone, then two with the unlabelled ones.
SHORT: dict[str, Any] = {
    "train.steps": 4,
    "train.supervised_share": 0.5,
    "train.validate_every": 4,
    "train.checkpoint_every": 4,
}
DIMS: dict[int, dict[str, Any]] = {
    2: TINY_2D | {"train.labelled_batch": 1, "train.unlabelled_batch": 2},
    3: {"train.labelled_batch": 2, "train.unlabelled_batch": 1},
}
COPY_PASTE = {"labelled_inward", "pasted_inward", "labelled_outward", "pasted_outward"}
CODEBOOK = {"reconstruction", "codebook"}
# The terms of each method's loss, before and after the supervised share.
TERMS: dict[str, tuple[set[str], set[str]]] = {
    "supervised": ({"labelled"}, {"labelled"}),
    "mean-teacher": ({"labelled"}, {"labelled", "perturbed"}),
    "cutmix": ({"labelled"}, {"labelled", "perturbed", "strong"}),
    "unimatch": ({"labelled"}, {"labelled", "perturbed", "strong"}),
    "bcp": (COPY_PASTE, COPY_PASTE),
    "vqseg": ({"labelled"} | CODEBOOK, {"labelled", "perturbed", "strong"} | CODEBOOK),
    "vqseg+bcp": ({"labelled"} | CODEBOOK, {"labelled", "perturbed", "strong"} | COPY_PASTE | CODEBOOK),
}
QUANTIZED = {"vqseg", "vqseg+bcp"}

by_method = pytest.mark.parametrize("method", METHODS)
in_2d_and_3d = pytest.mark.parametrize("dims", [2, 3])


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off_from_the_hub(monkeypatch)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    return write_studies(tmp_path_factory.mktemp("studies"), 4, 2)


@pytest.fixture(scope="module")
def foundation(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that put a foundation model to use."""
    folder = foundation_folder(tmp_path_factory.mktemp("foundation"))
    return {"foundation.name": str(folder), "foundation.size": 56}


class StopError(Exception):
    pass


def run_of(
    method: str, config: Config, studies: Sequence[Study], run: Path, *, resume: bool = False, stop: int | None = None
) -> tuple[TrainingResult, list[dict[str, float]]]:
    """A training and the losses of each of its steps."""
    losses: dict[int, dict[str, float]] = {}

    def note(status: dict[str, Any]) -> None:
        if "losses" in status:
            losses[status["step"]] = status["losses"]
        if status["step"] == stop:
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_STATUS_SECONDS", 0.0)
        result = train(studies, run, config, method=method, device="cpu", resume=resume, on_progress=note)
    return result, [losses[step] for step in sorted(losses)]


def test_every_method_is_tested() -> None:
    assert set(TERMS) == set(METHODS)


@in_2d_and_3d
@by_method
def test_method_trains_on_its_terms_and_publishes_what_it_trained(
    method: str, dims: int, studies: list[Study], tmp_path: Path
) -> None:
    config = tiny_config(DIMS[dims] | SHORT)
    result, losses = run_of(method, config, studies, tmp_path)
    assert result.steps == 4
    before, after = TERMS[method]
    assert [set(terms) for terms in losses] == [before, before, after, after]
    assert all(np.isfinite(list(terms.values())).all() for terms in losses)
    assert result.live is not None
    network = Predictor.load(tmp_path, "cpu").network
    assert type(network) is (VQSeg if method in QUANTIZED else UNet)
    assert result.live.config.model.quantized is (method in QUANTIZED)
    assert result.live.manifest["method"] == method
    assert result.live.manifest["data"]["unlabelled"] == (0 if method == "supervised" else 2)


@by_method
def test_method_trains_the_other_network_where_the_settings_say_so(
    method: str, studies: list[Study], tmp_path: Path
) -> None:
    quantized = method not in QUANTIZED
    config = tiny_config(DIMS[2] | SHORT | {"model.quantized": quantized})
    result, losses = run_of(method, config, studies, tmp_path)
    assert isinstance(Predictor.load(tmp_path, "cpu").network, VQSeg if quantized else UNet)
    assert result.live is not None
    assert ("codebook" in losses[-1]) == quantized
    # The streams are the method's own, whatever the network.
    assert set(losses[-1]) - CODEBOOK == TERMS[method][1] - CODEBOOK


@by_method
def test_network_has_a_codebook_where_the_method_asks_for_one(method: str) -> None:
    planned = plan(tiny_config(), [Grid((12, 8, 8), np.eye(4))], quantized=METHODS[method].quantized)
    network = build_network(planned)
    assert type(network) is (VQSeg if method in QUANTIZED else UNet)
    assert network.has_codebook == (method in QUANTIZED)
    assert bool(network.codebook_report()) == (method in QUANTIZED)


@pytest.mark.parametrize(
    ("method", "setting"),
    [("vqseg", "perturbed"), ("vqseg", "strong"), ("vqseg+bcp", "perturbed"), ("cutmix", "perturbed")],
)
def test_a_term_without_weight_teaches_nothing(method: str, setting: str, studies: list[Study], tmp_path: Path) -> None:
    config = tiny_config(DIMS[2] | SHORT | {f"loss.{setting}": 0.0})
    _, losses = run_of(method, config, studies, tmp_path)
    assert losses[-1].get(setting, 0.0) == 0.0


def test_dropout_takes_the_place_of_qpm(studies: list[Study], tmp_path: Path) -> None:
    """The same streams, another perturbation of the same seed."""
    losses = {}
    for kind in ("qpm", "dropout"):
        config = tiny_config(DIMS[3] | SHORT | {"perturbation.kind": kind, "loss.confidence": 0.0})
        _, losses[kind] = run_of("vqseg", config, studies, tmp_path / kind)
    assert losses["qpm"][:2] == losses["dropout"][:2]
    assert losses["qpm"][2]["labelled"] == losses["dropout"][2]["labelled"]
    assert losses["qpm"][2]["perturbed"] != losses["dropout"][2]["perturbed"]


def need_equal(one: Any, other: Any, name: str) -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True, msg=name)
    elif isinstance(one, dict):
        assert set(one) == set(other), name
        for key, value in one.items():
            need_equal(value, other[key], f"{name}.{key}")
    elif isinstance(one, list):
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            need_equal(first, second, f"{name}[{index}]")
    else:
        assert one == other, name


def final_checkpoint(run: Path) -> Checkpoint:
    checkpoint = load_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    for differs in ("seconds", "name"):
        checkpoint.state.pop(differs)
    return checkpoint


@in_2d_and_3d
@by_method
def test_the_seed_decides_everything(method: str, dims: int, studies: list[Study], tmp_path: Path) -> None:
    """Whatever other generators have drawn, and whatever was trained before."""
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        torch.rand(3)
        np.random.rand(3)
        run_of(method, tiny_config(DIMS[dims] | SHORT | {"train.seed": seed}), studies, tmp_path / name)
    one, same, other = (final_checkpoint(tmp_path / name) for name in ("one", "same", "other"))
    for part in ("student", "teacher", "state"):
        need_equal(getattr(one, part), getattr(same, part), part)
    assert not all(torch.equal(weights, other.student[name]) for name, weights in one.student.items())


@pytest.mark.parametrize(
    ("method", "dims", "guided", "stop"), [("vqseg", 2, True, 3), ("bcp", 3, False, 1)], ids=["vqseg", "bcp"]
)
def test_stopped_and_resumed_equals_run_through_bit_for_bit(
    method: str,
    dims: int,
    guided: bool,
    stop: int,
    studies: list[Study],
    foundation: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Before or after the unlabelled studies come in; the adapter and what the optimiser knows of it are continued."""
    settings = DIMS[dims] | SHORT | {"train.checkpoint_every": 1}
    config = tiny_config(settings | (foundation if guided else {}))
    through, _ = run_of(method, config, studies, tmp_path / "through")
    with pytest.raises(StopError):
        run_of(method, config, studies, tmp_path / "stopped", stop=stop)
    stopped = final_checkpoint(tmp_path / "stopped")
    assert stopped.step == stop
    resumed, _ = run_of(method, config, studies, tmp_path / "stopped", resume=True)
    assert (resumed.steps, resumed.best) == (through.steps, through.best)
    expected, found = (final_checkpoint(tmp_path / name) for name in ("through", "stopped"))
    for part in ("student", "teacher", "state"):
        need_equal(getattr(expected, part), getattr(found, part), part)
    assert bool(expected.state["method"]) == guided
    if guided:
        moved = "adapter.convolution.weight"
        assert not torch.equal(expected.state["method"][moved], stopped.state["method"][moved])


@in_2d_and_3d
@by_method
def test_a_foundation_model_guides_the_method_or_is_refused(
    method: str, dims: int, studies: list[Study], foundation: dict[str, Any], tmp_path: Path
) -> None:
    """It is never taken without a word and then not used."""
    config, refusal = tiny_config(DIMS[dims] | SHORT | foundation), None
    try:
        _, losses = run_of(method, config, studies, tmp_path)
    except ConfigError as error:
        refusal = str(error)
    if refusal is not None:
        assert "foundation" in refusal
        return
    before, after = TERMS[method]
    assert [set(terms) - {"alignment"} for terms in losses] == [before, before, after, after]
    assert all(terms.get("alignment", 0) > 0 for terms in losses)


def guided_trainer(
    method: str, dims: int, foundation: dict[str, Any], studies: list[Study], cache: Path, **overrides: Any
) -> Trainer:
    config = plan(
        tiny_config(DIMS[dims] | SHORT | foundation | overrides), [Grid((12, 8, 8), make_affine((12, 8, 8), (2, 2, 2)))]
    )
    model = FoundationModel.load(config.foundation.name, CPU)
    prepared = [guide_study(prepare_study(study, config.data, cache), model, config, cache) for study in studies]
    labelled = [study for study in prepared if study.label]
    unlabelled = [study for study in prepared if not study.label]
    return Trainer(config, method, labelled, unlabelled, CPU, plan_guidance(config, model))


@in_2d_and_3d
@pytest.mark.parametrize("method", sorted(QUANTIZED))
def test_adapter_learns(
    method: str, dims: int, studies: list[Study], foundation: dict[str, Any], tmp_path: Path
) -> None:
    trainer = guided_trainer(method, dims, foundation, studies, tmp_path)
    adapter, steps = trainer.method.adapter, list[TrainedStep]()
    assert adapter is not None
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    trainer.run(steps.append)
    assert [step.losses["alignment"] > 0 for step in steps] == [True] * 4
    for name, value in adapter.state_dict().items():
        assert not torch.equal(value, before[name]), name


def test_alignment_reaches_the_encoder_and_falls(
    studies: list[Study], foundation: dict[str, Any], tmp_path: Path
) -> None:
    """Trained on nothing else, the quantised features come to tell positions apart as the foundation model does."""
    only_alignment = {
        **{f"loss.{name}": 0.0 for name in ("reconstruction", "codebook", "unlabelled")},
        **{"train.steps": 40, "train.supervised_share": 0.99, "train.learning_rate": 0.02, "train.warmup_steps": 0},
        **{"foundation.temperature": 0.3, "loss.alignment": 100.0},
        **{f"views.{name}": 0.0 for name in ("rotation", "scale", "shift", "elastic", "intensity_share")},
    }
    trainer = guided_trainer("vqseg", 2, foundation, studies, tmp_path, **only_alignment)
    encoder = next(iter(trainer.student.encoder.parameters()))
    before, falls = encoder.detach().clone(), []
    trainer.run(lambda step: falls.append(step.losses["alignment"]))
    assert np.mean(falls[-10:]) < 0.98 * np.mean(falls[:10])
    assert not torch.equal(before, encoder)


def test_without_weight_the_foundation_model_changes_nothing(
    studies: list[Study], foundation: dict[str, Any], tmp_path: Path
) -> None:
    """It draws nothing at random: the student learns what it would learn without it."""
    guided, _ = run_of(
        "vqseg", tiny_config(DIMS[3] | SHORT | foundation | {"loss.alignment": 0.0}), studies, tmp_path / "guided"
    )
    alone, _ = run_of("vqseg", tiny_config(DIMS[3] | SHORT), studies, tmp_path / "alone")
    assert guided.best == alone.best
    expected, found = (final_checkpoint(tmp_path / name).student for name in ("alone", "guided"))
    need_equal(expected, found, "student")


@in_2d_and_3d
def test_a_plain_u_net_is_published_loaded_and_predicts(dims: int, tmp_path: Path) -> None:
    config = tiny_config(DIMS[dims])
    config = config.model_copy(update={"model": config.model.model_copy(update={"quantized": False})})
    network: Network = build_network(config).eval()
    ModelStore(tmp_path).publish(network, {"config": config.model_dump(mode="json")})
    predictor = Predictor.load(tmp_path, "cpu")
    assert type(predictor.network) is UNet
    volume = make_volume(np.random.default_rng(0).normal(size=(20, 11, 9)), np.diag([2.0, 2, 2, 1]))
    prediction = predictor.predict(volume)
    assert prediction.mask.shape == (20, 11, 9)
    assert prediction.mask.max() <= max(LABELS.values())
    np.testing.assert_array_equal(prediction.mask, Predictor(network, config, CPU).predict(volume).mask)
    assert prediction.usage.shape == (config.model.codebook_size,)
    assert not prediction.usage.any()
    assert not predictor.usage(volume).any()


@in_2d_and_3d
def test_every_level_of_the_plain_u_net_reaches_the_decoder(dims: int) -> None:
    """It is the network of the same encoder, joined at every level; it can neither reconstruct nor be quantised."""
    config = tiny_config(DIMS[dims])
    config = config.model_copy(update={"model": config.model.model_copy(update={"quantized": False})})
    network = build_network(config).eval()
    image = torch.randn(2, 1, *[8] * dims, generator=torch.Generator().manual_seed(0))
    seen: list[list[torch.Size]] = []

    def without(level: int) -> Any:
        def drop(maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            seen.append([part.shape for part in maps])
            return [part * (index != level) for index, part in enumerate(maps)]

        return drop

    whole = network(image)
    for level in range(2):
        assert (network(image, drop=without(level)).logits - whole.logits).abs().mean() > 1e-3
    assert seen[0] == [(2, 4, *[8] * dims), (2, 8, *[4] * dims)]
    assert whole.image is None
    assert whole.indices is None
    encoder = tiny_network(tiny_config(DIMS[dims])).encoder
    assert {k: v.shape for k, v in network.encoder.state_dict().items()} == {
        k: v.shape for k, v in encoder.state_dict().items()
    }


@pytest.mark.parametrize("method", ["vqseg", "bcp", "supervised"])
def test_labelled_studies_alone_are_enough(method: str, studies: list[Study], tmp_path: Path) -> None:
    """Then their own images are what is unlabelled."""
    labelled = [study for study in studies if study.label]
    _, losses = run_of(method, tiny_config(DIMS[2] | SHORT), labelled, tmp_path)
    assert set(losses[-1]) == TERMS[method][1]
