import logging

import pytest
import torch
from calibration.processors import ANSWER_CLOSE, ANSWER_OPEN, BUILDERS, build, llava, mllama, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_mllm_prune.calibration.batches import Modality, batches, make_batch
from optimum_mllm_prune.calibration.encoding import conversation_of, encode
from optimum_mllm_prune.calibration.row_forms import normalize_row
from optimum_mllm_prune.calibration.rows import synthetic_row
from optimum_mllm_prune.errors import UserInputError


IMAGE_TOKENS = {
    "llava-clip": 4,
    "llava-siglip": 4,
    "llava-next": 10,
    "idefics3": 20,
    "gemma3": 4,
    "paligemma": 4,
    "mllama": 1,
}


def row(*answers, question="What is it?", with_image=True):
    messages = []
    for answer in answers:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return normalize_row({"images": synthetic_row()["images"] if with_image else [], "messages": messages})


def without_markers(processor):
    processor.chat_template = processor.chat_template.replace(ANSWER_OPEN, "").replace(ANSWER_CLOSE, "")
    return processor


def answers(processor, batch):
    """The text of each row's label tokens."""
    return [processor.tokenizer.decode(labels[labels >= 0]).strip() for labels in batch.labels]


def real_text(processor, batch, i):
    return processor.tokenizer.decode(batch.inputs["input_ids"][i][batch.inputs["attention_mask"][i].bool()])


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("name", BUILDERS)
def test_labels_are_exactly_the_answer(name, markers):
    processor = BUILDERS[name]()
    if not markers and processor.chat_template:
        without_markers(processor)
    batch = make_batch(processor, [row("A red square."), row("It is noise, all over.")])
    assert answers(processor, batch) == ["A red square.</s>", "It is noise, all over.</s>"]


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("name", sorted(set(BUILDERS) - {"paligemma"}))
def test_every_assistant_turn_is_labelled(name, markers):
    processor = BUILDERS[name]() if markers else without_markers(BUILDERS[name]())
    batch = make_batch(processor, [row("Noise.", "Still noise.", "A circle."), row("Red.")])
    assert answers(processor, batch)[0].replace(" ", "") == "Noise.</s>Stillnoise.</s>Acircle.</s>"
    assert answers(processor, batch)[1] == "Red.</s>"


def test_a_processor_with_suffix_takes_the_last_answer_and_marks_its_prompt():
    processor = build("paligemma")
    batch = make_batch(processor, [row("Noise.", "Still noise.")])
    assert answers(processor, batch) == ["Still noise.</s>"]
    assert torch.equal(batch.inputs["token_type_ids"] == 1, batch.modality == Modality.ANSWER)
    assert "labels" not in batch.inputs


@pytest.mark.parametrize("name", BUILDERS)
def test_every_token_has_its_modality(name):
    processor = build(name)
    batch = make_batch(processor, [row("Red."), row("A longer answer of many more tokens.")])
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    assert batch.modality.dtype == torch.int8 and batch.labels.dtype == torch.int64
    assert batch.modality.shape == batch.labels.shape == ids.shape
    assert torch.equal(batch.modality == Modality.PADDING, ~real)
    assert torch.equal(batch.modality == Modality.ANSWER, batch.labels >= 0)
    assert torch.equal(batch.labels[batch.labels >= 0], ids[batch.labels >= 0])
    assert (batch.modality == Modality.IMAGE).sum(1).tolist() == [IMAGE_TOKENS[name]] * 2
    assert real[:, 0].all() and not real[0, -1]


@pytest.mark.parametrize("name", BUILDERS)
def test_padding_changes_no_token_of_a_row(name):
    processor = build(name)
    short, long = row("Red."), row("A longer answer of many more tokens.", question="And what may this be?")
    together, alone = make_batch(processor, [short, long]), make_batch(processor, [short])
    length = alone.labels.shape[1]
    assert torch.equal(together.labels[0, :length], alone.labels[0])
    assert torch.equal(together.modality[0, :length], alone.modality[0])


def test_a_mask_shifted_by_bos_is_not_believed():
    processor = mllama()
    conversation = conversation_of(row("Red."))
    encoded = encode(processor, [conversation], mark_answers=True)
    shifted = processor.tokenizer.decode(encoded["input_ids"][0][encoded["assistant_masks"][0].bool()])
    assert shifted.strip() != "Red.</s>"
    assert answers(processor, make_batch(processor, [row("Red.")])) == ["Red.</s>"]


def test_a_processor_without_template_gets_a_plain_one():
    processor = llava()
    processor.chat_template = None
    batch = make_batch(processor, [row("Red.", "Blue.")])
    assert real_text(processor, batch, 0) == "<s>" + "<image>" * 4 + "What is it?\nRed.</s>\nWhat is it?\nBlue.</s>"
    assert answers(processor, batch) == ["Red.</s>Blue.</s>"]


def test_what_a_template_writes_around_an_answer_is_the_answers():
    processor = without_markers(llava())
    processor.chat_template = processor.chat_template.replace(
        "{{ part['text'] }}", "{{ '<think></think>' + part['text'] }}"
    )
    assert answers(processor, make_batch(processor, [row("Red.")])) == ["<think></think>Red.</s>"]


@pytest.mark.parametrize("markers", [True, False])
def test_a_space_after_an_answer_does_not_label_the_next_turn(markers):
    processor = llava() if markers else without_markers(llava())
    processor.chat_template = processor.chat_template.replace("</s>", " ")
    processor.tokenizer = word_tokenizer(["<image>"])
    batch = make_batch(processor, [row("It is noise.", "A red square.")])
    tokens = processor.tokenizer.convert_ids_to_tokens(batch.inputs["input_ids"][0].tolist())
    assert "▁USER:" in tokens
    assert answers(processor, batch) == ["It is noise. A red square."]


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (
            "{% for message in messages %}{{ message['role'] + message['content'][-1]['text'] }}{% endfor %}",
            "LlavaProcessor refuses a row (The total number of <image> tokens in the prompts should be the same as "
            "the number of images passed. Found total 0 <image> tokens and 1 images); leave such rows out or set "
            "another chat template.",
        ),
        (
            "{{ raise_exception('No system role.') }}",
            "LlavaProcessor refuses a row (No system role); leave such rows out or set another chat template.",
        ),
        (
            "<image>{% for message in messages %}{{ 'USER: ' + message['content'] }}{% endfor %}",
            'LlavaProcessor refuses a row (can only concatenate str (not "list") to str); leave such rows out or set '
            "another chat template.",
        ),
        (
            "{{ messages | length }}<image>{% for message in messages %}{{ message['content'] }}{% endfor %}",
            "The chat template of LlavaProcessor does not render an answer after its prompt, so its tokens cannot be "
            "found; set processor.chat_template to one with {% generation %} markers.",
        ),
        (
            "<image>{% for message in messages %}{{ message['content'] }}{% endfor %}",
            "The chat template of LlavaProcessor does not render an answer after its prompt, so its tokens cannot be "
            "found; set processor.chat_template to one with {% generation %} markers.",
        ),
    ],
)
def test_templates_that_cannot_be_used(template, line):
    processor = llava()
    processor.chat_template = template
    with pytest.raises(UserInputError) as error:
        make_batch(processor, [row("Red.")])
    assert str(error.value) == line


def test_rows_without_images_get_their_own_batches():
    rows = [row("Red."), row("One.", with_image=False), row("Blue."), row("Green.")]
    processor = build("llava-clip")
    made = list(batches(processor, rows, batch_size=2))
    assert [answers(processor, batch) for batch in made] == [["Red.</s>", "Blue.</s>"], ["Green.</s>"], ["One.</s>"]]
    assert ["pixel_values" in batch.inputs for batch in made] == [True, True, False]


def test_a_processor_that_needs_images_says_so():
    with pytest.raises(UserInputError, match=r"PaliGemmaProcessor refuses a row \(`images` are expected"):
        make_batch(build("paligemma"), [row("One.", with_image=False)])


def test_long_rows_are_left_out_and_counted(caplog):
    processor = build("llava-clip")
    rows = [row("Red."), row("A longer answer of many more tokens, and then some more."), row("Blue.")]
    limit = make_batch(processor, rows[:1]).labels.shape[1] + 2
    logger = logging.getLogger("optimum")
    logger.addHandler(caplog.handler)
    made = list(batches(processor, rows, batch_size=2, max_length=limit))
    logger.removeHandler(caplog.handler)
    assert [answers(processor, batch) for batch in made] == [["Red.</s>", "Blue.</s>"]]
    assert f"1 of 3 rows left out: longer than {limit} tokens" in caplog.text


def test_all_rows_too_long_is_an_error():
    length = make_batch(build("llava-clip"), [row("Red.")]).labels.shape[1]
    with pytest.raises(UserInputError) as error:
        list(batches(build("llava-clip"), [row("Red.")] * 2, batch_size=2, max_length=5))
    line = f"All 2 rows are longer than 5 tokens (the shortest has {length}); allow more tokens or give shorter rows."
    assert str(error.value) == line


def test_floating_inputs_take_the_models_dtype():
    batch = make_batch(build("llava-clip"), [row("Red.")]).to("cpu", torch.bfloat16)
    assert batch.inputs["pixel_values"].dtype == torch.bfloat16
    assert batch.inputs["input_ids"].dtype == torch.int64 and batch.modality.dtype == torch.int8


answer_texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(answer_texts.filter(str.strip), min_size=1, max_size=2), markers=st.booleans())
def test_any_answer_is_found(texts, markers):
    processor = build("llava-siglip") if markers else without_markers(llava("siglip"))
    batch = make_batch(processor, [row(*texts)])
    expected = "".join(f"{text}</s>" for text in texts)
    assert "".join(answers(processor, batch)[0].split()) == "".join(expected.split())
