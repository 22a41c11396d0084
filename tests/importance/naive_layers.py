"""Metrics of layers in sequence once more, in float64: whole passes of copies, plain loops over rows and tokens."""

import copy
from contextlib import ExitStack, contextmanager
from functools import cache

import torch
from importance.naive import loss, real_tokens, seen
from masking import _skip


def angular(subject, batches):
    """{"layer_runs": [layer][length - 1]} as a dict from (first layer, number of layers) to the distance."""
    names = [f"{subject.layers_prefix}.{i}" for i in range(len(subject.layers))]
    each = [(batch, seen(subject.model, batch, names)) for batch in batches]
    found = {}
    for first in range(len(names)):
        for last in range(first, len(names)):
            angles = []
            for batch, states in each:
                entering, leaving = states[names[first]][0], states[names[last]][1]
                for row in range(len(entering)):
                    for token in real_tokens(batch, row):
                        a, b = entering[row, token], leaving[row, token]
                        angles.append(torch.arccos((a @ b) / (a @ a).sqrt() / (b @ b).sqrt()) / torch.pi)
            found[first, last - first + 1] = float(torch.stack(angles).mean())
    return found


@cache
def double(model):
    """A copy in float64, made once; nothing changes it."""
    return copy.deepcopy(model).double()


@contextmanager
def without(subject, model, gone):
    """Inside, a copy of the model whose layers that went give what they were given."""
    with ExitStack() as stack:
        layers = model.get_submodule(subject.layers_prefix)
        for layer in gone:
            stack.callback(layers[layer].register_forward_hook(_skip, with_kwargs=True).remove)
        yield layers


def loss_without(subject, batches, gone):
    """Mean over all answer tokens with some layers skipped."""
    total, tokens = 0.0, 0
    for batch in batches:
        model = double(subject.model)
        with without(subject, model, gone), torch.no_grad():
            total += float(loss(model, batch.to("cpu", torch.float64))) * batch.answer_tokens
        tokens += batch.answer_tokens
    return total / tokens


def distance_merged(subject, batches, gone):
    """Mean over all real tokens of 1 - cos of what leaves the decoder, as it is and with layers merged."""
    turned = []
    model = copy.deepcopy(double(subject.model))
    merge_by_hand(model.get_submodule(subject.layers_prefix), gone)
    for batch in batches:
        whole = last_states(subject, double(subject.model), batch, ())
        other = last_states(subject, model, batch, gone)
        for row in range(len(whole)):
            for token in real_tokens(batch, row):
                a, b = whole[row, token], other[row, token]
                turned.append(1 - (a @ b) / (a @ a).sqrt() / (b @ b).sqrt())
    return float(torch.stack(turned).mean())


@torch.no_grad()
def merge_by_hand(layers, gone):
    """t* = t_l + sum of (t_(l+k) - t_l) over the layers that went behind l, in place."""
    original = [{name: weight.detach().clone() for name, weight in layer.named_parameters()} for layer in layers]
    for layer in gone:
        into = max(i for i in range(layer) if i not in gone)
        for name, weight in layers[into].named_parameters():
            weight += original[layer][name] - original[into][name]


@torch.no_grad()
def last_states(subject, model, batch, gone):
    found = []
    with without(subject, model, gone) as layers:
        handle = layers[-1].register_forward_hook(lambda _, __, output: found.append(output))
        model(**batch.to("cpu", torch.float64).inputs, use_cache=False)
        handle.remove()
    return found[0] if isinstance(found[0], torch.Tensor) else found[0][0]


def greedy(candidates, cost, number):
    """Layers in the order in which they go and what each cost; the last of all layers stays."""
    gone, costs = [], []
    while len(gone) < min(len(candidates), number - 1):
        tried = {layer: cost(sorted([*gone, layer])) for layer in candidates if layer not in gone}
        gone.append(min(tried, key=tried.get))
        costs.append(tried[gone[-1]])
    return gone, costs
