"""Second and mixed order: every row by itself, whatever it holds, and numbers of one layer at a time."""

from functools import cache

import pytest
import torch
from checkpoint import tiny_llava
from families import FAMILIES
from importance import naive
from importance.naive import batch_of, calibrated, row_by_row, subject_of

from optimum_mllm_prune.backbone import Backbone
from optimum_mllm_prune.calibration.batches import make_batch
from optimum_mllm_prune.calibration.engine import run_calibration
from optimum_mllm_prune.calibration.row_forms import normalize_row
from optimum_mllm_prune.configuration import PruningConfig
from optimum_mllm_prune.importance.scoring import score
from optimum_mllm_prune.importance.taylor_second import TaylorMixed


BOTH = ["taylor_second", "taylor_mixed"]


@cache
def model_of(family):
    return FAMILIES[family].build()


@pytest.mark.parametrize("name", BOTH)
def test_rows_are_run_one_by_one(name):
    model, processor = tiny_llava.model(), tiny_llava.processor()
    rows = list(tiny_llava.rows())[:3]
    config = PruningConfig(importance=name)
    scores, calibration = score(model, processor, Backbone.of(model), config, rows)
    subject = subject_of(model)
    batches = [make_batch(processor, [normalize_row(row)]) for row in rows]
    expected = calibrated(subject, "width", name, batches)
    for kind, found in expected.items():
        torch.testing.assert_close(scores.tensors[kind], found, rtol=1e-4, atol=1e-6 * float(found.max()))
    assert (calibration["samples"], calibration["batch_size"]) == (len(rows), 1)
    # However often the rows are run, each is told of once, and counts once in what is scored beside.
    assert sum(calibration["tokens"].values()) == sum(int((batch.modality != 0).sum()) for batch in batches)
    turned = calibrated(subject, "layer", "block_influence", batches)["layers"]
    torch.testing.assert_close(scores.tensors["layers"], turned)


def test_every_row_weighs_the_same_in_squares_of_gradients():
    family = "llava_llama_gqa"
    subject = subject_of(model_of(family))
    rows = row_by_row(batch_of(family, model_of(family).config, answers=(4, 1)))
    both, long, short = (
        calibrated(subject, "width", "taylor_second", batches) for batches in (rows, rows[:1], rows[1:])
    )
    for kind, found in both.items():
        torch.testing.assert_close(found, (long[kind] + short[kind]) / 2)


class WatchedMixed(TaylorMixed):
    """Notes of how many layers numbers are kept, whenever a gradient is complete."""

    def __init__(self, subject):
        super().__init__(subject)
        self.layers = []

    def _add(self, kind, index, axis):
        add = super()._add(kind, index, axis)

        def watched(weight):
            add(weight)
            self.layers.append({axis.tensor.split(".layers.")[1].split(".")[0] for _, _, axis in self.means})

        return watched


def batches_of(family):
    config = model_of(family).config
    return [batch_of(family, config), batch_of(family, config, seed=1, answers=(1, 2))]


def test_taylor_mixed_keeps_numbers_of_one_layer_at_a_time():
    model = FAMILIES["llava_llama_gqa"].build()
    subject = subject_of(model)
    watched = WatchedMixed(subject)
    assert watched.passes == len(subject.layers)
    for _ in range(watched.passes):
        run_calibration(model, batches_of("llava_llama_gqa"), [watched], subject.layers, backward=True)
    assert {len(layers) for layers in watched.layers} == {1}
    assert set.union(*watched.layers) == {str(i) for i in range(len(subject.layers))}
    expected = naive.taylor_mixed(subject, batches_of("llava_llama_gqa"))
    for kind, found in watched.scores().items():
        torch.testing.assert_close(found.double(), expected[kind], rtol=1e-4, atol=0)


def test_where_products_are_small_the_second_order_hardly_counts():
    """Rows of equal answers: the mixed score is then the first order of all rows in one batch."""
    family = "llava_llama_gqa"
    batch = batch_of(family, model_of(family).config)
    subject = subject_of(model_of(family))
    first = calibrated(subject, "width", "taylor", [batch])
    mixed = calibrated(subject, "width", "taylor_mixed", row_by_row(batch))
    for kind, found in mixed.items():
        torch.testing.assert_close(found, first[kind], rtol=0.05, atol=0)


@pytest.mark.parametrize("name", ["taylor_second", "taylor_mixed"])
@pytest.mark.parametrize("family", ["mllama", "llava_llama_gqa"])
def test_rows_without_images_are_scored_by_each_rows_gradient(family, name):
    model = model_of(family)
    batch = batch_of(family, model.config)
    text = {key: batch.inputs[key] for key in ("input_ids", "attention_mask")}
    text["input_ids"] = text["input_ids"].masked_fill(batch.modality == 1, 20)
    without = naive.Batch(text, batch.labels, batch.modality.masked_fill(batch.modality == 1, 2))
    subject = subject_of(model)
    both, alone = (calibrated(subject, "width", name, batches) for batches in ([batch, without], [without]))
    assert all(found.isfinite().all() for found in both.values())
    passed_by = [(kind, i) for kind, found in alone.items() for i, row in enumerate(found) if not row.any()]
    assert bool(passed_by) == (family == "mllama")
    assert all(both[kind][i].all() for kind, i in passed_by)
