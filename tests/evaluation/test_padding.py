"""Answers by greedy generation: rows in one batch must not disturb each other."""

import pytest
import torch
from checkpoint import tiny_llava

from optimum_mllm_prune.calibration.encoding import conversation_of, encode
from optimum_mllm_prune.calibration.row_forms import normalize_row
from optimum_mllm_prune.evaluation import generate_answers, reference_answers


COUNT = 6
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def rows():
    return [dict(tiny_llava.rows()[i]) for i in range(COUNT)]


@pytest.fixture(scope="module")
def model():
    """Random weights large enough that each row has an answer of its own, and some answers end early."""
    made = tiny_llava.model()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return made


@pytest.fixture(scope="module")
def one_by_one(model, rows):
    """Each row alone, so without any padding, by the plainest use of processor and model."""
    processor, answers = tiny_llava.processor(), []
    for row in rows:
        row = normalize_row(row)
        prompt = conversation_of({**row, "messages": row["messages"][:-1]})
        inputs = encode(processor, [prompt], add_generation_prompt=True)
        with torch.no_grad():
            tokens = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        text = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.append(text.strip())
    return answers


def test_rows_differ_in_length_and_answer(rows, one_by_one):
    questions = {row["messages"][0]["content"][1]["text"] for row in rows}
    assert len({len(tiny_llava.processor().tokenizer(text)["input_ids"]) for text in questions}) > 1
    assert len(set(one_by_one)) > COUNT // 2


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_batch_answers_as_its_rows_do(model, rows, one_by_one, batch_size):
    found = generate_answers(model, tiny_llava.processor(), rows, batch_size, max_new_tokens=NEW_TOKENS)
    assert found == one_by_one


def test_a_data_set_is_taken_as_well(model, one_by_one):
    data = tiny_llava.rows().select(range(COUNT))
    assert generate_answers(model, tiny_llava.processor(), data, max_new_tokens=NEW_TOKENS) == one_by_one


def test_reference_answers(rows):
    expected = [row["messages"][-1]["content"][0]["text"] for row in rows]
    assert reference_answers(rows) == expected
    assert reference_answers(tiny_llava.rows().select(range(COUNT))) == expected


def test_reference_answers_of_other_forms():
    turns = [
        {"from": "human", "value": "What?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": " Yes. "},
    ]
    assert reference_answers([{"conversations": turns}, {"question": "What?", "answer": "A dog.\n"}]) == [
        "Yes.",
        "A dog.",
    ]
