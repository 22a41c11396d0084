"""What is said of answers before and after, by hand."""

import pytest
import torch
from checkpoint import tiny_llava

from optimum_mllm_prune.calibration.batches import batches
from optimum_mllm_prune.calibration.row_forms import normalize_row
from optimum_mllm_prune.repair.judge import Judge, likelier, surely_less_likely


def nats(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("before", "after", "better", "surely_worse"),
    [
        (nats(1, 1, 1), nats(0.5, 0.6, 0.4), True, False),
        (nats(1, 1, 1), nats(1.5, 1.4, 1.6), False, True),
        # One row alone got worse: its mean is as far from 0 as its standard error.
        (nats(1, 1, 1, 1), nats(1, 1, 1, 9), False, False),
        (nats(1, 1), nats(1, 1), False, False),
        (nats(1), nats(2), False, False),
        (nats(), nats(), False, False),
    ],
)
def test_before_and_after(before, after, better, surely_worse):
    assert likelier(before, after) == better
    assert surely_less_likely(before, after) == surely_worse


def test_losses_are_those_of_each_rows_answer():
    model, processor = tiny_llava.model().eval(), tiny_llava.processor()
    rows = [normalize_row(tiny_llava.rows()[i]) for i in range(3)]
    made = list(batches(processor, rows, 2))
    with torch.no_grad():
        judge = Judge(model, made)
        found, by_hand, tokens = judge.losses(), [], 0
        for row in rows:
            (batch,) = batches(processor, [row], 1)
            logits, labels = model(**batch.inputs).logits[0, :-1].double(), batch.labels[0, 1:]
            said = labels != -100
            by_hand.append(-logits.log_softmax(-1)[said, labels[said]].sum())
            tokens += int(said.sum())
    assert torch.allclose(found, torch.stack(by_hand), rtol=1e-4)
    assert judge.by_token(found) == pytest.approx(float(sum(by_hand)) / tokens, rel=1e-4)


def test_no_rows_tell_nothing():
    judge = Judge(tiny_llava.model(), [])
    assert judge.losses().shape == (0,) and judge.by_token(judge.losses()) is None
