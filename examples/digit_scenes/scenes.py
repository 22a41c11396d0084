"""Scenes of real handwritten digits, and what can be said and asked about them.

    python scenes.py OUTPUT --train 4000 --test 1000 --seed 0

writes a `datasets` folder with splits "train" and "test" in `images` + `messages` form. The digits are the 1,797 scans
of scikit-learn's `load_digits`; scenes of the test split use only scans that no training scene uses.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage
from sklearn.datasets import load_digits


COLOURS = {
    "red": (255, 40, 40),
    "green": (40, 220, 40),
    "blue": (70, 90, 255),
    "yellow": (255, 230, 30),
    "purple": (220, 50, 220),
    "white": (255, 255, 255),
}
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
CELL = 16
IMAGE_SIZE = 2 * CELL
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Digit:
    """One scan in its colour: `scan` is its index in `load_digits`."""

    value: int
    colour: str
    scan: int


# Two to four digits, by position.
Scene = dict[str, Digit]


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """Scans (1797, 8, 8) float32 in [0, 1] and their digits (1797,)."""
    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target


@cache
def scan_pool(split: str) -> np.ndarray:
    """Indexes of the scans that scenes of "train" or "test" may use; the two share none."""
    order = np.random.default_rng(1797).permutation(len(scans()[1]))
    held_out = int(TEST_SHARE * len(order))
    return np.sort(order[:held_out] if split == "test" else order[held_out:])


def random_scene(rng: np.random.Generator, split: str) -> Scene:
    """A scene of two, three or four digits, each of a random scan and colour."""
    places = np.sort(rng.permutation(4)[: rng.integers(2, 5)])
    chosen = rng.choice(scan_pool(split), len(places))
    colours = rng.choice(list(COLOURS), len(places))
    return {
        POSITIONS[place]: Digit(int(scans()[1][scan]), str(colour), int(scan))
        for place, scan, colour in zip(places, chosen, colours, strict=True)
    }


def render(scene: Scene) -> PILImage.Image:
    """The scene as an RGB image of 32 x 32 pixels: each scan twice its size, in its colour, on black."""
    canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    for position, digit in scene.items():
        row, column = divmod(POSITIONS.index(position), 2)
        ink = scans()[0][digit.scan].repeat(2, axis=0).repeat(2, axis=1)
        window = canvas[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        window += ink[..., None] * np.array(COLOURS[digit.colour], dtype=np.float32)
    return PILImage.fromarray(canvas.round().astype(np.uint8))


def caption(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Every digit with its colour and place, in reading order."""
    return "Describe the image.", ", ".join(f"a {d.colour} {d.value} at the {p}" for p, d in scene.items()) + "."


def read(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The digit at a place."""
    (place,) = _places(scene, rng, 1)
    return f"Which digit is at the {place}?", str(scene[place].value)


def colour(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The colour of the digit at a place."""
    (place,) = _places(scene, rng, 1)
    return f"What colour is the digit at the {place}?", scene[place].colour


def count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The number of digits."""
    return "How many digits are there?", str(len(scene))


def exists(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Whether a digit is at a place; as often yes as no where a place is empty."""
    empty = [place for place in POSITIONS if place not in scene]
    answer = not empty or rng.random() < 0.5
    return f"Is there a digit at the {rng.choice(list(scene) if answer else empty)}?", "yes" if answer else "no"


def add(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The sum of two digits."""
    first, second = _places(scene, rng, 2)
    return f"What is the sum of the {first} and the {second}?", str(scene[first].value + scene[second].value)


def compare(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """The larger of two digits."""
    first, second = _places(scene, rng, 2)
    return f"Which is larger, the {first} or the {second}?", str(max(scene[first].value, scene[second].value))


KINDS: dict[str, Callable[[Scene, np.random.Generator], tuple[str, str]]] = {
    "caption": caption,
    "read": read,
    "colour": colour,
    "count": count,
    "exists": exists,
    "sum": add,
    "compare": compare,
}


def messages(question: str, answer: str) -> list[dict]:
    """One turn of each side, the image before the question."""
    return [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def rows(split: str, number: int, seed: int) -> Iterator[dict]:
    """Rows of `images`, `messages` and `kind`, a new scene for each, the kinds in turn."""
    rng = np.random.default_rng([seed, ("train", "test").index(split)])
    for index in range(number):
        kind = list(KINDS)[index % len(KINDS)]
        scene = random_scene(rng, split)
        yield {"images": [render(scene)], "messages": messages(*KINDS[kind](scene, rng)), "kind": kind}


def build(train: int, test: int, seed: int = 0) -> DatasetDict:
    """Both splits; the same arguments give the same rows."""
    part = [{"type": Value("string"), "text": Value("string")}]
    features = Features(
        {"images": [Image()], "messages": [{"role": Value("string"), "content": part}], "kind": Value("string")}
    )
    made = {name: list(rows(name, number, seed)) for name, number in (("train", train), ("test", test))}
    return DatasetDict({name: Dataset.from_list(found, features=features) for name, found in made.items()})


def _places(scene: Scene, rng: np.random.Generator, number: int) -> Sequence[str]:
    return [str(place) for place in rng.permutation(list(scene))[:number]]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--train", type=int, default=4000, help="training rows (default 4000)")
    parser.add_argument("--test", type=int, default=1000, help="test rows (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default 0)")
    args = parser.parse_args()
    if min(args.train, args.test) < 1:
        parser.error("--train and --test must be at least 1")
    build(args.train, args.test, args.seed).save_to_disk(args.output)


if __name__ == "__main__":
    main()
