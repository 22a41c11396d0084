"""The sampler that keeps rows with and without images apart, and the collator."""

import logging

import pytest
import torch
from calibration.processors import llava
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from optimum_mllm_prune.calibration.batches import Modality, make_batch
from optimum_mllm_prune.calibration.rows import open_rows, synthetic_row
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.recovery.batching import HomogeneousSampler, NumberedRows, RowCollator


any_seed = st.integers(0, 1000)


@st.composite
def samplers(draw, seeds):
    batch_size = draw(st.integers(1, 4))
    flags = draw(st.lists(st.booleans(), min_size=2 * batch_size, max_size=40))
    return flags, HomogeneousSampler(flags, batch_size, draw(seeds))


@given(samplers(any_seed | st.none()))
def test_every_batch_is_of_one_kind_and_no_row_comes_twice(made):
    flags, sampler = made
    order = list(sampler)
    assert len(order) == len(sampler) == len(set(order))
    for batch in BatchSampler(sampler, sampler.batch_size, drop_last=False):
        assert len(batch) == sampler.batch_size
        assert len({flags[row] for row in batch}) == 1


@given(samplers(any_seed | st.none()))
def test_fewer_rows_than_a_batch_of_each_kind_are_left_out(made):
    flags, sampler = made
    for kind in (True, False):
        left_out = sum(flag == kind for flag in flags) - sum(flags[row] == kind for row in sampler)
        assert 0 <= left_out < sampler.batch_size


@given(samplers(any_seed), st.integers(0, 5))
def test_seed_and_epoch_decide_the_order(made, epoch):
    flags, sampler = made
    again = HomogeneousSampler(flags, sampler.batch_size, sampler.seed)
    sampler.set_epoch(epoch)
    again.set_epoch(epoch)
    torch.rand(7)
    assert list(sampler) == list(again) == list(sampler)


@given(samplers(st.none()))
def test_without_a_seed_rows_keep_their_order_within_their_kind(made):
    flags, sampler = made
    order = list(sampler)
    for kind in (True, False):
        own = [row for row in order if flags[row] == kind]
        assert own == sorted(own)


def test_epochs_and_seeds_differ():
    flags = [True] * 30 + [False] * 31
    sampler, other = (HomogeneousSampler(flags, 4, seed) for seed in (0, 1))
    first = list(sampler)
    assert first != list(other)
    sampler.set_epoch(1)
    assert list(sampler) != first
    left_out = []
    for epoch in range(8):
        sampler.set_epoch(epoch)
        left_out += set(range(61)) - set(sampler)
    assert len(set(left_out)) > 10


def test_kinds_are_mixed_among_each_other():
    flags = [True] * 40 + [False] * 40
    kinds = [flags[row] for row in HomogeneousSampler(flags, 2, 0)][::2]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)


def test_rows_that_fill_no_batch_are_told(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("optimum"), "propagate", True)
    HomogeneousSampler([True] * 4 + [False] * 4, 4, 0)
    assert not caplog.records
    HomogeneousSampler([True] * 5 + [False] * 3, 4, 0)
    assert {record.message for record in caplog.records} == {
        "4 of 8 rows are left out of each pass: batches of 4 do not mix rows with and without images, and these fill "
        "none."
    }


def test_too_few_rows_for_a_batch():
    with pytest.raises(UserInputError) as caught:
        HomogeneousSampler([True, True, False], 4, 0)
    assert str(caught.value) == (
        "2 rows with images and 1 without fill no batch of 4, which cannot mix them: set a smaller batch size."
    )


def test_the_collator_gives_a_batch_and_its_rows_numbers():
    numbered = NumberedRows(open_rows([synthetic_row(seed) for seed in range(3)]))
    assert len(numbered) == 3
    chosen = [numbered[2], numbered[0]]
    found = RowCollator(llava())(chosen)
    expected = make_batch(llava(), [row for _, row in chosen])
    assert found.keys() == {*expected.inputs, "labels", "modality", "row_number"}
    assert torch.equal(found["labels"], expected.labels) and torch.equal(found["modality"], expected.modality)
    assert torch.equal(found["pixel_values"], expected.inputs["pixel_values"])
    assert found["row_number"].tolist() == [2, 0]
    assert ((found["labels"] != -100) == (found["modality"] == Modality.ANSWER)).all()
