from typing import Any

import pytest

from optimum_mllm_prune.json_types import fits, in_words


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (str, ["", "a"], [1, None, ["a"]], "a text"),
        (int, [0, -3], [True, 1.0, "1"], "a whole number"),
        (float, [1, 0.5], [False, "0.5", None], "a number"),
        (bool, [True, False], [1, "yes"], "true or false"),
        (str | None, ["a", None], [1], "a text or null"),
        (list[str], [[], ["a"]], ["a", [1], None], "a list of texts"),
        (list[int] | None, [None, [1]], [[1.5], 1], "a list of whole numbers or null"),
        (dict[str, float], [{}, {"a": 1}], [[], {"a": "1"}], "an object of numbers"),
        (dict[str, list[int]], [{"a": [1]}], [{"a": 1}, {"a": [None]}], "an object of lists of whole numbers"),
        (dict[str, str | None], [{"a": None, "b": "c"}], [{"a": 1}], "an object of texts"),
        (dict[str, Any], [{"a": [{}]}], [None, []], "an object"),
    ],
)
def test_types_of_json(kind, good, bad, words):
    assert all(fits(value, kind) for value in good)
    assert not any(fits(value, kind) for value in bad)
    assert in_words(kind) == words
