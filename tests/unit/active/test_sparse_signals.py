"""Signals as they are kept: nothing that a ranking looks at is lost, and a thousand studies are small."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from vqseg.active.pool import Pool
from vqseg.active.sparse_signals import SparseSignals
from vqseg.active.strategies import STRATEGIES, make_strategy
from vqseg.inference.signals import StudySignals

STRUCTURES = ("left", "right")


def drawn(seed: int, codes: int = 50, tokens: int = 300) -> StudySignals:
    """A study with a heavy tail of codes, as trained codebooks have it."""
    draw = np.random.default_rng(seed)
    share = draw.permutation(1 / np.arange(1, codes + 1))
    usage = draw.multinomial(tokens, share / share.sum())
    by_structure = draw.random((3, 2))
    by_structure[0, 0] = np.nan
    return StudySignals(usage, usage * draw.random(codes), draw.normal(size=8), *by_structure, draw.random(3))


def written(signals: SparseSignals) -> bytes:
    file = io.BytesIO()
    signals.write(file)
    return file.getvalue()


def test_what_is_written_comes_back() -> None:
    one = SparseSignals.of(drawn(0), draws=3, tokens=64)
    other = SparseSignals.read(io.BytesIO(written(one)))
    for field in dataclasses.fields(one):
        value, back = getattr(one, field.name), getattr(other, field.name)
        assert type(back) is type(value)
        np.testing.assert_array_equal(back, value, err_msg=field.name)


def test_a_study_without_a_codebook_in_use_comes_back() -> None:
    nothing = SparseSignals.of(dataclasses.replace(drawn(0), usage=np.zeros(50, int), foreground_usage=np.zeros(50)))
    assert len(SparseSignals.read(io.BytesIO(written(nothing))).codes) == 0


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_kept_signals_rank_as_fresh_ones(name: str) -> None:
    fresh = {f"s{seed}": drawn(seed) for seed in range(8)}
    kept = {study: SparseSignals.read(io.BytesIO(written(SparseSignals.of(one)))) for study, one in fresh.items()}
    pools = (Pool.of(studies, [studies["s3"]], structures=STRUCTURES) for studies in (fresh, kept))
    one, other = (list(make_strategy(name).rank(pool, np.random.default_rng(0), 3)) for pool in pools)
    assert one == other


def test_damaged_files_are_refused() -> None:
    whole = written(SparseSignals.of(drawn(0), tokens=64))
    draw = np.random.default_rng(0)
    for length in draw.integers(0, len(whole), 50):
        with pytest.raises(ValueError, match="no signals"):
            SparseSignals.read(io.BytesIO(whole[:length]))
    refused = 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            SparseSignals.read(io.BytesIO(damaged))
        except ValueError:
            refused += 1
    assert refused > len(whole) / 7 / 2  # the others lie where zip archives say things twice


@pytest.mark.parametrize("field", ["foreground_counts", "features", "foreground"])
def test_numbers_that_no_study_has_are_refused(field: str) -> None:
    one = SparseSignals.of(drawn(0))
    values = getattr(one, field).copy()
    values[1] = np.nan
    with pytest.raises(ValueError, match=f"no signals of a study: {field} is not finite"):
        SparseSignals.read(io.BytesIO(written(dataclasses.replace(one, **{field: values}))))


@pytest.mark.parametrize("broken", [{"codebook_size": 3}, {"counts": np.zeros(1)}, {"entropy": np.zeros(5)}])
def test_signals_that_contradict_themselves_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        dataclasses.replace(SparseSignals.of(drawn(0)), **broken)  # type: ignore[arg-type]


def test_a_thousand_large_studies_fit_into_200_mb() -> None:
    """200 slices of 32 x 32 tokens, once drawn from a codebook of 16 384 and once with every code in use."""
    usual = drawn(0, codes=16_384, tokens=200 * 32 * 32)
    every = dataclasses.replace(drawn(1, codes=16_384, tokens=10**7), features=np.random.default_rng(0).random(768))
    assert (usual.usage > 0).sum() > 10_000
    for signals in (usual, every):
        assert len(written(SparseSignals.of(signals, draws=8, tokens=2048))) * 1000 < 200e6
