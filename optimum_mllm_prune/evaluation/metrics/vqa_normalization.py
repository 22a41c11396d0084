"""The normalization of answers that the VQA evaluation prescribes.

Source: the official script, https://github.com/GT-Vision-Lab/VQA, `vqaEvaluation/vqaEval.py`, version 2.0.
"""

import re


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = ("a", "an", "the")
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS.split())}

# Words that the script mends where one of their apostrophes was forgotten.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_MENDED = {
    word[:i] + word[i + 1 :]: word for word in _CONTRACTED.split() for i, letter in enumerate(word) if letter == "'"
}


def normalize_answer(text: str) -> str:
    """Lower case, numbers up to ten as digits, no articles, no punctuation, contractions with their apostrophes.

    Punctuation next to a blank goes, and all of it where a comma groups digits; elsewhere it becomes a blank. A period
    stays before a digit.
    """
    words = _without_punctuation(re.sub(r"[\n\t]", " ", text).strip()).lower().split()
    digits = [_DIGITS.get(word, word) for word in words]
    return " ".join(_MENDED.get(word, word) for word in digits if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    grouped = _COMMA_IN_NUMBER.search(text)
    cleaned = text
    for mark in _PUNCTUATION:
        goes = grouped or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", cleaned)
