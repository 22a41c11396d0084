"""The calibration passes: the loss they differentiate, and that they leave the model as it was."""

import pytest
import torch
from families import FAMILIES
from importance import naive
from importance.naive import batch_of, subject_of

from optimum_mllm_prune.calibration.engine import answer_loss, run_calibration
from optimum_mllm_prune.importance import METRICS


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_mean_over_answer_tokens(family):
    model = FAMILIES[family].build()
    batch = batch_of(family, model.config)
    with torch.no_grad():
        torch.testing.assert_close(answer_loss(model, batch), naive.loss(model, batch))


def test_an_answer_in_the_middle_counts_and_its_neighbours_do_not():
    model = FAMILIES["llava_llama"].build()
    batch = batch_of("llava_llama", model.config)
    batch.labels.fill_(-100)
    batch.labels[0, 3], batch.labels[0, 9], batch.labels[1, 10] = 50, 51, 52
    with torch.no_grad():
        torch.testing.assert_close(answer_loss(model, batch), naive.loss(model, batch))


def state_of(model):
    return {
        "flags": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "parameter hooks": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
        "checkpointing": model.is_gradient_checkpointing,
    }


def half_frozen():
    """In training mode but for the vision tower, every second parameter frozen."""
    model = FAMILIES["llava_llama_gqa"].build().train()
    # The first forward pass leaves hooks of the library's own in the vision tower.
    with torch.no_grad():
        model(**FAMILIES["llava_llama_gqa"].inputs(model.config))
    model.model.vision_tower.eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(
    "name", ["taylor", "taylor_second", "taylor_mixed", "taylor_group", "activation", "block_influence"]
)
def test_the_model_is_left_as_it_was(name, broken, checkpointing):
    model = half_frozen()
    before, weights = state_of(model), [p.detach().clone() for p in model.parameters()]

    def batches():
        yield batch_of("llava_llama_gqa", model.config)
        if broken:
            raise InterruptedError

    metric = next(iter(METRICS[name].values()))
    subject = subject_of(model)
    backward = metric.needs == "backward"
    try:
        run_calibration(
            model,
            batches(),
            [metric.create(subject)],
            subject.layers,
            backward,
            gradient_checkpointing=checkpointing,
        )
    except InterruptedError:
        assert broken
    assert state_of(model) == before
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


class Listening:
    """Sees each batch, and whether the model is in eval mode while it runs."""

    def __init__(self, model):
        self.model, self.batches, self.training, self.ended = model, [], [], 0

    def begin(self, batch, again=False):
        self.batches.append(batch)

    def end(self):
        self.ended += 1

    def attach(self):
        def hook(module, *_):
            self.training.append(module.training)

        return [self.model.lm_head.register_forward_hook(hook)]


@pytest.mark.parametrize("backward", [False, True])
def test_every_batch_is_run_once_in_eval_mode_in_the_models_dtype(backward):
    model = FAMILIES["llava_llama"].build(dtype=torch.bfloat16).train()
    listening = Listening(model)
    given = [batch_of("llava_llama", model.config, seed) for seed in (1, 2, 3)]
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(backward))
    run_calibration(model, given, [listening], model.model.language_model.layers, backward)
    assert [torch.equal(seen.labels, batch.labels) for seen, batch in zip(listening.batches, given, strict=True)]
    assert [seen.inputs["pixel_values"].dtype for seen in listening.batches] == [torch.bfloat16] * 3
    assert listening.training == [False] * 3
    assert listening.ended == 1


@pytest.mark.parametrize(("checkpointing", "times"), [(False, 1), (True, 2)])
def test_recomputation_is_of_the_decoder_layers_alone(checkpointing, times):
    model = FAMILIES["llava_llama"].build()
    subject = subject_of(model)
    outputs = {"decoder": [], "vision": []}

    def listen(part, module):
        module.register_forward_hook(lambda _, __, output: outputs[part].append(output.requires_grad))

    listen("decoder", subject.layers[1].mlp.up_proj)
    listen("vision", model.model.vision_tower.encoder.layers[0].mlp.fc1)
    observer = METRICS["taylor"]["width"].create(subject)
    batches = [batch_of("llava_llama", model.config)]
    run_calibration(model, batches, [observer], subject.layers, True, gradient_checkpointing=checkpointing)
    assert len(outputs["decoder"]) == times
    # The vision tower is not pruned: its activations need not be kept for the backward pass.
    assert outputs["vision"] == [False]


def test_several_metrics_share_the_passes():
    model = FAMILIES["llava_llama_gqa"].build()
    subject = subject_of(model)
    given = [batch_of("llava_llama_gqa", model.config)]
    for checkpointing in (False, True):
        taylor = METRICS["taylor"]["width"].create(subject)
        influence = METRICS["block_influence"]["layer"].create(subject)
        run_calibration(model, given, [taylor, influence], subject.layers, True, gradient_checkpointing=checkpointing)
        for scores, alone in (
            (taylor.scores(), naive.calibrated(subject, "width", "taylor", given)),
            (influence.scores(), naive.calibrated(subject, "layer", "block_influence", given)),
        ):
            assert all(torch.allclose(scores[kind], alone[kind], rtol=1e-5) for kind in alone)
