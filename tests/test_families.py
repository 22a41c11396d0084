"""The test models themselves: do they run, save, reload and generate, and does everything in them matter?"""

from functools import lru_cache

import pytest
import torch
from families import FAMILIES, Family, greedy, reload


pytestmark = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


@lru_cache(maxsize=2)
def built(name: str):
    return FAMILIES[name].build()


def both_inputs(family: Family, config):
    return {"image": family.inputs(config), "text": family.text_inputs(config)}


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_runs_on_an_image_and_on_text(family):
    model = built(family.name)
    for inputs in both_inputs(family, model.config).values():
        rows, length = inputs["input_ids"].shape
        assert rows == 2
        assert inputs["attention_mask"].sum(1).tolist()[0] == length > inputs["attention_mask"].sum(1).tolist()[1]
        output = logits(model, inputs)
        assert output.shape == (rows, length, model.config.get_text_config(decoder=True).vocab_size)
        assert output.isfinite().all()
        assert output.std(-1).min() > 0.1


def test_an_image_matters(family):
    model = built(family.name)
    inputs = family.inputs(model.config)
    other = inputs | {"pixel_values": -inputs["pixel_values"]}
    change = (logits(model, inputs) - logits(model, other)).abs().amax(-1)
    for row, kept in zip(change, inputs["attention_mask"].bool(), strict=True):
        assert row[kept][-1] > 0.05


def test_the_seed_decides_the_weights(family):
    first, again, other = (family.build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    parameters = [key for key, _ in built(family.name).named_parameters()]
    # A gate has only two possible values, which two seeds may share.
    assert all(first[key].numel() == 1 or not torch.equal(first[key], other[key]) for key in parameters)


def test_no_parameter_is_constant(family):
    for name, parameter in built(family.name).named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 0.01, name
        assert parameter.abs().max() > 0, name


def test_survives_saving(family, tmp_path):
    model = built(family.name)
    model.save_pretrained(tmp_path)
    reloaded, complaints = reload(tmp_path)
    assert complaints == {}
    assert type(reloaded) is type(model)
    for inputs in both_inputs(family, model.config).values():
        assert torch.equal(logits(reloaded, inputs), logits(model, inputs))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_generates_the_same_with_and_without_cache(family, kind):
    model = built(family.name)
    inputs = both_inputs(family, model.config)[kind]
    batches = {"padded batch": inputs}
    if kind == "text":
        batches["one row"] = {key: value[:1] for key, value in inputs.items()}
    for name, batch in batches.items():
        (cached, cached_logits), (fresh, fresh_logits) = (greedy(model, batch, use_cache=use) for use in (True, False))
        differs = (cached_logits - fresh_logits).abs().max() > 1e-3
        assert differs == (name == "one row" and family.cached_text_generation_differs)
        assert differs or torch.equal(cached, fresh)
