"""Training from a cache of the whole vocabulary is training with the teacher in memory."""

from __future__ import annotations

import pytest
import torch
from checkpoint import tiny_llava
from recovery import teacher_cache

from optimum_mllm_prune.recovery.arguments import RecoveryArguments
from optimum_mllm_prune.recovery.teachers.cached import CachedTeacher
from optimum_mllm_prune.recovery.trainer import RecoveryTrainer


def student():
    """Not the teacher, but near it."""
    return tiny_llava.moved(by=0.02)


def trained(folder, loss, teacher, **others):
    """Losses of every step, and the weights after the last."""
    args = RecoveryArguments(
        output_dir=str(folder),
        loss=loss,
        train="full",
        use_cpu=True,
        optim="sgd",
        learning_rate=0.05,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **others,
    )
    own = RecoveryTrainer(
        model=student(),
        teacher=teacher,
        args=args,
        train_dataset=teacher_cache.rows(),
        processing_class=teacher_cache.processor(),
    )
    own.train()
    losses = [entry["loss"] for entry in own.state.log_history if "loss" in entry]
    return losses, own.plain_model().state_dict()


@pytest.mark.parametrize("loss", ["kd", "sft+hidden+kd", "hidden"])
def test_a_whole_cache_equals_the_teacher_in_memory(tmp_path, loss):
    teacher_cache.write(tmp_path / "cache", loss=loss, batch_size=4)
    live, live_weights = trained(tmp_path / "live", loss, tiny_llava.model())
    cached, cached_weights = trained(tmp_path / "cached", loss, CachedTeacher(tmp_path / "cache"))
    assert len(live) == 4
    assert cached == pytest.approx(live, abs=1e-5)
    assert live[0] > 1e-3
    before = student().state_dict()
    moved = max((live_weights[name] - before[name]).abs().max().item() for name in before)
    assert moved > 1e-4
    for name, weight in live_weights.items():
        assert torch.allclose(cached_weights[name], weight, atol=1e-6 + 1e-4 * moved), name


def test_a_small_cache_trains(tmp_path):
    teacher_cache.write(tmp_path / "cache", loss="sft+kd", top_k=8)
    losses, _ = trained(tmp_path / "out", "sft+kd", CachedTeacher(tmp_path / "cache"), divergence="jsd")
    assert len(losses) == 4
    assert all(0 < loss < 10 for loss in losses)
