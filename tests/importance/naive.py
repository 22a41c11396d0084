"""Every metric once more, in float64, with plain loops over rows, tokens and units."""

import copy

import torch
from families import FAMILIES

from optimum_mllm_prune.backbone import Backbone, with_layouts
from optimum_mllm_prune.calibration.batches import Batch, Modality
from optimum_mllm_prune.calibration.engine import evaluating, run_calibration
from optimum_mllm_prune.calibration.progress import Progress
from optimum_mllm_prune.importance import METRICS, Subject


ANSWER_TOKENS = 3  # the second row has as many tokens behind its image


def batch_of(family, config, seed=None, answers=(ANSWER_TOKENS, ANSWER_TOKENS)):
    """A family's inputs, so many of the last real tokens of each row as its answer; with a seed, other text."""
    inputs = FAMILIES[family].inputs(config)
    real = inputs["attention_mask"].bool()
    image = inputs["input_ids"] == config.image_token_id
    if seed is not None:
        other = torch.randint(10, 250, real.shape, generator=torch.Generator().manual_seed(seed))
        # Ids from 280 on stand for images, ids below 3 for the ends of a text.
        text = real & (inputs["input_ids"] > 2) & (inputs["input_ids"] < 280)
        inputs = inputs | {"input_ids": torch.where(text, other, inputs["input_ids"])}
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, count in enumerate(answers):
        last = real[row].nonzero()[-count:, 0]
        labels[row, last] = inputs["input_ids"][row, last]
    modality = torch.full(real.shape, Modality.PADDING, dtype=torch.int8)
    modality[real] = Modality.PROMPT
    modality[image] = Modality.IMAGE
    modality[labels != -100] = Modality.ANSWER
    return Batch(inputs, labels, modality)


def with_other_padding(batch):
    """The same batch, other ids and labels' neighbours where there is no token."""
    padding = batch.modality == Modality.PADDING
    assert padding.any()
    ids = batch.inputs["input_ids"].masked_fill(padding, 77)
    return Batch(batch.inputs | {"input_ids": ids}, batch.labels, batch.modality)


def row_by_row(batch):
    """The rows of a batch, each a batch."""
    return [
        Batch({key: value[[row]] for key, value in batch.inputs.items()}, batch.labels[[row]], batch.modality[[row]])
        for row in range(len(batch.labels))
    ]


def subject_of(model, head_unit="auto", seed=0):
    backbone = Backbone.of(model, head_unit)
    groups = tuple(with_layouts(group, model) for group in backbone.groups()[0])
    return Subject(model, backbone.layers_prefix, groups, seed)


def calibrated(subject, method, name, batches, **options):
    """The scores of a metric after all batches; runs of layers that there are not count as 0."""
    metric = METRICS[name][method]
    observer = metric.create(subject)
    if metric.needs == "rows":
        with evaluating(subject.model), torch.no_grad():
            observer.run(batches, Progress())
    for _ in range(0 if metric.needs in ("weights", "rows") else observer.passes):
        run_calibration(
            subject.model, batches, [observer], subject.layers, backward=metric.needs == "backward", **options
        )
    scores = observer.scores()
    return scores | {kind: rows.nan_to_num() for kind, rows in scores.items() if kind == "layer_runs"}


def in_double(model, batch):
    """Copies in float64."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    return model, batch.to("cpu", torch.float64)


def loss(model, batch):
    """Mean of -log p(answer token) over all answer tokens of the batch."""
    log_p = model(**batch.inputs).logits.log_softmax(-1)
    terms = []
    for row, labels in enumerate(batch.labels.tolist()):
        for position, label in enumerate(labels):
            if label != -100:
                terms.append(-log_p[row, position - 1, label])
    return torch.stack(terms).mean()


def gradients(model, batches):
    """For every batch the gradient of its loss by each parameter's name, times its share of all answer tokens."""
    found = []
    counts = [int((batch.labels != -100).sum()) for batch in batches]
    for count, batch in zip(counts, batches, strict=True):
        double, batch = in_double(model, batch)
        (loss(double, batch) * count / sum(counts)).backward()
        found.append({name: p.grad for name, p in double.named_parameters() if p.grad is not None})
    return found


def owned(subject, kind, layer, unit):
    """Which rows of which tensors make a unit, and which columns read it: written out from the config."""
    text = subject.model.config.text_config
    attention, mlp = f"{subject.layers_prefix}.{layer}.self_attn", f"{subject.layers_prefix}.{layer}.mlp"
    names = dict(subject.model.named_parameters())
    if kind == "heads":
        size = text.hidden_size // text.num_attention_heads
        queries = text.num_attention_heads // text.num_key_value_heads * size
        q = range(unit * queries, (unit + 1) * queries)
        kv = range(unit * size, (unit + 1) * size)
        if f"{attention}.qkv_proj.weight" in names:
            after_q, both = text.hidden_size, text.num_key_value_heads * size
            rows = [*q, *(after_q + i for i in kv), *(after_q + both + i for i in kv)]
            written = [(f"{attention}.qkv_proj", rows)]
        else:
            written = [(f"{attention}.q_proj", q), (f"{attention}.k_proj", kv), (f"{attention}.v_proj", kv)]
        reader = (f"{attention}.o_proj.weight", list(q))
    else:
        if f"{mlp}.gate_up_proj.weight" in names:
            written = [(f"{mlp}.gate_up_proj", [unit, text.intermediate_size + unit])]
        else:
            written = [(f"{mlp}.gate_proj", [unit]), (f"{mlp}.up_proj", [unit])]
        reader = (f"{mlp}.down_proj.weight", [unit])
    parts = [
        (f"{module}.{leaf}", list(rows))
        for module, rows in written
        for leaf in ("weight", "bias")
        if f"{module}.{leaf}" in names
    ]
    return parts, reader


def each_unit(subject, score):
    """`score(kind, layer, unit)` for all units: {kind: (layers, units)}."""
    text = subject.model.config.text_config
    units = {"heads": text.num_key_value_heads, "channels": text.intermediate_size}
    return {
        kind: torch.tensor(
            [[float(score(kind, layer, unit)) for unit in range(count)] for layer in range(text.num_hidden_layers)],
            dtype=torch.float64,
        )
        for kind, count in units.items()
    }


def over_weights(subject, value):
    """Sum of `value(name)`, shaped like the parameter, over each unit's rows and columns."""
    values = {}

    def score(kind, layer, unit):
        written, (reader, columns) = owned(subject, kind, layer, unit)
        for name in [*(name for name, _ in written), reader]:
            if name not in values:
                values[name] = value(name)
        return sum(values[name][rows].sum() for name, rows in written) + values[reader][:, columns].sum()

    return each_unit(subject, score)


def taylor(subject, batches):
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    each = gradients(subject.model, batches)
    return over_weights(subject, lambda name: sum((weights[name] * g[name]).abs() for g in each))


def row_gradients(subject, batches):
    """Of each batch's own loss, by the parameter's name; a batch stands for a row."""
    return [gradients(subject.model, [batch])[0] for batch in batches]


def taylor_second(subject, batches):
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    each = row_gradients(subject, batches)
    return over_weights(subject, lambda name: sum(weights[name] ** 2 * g[name] ** 2 for g in each) / len(each))


def taylor_mixed(subject, batches):
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    each = row_gradients(subject, batches)

    def value(name):
        first = weights[name] * sum(g[name] for g in each) / len(each)
        second = weights[name] ** 2 * sum(g[name] ** 2 for g in each) / len(each)
        return (first - 0.5 * second).abs()

    return over_weights(subject, value)


def taylor_group(subject, batches):
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    each = gradients(subject.model, batches)

    def score(kind, layer, unit):
        _, (reader, columns) = owned(subject, kind, layer, unit)
        return abs(sum((weights[reader] * g[reader])[:, columns].sum() for g in each))

    return each_unit(subject, score)


def magnitude_l1(subject, batches):
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    return over_weights(subject, lambda name: weights[name].abs())


def magnitude_l2(subject, batches):
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    return {kind: sums.sqrt() for kind, sums in over_weights(subject, lambda name: weights[name] ** 2).items()}


def magnitude(subject, batches):
    layers = [sum(p.detach().double().abs().sum() for p in layer.parameters()) for layer in subject.layers]
    return {"layers": torch.stack(layers)}


def seen(model, batch, names):
    """What goes into and comes out of modules, in float64: name to (input, output)."""
    double, batch = in_double(model, batch)
    found = {}
    for name in names:

        def hook(_, args, kwargs, output, name=name):
            entering = args[0] if args else kwargs["hidden_states"]
            found[name] = (entering.detach(), (output if isinstance(output, torch.Tensor) else output[0]).detach())

        double.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        double(**batch.inputs)
    return found


def readers(subject):
    layers = range(len(subject.layers))
    return [f"{subject.layers_prefix}.{i}.{name}" for i in layers for name in ("self_attn.o_proj", "mlp.down_proj")]


def real_tokens(batch, row):
    return [token for token, kind in enumerate(batch.modality[row].tolist()) if kind != Modality.PADDING]


def activation(subject, batches):
    each = [(batch, seen(subject.model, batch, readers(subject))) for batch in batches]

    def score(kind, layer, unit):
        _, (reader, columns) = owned(subject, kind, layer, unit)
        squares = 0.0
        for batch, states in each:
            entering = states[reader.removesuffix(".weight")][0]
            for row in range(len(entering)):
                tokens = real_tokens(batch, row)
                sizes = [entering[row, token, columns].square().sum().sqrt() for token in tokens]
                squares += (sum(sizes) / len(sizes)) ** 2
        return squares**0.5

    return each_unit(subject, score)


def wanda(subject, batches):
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    each = [(batch, seen(subject.model, batch, readers(subject))) for batch in batches]

    def score(kind, layer, unit):
        _, (reader, columns) = owned(subject, kind, layer, unit)
        total = 0.0
        for column in columns:
            squares = 0.0
            for batch, states in each:
                entering = states[reader.removesuffix(".weight")][0]
                for row in range(len(entering)):
                    squares += entering[row, real_tokens(batch, row), column].square().sum()
            total += weights[reader][:, column].square().sum().sqrt() * squares**0.5
        return total

    return each_unit(subject, score)


def fluctuation(subject, batches):
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    each = [(batch, seen(subject.model, batch, readers(subject))) for batch in batches]

    def score(kind, layer, unit):
        _, (reader, columns) = owned(subject, kind, layer, unit)
        total = 0.0
        for column in columns:
            values = []
            for batch, states in each:
                entering = states[reader.removesuffix(".weight")][0]
                for row in range(len(entering)):
                    values += [entering[row, token, column] for token in real_tokens(batch, row)]
            variance = torch.stack(values).var(correction=0)
            total += variance * weights[reader][:, column].square().sum()
        return total

    return each_unit(subject, score)


def block_influence(subject, batches):
    names = [f"{subject.layers_prefix}.{i}" for i in range(len(subject.layers))]
    turned = [[] for _ in names]
    for batch in batches:
        states = seen(subject.model, batch, names)
        for layer, name in enumerate(names):
            entering, leaving = states[name]
            for row in range(len(entering)):
                for token in real_tokens(batch, row):
                    a, b = entering[row, token], leaving[row, token]
                    turned[layer].append(1 - (a @ b) / (a @ a).sqrt() / (b @ b).sqrt())
    return {"layers": torch.stack([torch.stack(values).mean() for values in turned])}


def reconstruction(subject, batches):
    """Greedy: at every step all is worked out anew from the Gram matrix of what is left."""
    weights = {name: p.detach().double() for name, p in subject.model.named_parameters()}
    each = [(batch, seen(subject.model, batch, readers(subject))) for batch in batches]
    text = subject.model.config.text_config
    found = {
        "heads": torch.empty(text.num_hidden_layers, text.num_key_value_heads),
        "channels": torch.empty(text.num_hidden_layers, text.intermediate_size),
    }
    for kind, errors in found.items():
        for layer in range(len(errors)):
            units = [owned(subject, kind, layer, unit)[1] for unit in range(errors.shape[1])]
            reader = units[0][0]
            rows = [
                states[reader.removesuffix(".weight")][0][row, real_tokens(batch, row)]
                for batch, states in each
                for row in range(len(batch.labels))
            ]
            errors[layer] = _greedy(torch.cat(rows), weights[reader], [columns for _, columns in units])
    return {kind: errors.double() for kind, errors in found.items()}


def _greedy(x, weight, units):
    gram = x.T @ x
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    whole = (weight @ gram @ weight.T).trace()
    left, errors = set(range(len(units))), torch.empty(len(units))
    while left:
        columns = [column for unit in sorted(left) for column in units[unit]]
        inverse = torch.linalg.inv(gram[columns][:, columns])
        fitted = weight @ gram[:, columns] @ inverse
        spent = whole - (fitted @ gram[columns][:, columns] @ fitted.T).trace()
        added = {}
        for unit in sorted(left):
            own = [columns.index(column) for column in units[unit]]
            block = torch.linalg.inv(inverse[own][:, own])
            added[unit] = (fitted[:, own] @ block @ fitted[:, own].T).trace()
        gone = min(added, key=added.get)
        errors[gone] = (spent + added[gone]) / whole
        left.remove(gone)
    return errors
