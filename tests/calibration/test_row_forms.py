import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from optimum_mllm_prune.calibration.row_forms import answer_text, normalize_row
from optimum_mllm_prune.errors import UserInputError


RED = Image.new("RGB", (8, 6), "red")
IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


EXPECTED = [
    {"role": "user", "content": [IMAGE, text("What is it?")]},
    {"role": "assistant", "content": [text("Red.")]},
]


@pytest.mark.parametrize(
    "raw",
    [
        {"image": RED, "question": "What is it?", "answer": "Red."},
        {"images": [RED], "messages": EXPECTED},
        {"image": RED, "messages": EXPECTED},
        {
            "images": [RED],
            "messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "Red."}],
        },
        {
            "images": [RED],
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, text("What is it?")]},
                {"role": "assistant", "content": [text("Red.")]},
            ],
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": RED}, "What is it?"]},
                {"role": "assistant", "content": "Red."},
            ]
        },
        {
            "image": RED,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "Red."},
            ],
        },
    ],
)
def test_every_form_becomes_the_same_row(raw):
    row = normalize_row(raw)
    assert row["messages"] == EXPECTED
    assert [image.tobytes() for image in row["images"]] == [RED.tobytes()]


def test_a_marker_keeps_its_place_after_the_text():
    row = normalize_row({"image": RED, "question": "What is it?\n<image>", "answer": "Red."})
    assert row["messages"][0]["content"] == [text("What is it?"), IMAGE]


def test_several_images_go_to_the_first_user_turn_after_a_system_turn():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Same?"}]
    row = normalize_row({"images": [RED, RED], "messages": [*messages, {"role": "assistant", "content": "Yes."}]})
    assert row["messages"][0]["content"] == [text("Be brief.")]
    assert row["messages"][1]["content"] == [IMAGE, IMAGE, text("Same?")]


def test_text_only_rows_and_numbers_as_answers_are_allowed():
    row = normalize_row({"question": "Two and two?", "answer": 4, "image": None})
    assert row["images"] == [] and answer_text(row["messages"][1]) == "4"


def test_images_become_rgb():
    row = normalize_row({"image": Image.new("L", (8, 6)), "question": "What?", "answer": "Black."})
    assert row["images"][0].mode == "RGB"


def conversation(*roles_and_texts):
    return [{"role": role, "content": value} for role, value in roles_and_texts]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"images": [RED], "messages": conversation(("user", "<image><image> Same?"), ("assistant", "Yes."))},
            "Row 3 has 2 image markers but 1 images; make them match.",
        ),
        (
            {"messages": conversation(("user", "<image> What?"), ("assistant", "Red."))},
            "Row 3 has 1 image markers but 0 images; make them match.",
        ),
        (
            {"image": RED, "question": "What?", "answer": None},
            "Row 3 has no assistant answer; add one or take the row out.",
        ),
        (
            {"messages": conversation(("user", "What?"), ("assistant", " "))},
            "Row 3 has no assistant answer; add one or take the row out.",
        ),
        (
            {"images": [RED], "messages": conversation(("assistant", "Red."))},
            "Row 3 has images but no user turn to put them in; add a question.",
        ),
        (
            {"messages": conversation(("tool", "What?"), ("assistant", "Red."))},
            "Row 3 has a turn of role 'tool'; use system, user or assistant.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "Row 3 has content of type 'video'; only image and text can be used.",
        ),
        (
            {"messages": [{"role": "user", "content": [3]}]},
            "Row 3 has content of type 'int'; only image and text can be used.",
        ),
        (
            {"messages": [{"role": "user", "content": [None]}]},
            "Row 3 has content of type 'NoneType'; only image and text can be used.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "Row 3 has content of type 'text'; only image and text can be used.",
        ),
        (
            {"messages": "What?"},
            'Row 3 has a conversation that is no list of turns; write it as a list of {"role": ..., "content": ...}.',
        ),
        (
            {"image": RED, "caption": "Red."},
            "The dataset has no usable column (found: 'image', 'caption'); rows need \"messages\" (with \"images\"), "
            '"image"+"question"+"answer", or "image"+"conversations".',
        ),
    ],
)
def test_what_is_wrong_with_a_row_is_said_in_one_line(raw, message):
    with pytest.raises(UserInputError) as error:
        normalize_row(raw, row_index=3)
    assert str(error.value) == message


parts = st.lists(st.one_of(st.just(IMAGE), st.text(max_size=12).map(text)), max_size=4)
content = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(["<image>", "a", "\n", " "])).map("".join), parts)
turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": content}))


@given(turns=turns, num_images=st.integers(0, 3))
def test_normalizing_twice_is_normalizing_once(turns, num_images):
    raw = {"images": [RED] * num_images, "messages": turns}
    try:
        once = normalize_row(raw)
    except UserInputError as error:
        assert "\n" not in str(error)
        return
    twice = normalize_row(once)
    assert twice["messages"] == once["messages"]
    assert len(once["images"]) == sum(part == IMAGE for turn in once["messages"] for part in turn["content"])
