"""Draws follow from the key alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import vqseg
from vqseg.randomness import numpy_generator, seed_for, torch_generator

keys = st.lists(st.integers(0, 2**31) | st.text(max_size=5), min_size=1, max_size=4).map(tuple)


@given(keys, keys)
def test_different_keys_have_different_seeds(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert (seed_for(*one) == seed_for(*other)) == (one == other)
    assert 0 <= seed_for(*one) < 2**63


@given(keys)
def test_same_key_same_draws_whatever_was_drawn_before(key: tuple[int | str, ...]) -> None:
    first = torch.rand(4, generator=torch_generator(*key)), numpy_generator(*key).random(4)
    again = torch.rand(4, generator=torch_generator(*key)), numpy_generator(*key).random(4)
    assert torch.equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def test_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=torch_generator(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_is_the_same_in_every_process() -> None:
    # Python's own hash of a string is not.
    code = "from vqseg.randomness import seed_for; print(seed_for(1, 'views', 7))"
    library = str(Path(vqseg.__file__).parents[1])
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "PYTHONPATH": library},
    ).stdout
    assert int(printed) == seed_for(1, "views", 7)


def test_integers_and_their_names_are_different_keys() -> None:
    assert len({seed_for(1, 2), seed_for("1", 2), seed_for(12), seed_for("1, 2"), seed_for(1, "2")}) == 5
