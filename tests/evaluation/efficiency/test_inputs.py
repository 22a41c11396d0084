import pytest
import torch
from checkpoint import tiny_llava
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mllm_prune.calibration.encoding import image_token_ids
from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.evaluation.efficiency.inputs import check_length, count_text_tokens, prompt_inputs


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 300), st.integers(1, 4))
def test_without_a_processor_the_text_is_as_long_as_asked(tokens, rows):
    model = tiny_llava.model()
    inputs = prompt_inputs(model, None, tokens, rows)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (rows, tokens)
    assert (inputs["input_ids"] == inputs["input_ids"][0]).all() and inputs["attention_mask"].all()
    assert not torch.isin(inputs["input_ids"], torch.tensor(image_token_ids(tiny_llava.processor()))).any()
    assert inputs["input_ids"].max() < model.get_input_embeddings().num_embeddings


@settings(max_examples=5, deadline=None)
@given(st.integers(40, 200))
def test_with_a_processor_it_is_nearly_so(tokens):
    processor = tiny_llava.processor()
    inputs = prompt_inputs(tiny_llava.model(), processor, tokens, 1)
    assert abs(count_text_tokens(processor, inputs) - tokens) <= 1
    assert inputs["input_ids"].shape[1] == count_text_tokens(processor, inputs) + 16


def test_a_prompt_is_never_shorter_than_its_question():
    processor, model = tiny_llava.processor(), tiny_llava.model()
    shortest, long = (prompt_inputs(model, processor, tokens, 1) for tokens in (1, 100))
    assert 5 < count_text_tokens(processor, shortest) < count_text_tokens(processor, long)


def test_rows_are_alike_and_pixels_have_the_dtype_of_the_model():
    inputs = prompt_inputs(tiny_llava.model().to(torch.bfloat16), tiny_llava.processor(), 40, 3)
    assert inputs["attention_mask"].all()
    assert inputs["pixel_values"].shape[0] == 3 and inputs["pixel_values"].dtype == torch.bfloat16
    for tensor in inputs.values():
        assert (tensor == tensor[:1]).all()


def test_all_tokens_are_text_without_a_processor():
    assert count_text_tokens(None, prompt_inputs(tiny_llava.model(), None, 9, 2)) == 9


def test_a_prompt_longer_than_the_model_knows_is_refused():
    model = tiny_llava.model()
    limit = model.config.text_config.max_position_embeddings
    check_length("it", model, limit - 4, 4)
    with pytest.raises(UserInputError) as error:
        check_length("it", model, limit - 4, 5)
    assert str(error.value) == (
        f"'it' knows {limit} positions, but a prompt of {limit - 4} tokens and 5 new ones take {limit + 1}: "
        "ask for fewer."
    )
