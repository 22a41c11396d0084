"""The losses of recovery once more, in float64, from full logits and hidden states, token by token."""

from __future__ import annotations

import copy

import torch

from optimum_mllm_prune.calibration.batches import Modality


LETTERS = {"answer": {Modality.ANSWER}, "text": {Modality.ANSWER, Modality.PROMPT}}


def outputs(model, batch, layers):
    """Logits, final hidden states and the output of each layer, in float64."""
    model = copy.deepcopy(model).double().eval()
    given = {}
    for number, layer in enumerate(layers(model)):
        layer.register_forward_hook(lambda _, __, output, number=number: given.update({number: first(output)}))
    found = model(**batch.to("cpu", torch.float64).inputs, output_hidden_states=True)
    return found.logits, found.hidden_states[-1], given


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def places(modality, tokens):
    """(row, position) of every token at which a loss is taken."""
    found = []
    for row, kinds in enumerate(modality.tolist()):
        for position, kind in enumerate(kinds):
            if tokens == "all":
                taken = kind != Modality.PADDING
            else:
                taken = position + 1 < len(kinds) and kinds[position + 1] in LETTERS[tokens]
            if taken:
                found.append((row, position))
    return found


def sft(student, batch):
    logits, _, _ = student
    kept = places(batch.modality, "answer")
    ids = batch.inputs["input_ids"]
    return sum(-logits[r, p].log_softmax(-1)[ids[r, p + 1]] for r, p in kept) / len(kept)


def logits(student, teacher, batch, recipe):
    kept, tau = places(batch.modality, recipe.logits_tokens), recipe.temperature
    total = 0.0
    for r, p in kept:
        q, t = (model[0][r, p].div(tau).softmax(-1) for model in (student, teacher))
        if recipe.divergence == "forward_kl":
            total = total + kl(t, q)
        elif recipe.divergence == "reverse_kl":
            total = total + kl(q, t)
        else:
            mixture = recipe.beta * t + (1 - recipe.beta) * q
            total = total + recipe.beta * kl(t, mixture) + (1 - recipe.beta) * kl(q, mixture)
    return tau**2 * total / len(kept)


def kl(p, q):
    return (p * (p.log() - q.log())).sum()


def hidden(one, other, batch, recipe):
    kept = places(batch.modality, recipe.hidden_tokens)
    total = 0.0
    for r, p in kept:
        a, b = one[r, p], other[r, p]
        if recipe.distance == "mse":
            total = total + ((a - b) ** 2).sum() / len(a)
        else:
            total = total + 1 - (a @ b) / (a.norm() * b.norm())
    return total / len(kept)


def layers(student, teacher, batch, recipe, kept_layers):
    """The mean over the student's layers."""
    pairs = list(enumerate(kept_layers))
    return sum(hidden(student[2][own], teacher[2][original], batch, recipe) for own, original in pairs) / len(pairs)


def terms(student, teacher, batch, recipe, kept_layers=()):
    """Every term that counts, unweighted."""
    ways = {
        "sft": lambda: sft(student, batch),
        "logits": lambda: logits(student, teacher, batch, recipe),
        "hidden": lambda: hidden(student[1], teacher[1], batch, recipe),
        "layers": lambda: layers(student, teacher, batch, recipe, kept_layers),
    }
    return {name: ways[name]() for name in recipe.weights}
