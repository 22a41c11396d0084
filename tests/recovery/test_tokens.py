"""Where losses are taken."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_mllm_prune.calibration.batches import Modality
from optimum_mllm_prune.recovery.tokens import TOKENS, answer_tokens, counts, positions


P, V, Q, A = Modality.PADDING, Modality.IMAGE, Modality.PROMPT, Modality.ANSWER

rows_of_tokens = st.integers(1, 12).flatmap(
    lambda length: st.lists(st.lists(st.sampled_from([V, Q, A]), min_size=1, max_size=length), min_size=1, max_size=4)
)


def padded(rows):
    length = max(map(len, rows))
    return torch.tensor([[*row, *[P] * (length - len(row))] for row in rows], dtype=torch.int8)


def test_a_conversation_of_two_turns_and_one_that_is_padded():
    modality = padded([[Q, V, V, Q, A, A, Q, A], [Q, Q, A]])
    seen = {tokens: positions(modality, tokens).int().tolist() for tokens in TOKENS}
    assert seen["answer"] == [[0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert seen["text"] == [[0, 0, 1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert seen["all"] == [[1] * 8, [1, 1, 1, 0, 0, 0, 0, 0]]
    assert counts(modality).tolist() == [4, 7, 11]


@given(rows_of_tokens)
def test_positions_are_those_of_the_next_token(rows):
    modality = padded(rows)
    for tokens in TOKENS:
        found = positions(modality, tokens)
        for row, kinds in enumerate(rows):
            for place in range(modality.shape[1]):
                following = kinds[place + 1] if place + 1 < len(kinds) else None
                wanted = {"answer": following == A, "text": following in (Q, A), "all": place < len(kinds)}[tokens]
                assert found[row, place] == wanted


@given(rows_of_tokens, st.integers(0, 5))
def test_more_padding_changes_nothing(rows, more):
    modality = padded(rows)
    wider = torch.nn.functional.pad(modality, (0, more))
    assert torch.equal(counts(wider), counts(modality))


@given(rows_of_tokens)
def test_every_answer_token_but_a_first_one_is_predicted(rows):
    modality = padded(rows)
    ids = torch.arange(modality.numel()).view_as(modality)
    predicted = (modality == A) & (torch.arange(modality.shape[1]) > 0)
    assert torch.equal(answer_tokens(ids, modality), ids[predicted])
