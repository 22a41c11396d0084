from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from optimum_mllm_prune.errors import UserInputError
from optimum_mllm_prune.evaluation import accepted_answers, generate, generate_answers, reference_answers


FOLDER = Path(__file__).parents[2] / "examples" / "digit_scenes" / "llava"


def row(question, answer):
    content = [{"type": "image", "text": None}, {"type": "text", "text": question}]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return {"images": [Image.new("RGB", (32, 32))], "messages": turns}


ROWS = [row("Describe the image.", " a red 7. "), row("How many digits are there?", "3"), row("Is there a 7?", "no")]


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


def test_references_are_the_last_answers():
    assert reference_answers(ROWS) == ["a red 7.", "3", "no"]


def test_answers_keep_the_order_of_the_rows_at_any_batch_size(model, processor):
    one_by_one = generate_answers(model, processor, ROWS, batch_size=1)
    assert len(one_by_one) == len(ROWS)
    assert generate_answers(model, processor, ROWS, batch_size=2) == one_by_one
    assert generate_answers(model, processor, ROWS[::-1], batch_size=3) == one_by_one[::-1]


def test_answers_do_not_depend_on_the_reference(model, processor):
    others = [row("Describe the image.", "x"), row("How many digits are there?", "x"), row("Is there a 7?", "x")]
    assert generate_answers(model, processor, others) == generate_answers(model, processor, ROWS)


def test_answers_are_new_text_only(model, processor):
    for answer in generate_answers(model, processor, ROWS):
        assert answer == answer.strip()
        assert "<" not in answer and "?" not in answer


def test_answers_stop_at_the_longest_length(model, processor):
    (answer,) = generate_answers(model, processor, ROWS[:1], max_new_tokens=1)
    assert len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"]) <= 1


def test_the_model_is_left_in_eval_mode_without_gradients(model, processor):
    model.train()
    generate_answers(model, processor, ROWS[:1], max_new_tokens=2)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_rows_are_refused(model, processor):
    with pytest.raises(UserInputError, match=r"^The dataset has no rows; choose another dataset or split\.$"):
        generate_answers(model, processor, [])


def test_tokens_are_those_of_the_text_without_the_end(model, processor):
    for answer in generate(model, processor, ROWS):
        assert processor.decode(answer.tokens).strip() == answer.text
        assert model.generation_config.eos_token_id not in answer.tokens


def test_a_shorter_answer_of_a_batch_has_no_padding_in_it(model, processor):
    together, alone = generate(model, processor, ROWS), [generate(model, processor, [one])[0] for one in ROWS]
    assert together == alone
    assert len({len(answer.tokens) for answer in together}) > 1


def test_rows_without_images_stand_between_others(model, processor):
    text = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "7"}]}
    mixed = [ROWS[0], text, ROWS[1]]
    answers = generate_answers(model, processor, mixed, batch_size=3)
    assert [answers[0], answers[2]] == generate_answers(model, processor, ROWS[:2])


def test_accepted_answers():
    plain = {"image": Image.new("RGB", (32, 32)), "question": "How many?", "answer": "3"}
    assert accepted_answers([plain, plain]) == [["3"], ["3"]]
    several = [{**plain, "answers": ["3", "three"]}, {**plain, "answers": [{"answer": "3"}, {"answer": "iii"}]}]
    assert accepted_answers(several) == [["3", "three"], ["3", "iii"]]
    # A row that has none has its own answer, the others keep theirs.
    assert accepted_answers([several[0], {**plain, "answers": []}, plain]) == [["3", "three"], ["3"], ["3"]]


def test_a_text_is_one_accepted_answer():
    plain = {"image": Image.new("RGB", (32, 32)), "question": "How many?", "answer": "3"}
    assert accepted_answers([{**plain, "answers": "three"}, {**plain, "answers": 0}]) == [["three"], ["0"]]
    assert accepted_answers([{**plain, "answers": ""}, {**plain, "answers": None}]) == [["3"], ["3"]]


@pytest.mark.parametrize(
    "answers", [{"text": ["3"], "answer_start": [0]}, {"answer": ["3"]}, [{"answer_id": 1}], [None], [["3"]]]
)
def test_accepted_answers_of_another_form_are_refused(answers):
    plain = {"image": Image.new("RGB", (32, 32)), "question": "How many?", "answer": "3"}
    with pytest.raises(UserInputError) as error:
        accepted_answers([plain, {**plain, "answers": answers}])
    assert str(error.value) == (
        "The answers of row 1 cannot be read: write them as a list of texts, or of mappings with an 'answer' each."
    )


def test_a_row_that_ends_with_a_question_is_refused(model, processor):
    open_ended = row("Describe the image.", "a red 7.")
    open_ended["messages"].append({"role": "user", "content": [{"type": "text", "text": "Sure?"}]})
    line = r"^Row 1 does not end with an answer to compare with: add it or take the row out\.$"
    with pytest.raises(UserInputError, match=line):
        reference_answers([ROWS[0], open_ended])
    with pytest.raises(UserInputError, match=line):
        generate_answers(model, processor, [ROWS[0], open_ended])


def test_beams_of_the_models_own_config_are_not_used(model, processor, monkeypatch):
    one = generate_answers(model, processor, ROWS)
    monkeypatch.setattr(model.generation_config, "num_beams", 4)
    seen, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **options: seen.append(options["num_beams"]) or generate(**options))
    assert generate_answers(model, processor, ROWS) == one
    assert seen == [1]
