"""Training batches: the questions of one scene share its image in one sequence, each seeing only the image and itself.

The attention mask and the positions make this equal to one row a question, at a third of the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from parts import ASSISTANT, BOS, EOS, IMAGE, IMAGE_TOKENS, USER
from scenes import CELL, COLOURS, IMAGE_SIZE, KINDS, POSITIONS, Scene, random_scene, scans
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, LlavaForConditionalGeneration, PreTrainedTokenizerFast


IGNORED = -100
HIDDEN = -1e4


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **unused: Any
) -> tuple[Tensor, None]:
    """Attention spelled out: on CPUs, training in bfloat16 is several times faster than with the fused kernel."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    query, key, value = (query * scaling).to(mask.dtype), key.to(mask.dtype), value.to(mask.dtype)
    with torch.autocast("cpu", enabled=False):
        weights = (query @ key.transpose(2, 3) + mask).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).contiguous(), None


PLAIN = "digit_scenes_plain"
AttentionInterface.register(PLAIN, plain_attention)


@dataclass(frozen=True)
class Packed:
    """Scenes with several questions each.

    Attributes:
        pixels: (scenes, 3, 32, 32) in [-1, 1].
        ids: (scenes, tokens); the image comes first, then question after question.
        labels: (scenes, tokens), next-token labels on answers, -100 elsewhere.
        positions: (scenes, tokens); every question starts right after the image.
        mask: (scenes, 1, tokens, tokens) bool, true where a token may look.
    """

    pixels: Tensor
    ids: Tensor
    labels: Tensor
    positions: Tensor
    mask: Tensor


def draw_scenes(number: int, rng: np.random.Generator, split: str = "train") -> list[Scene]:
    """Random scenes."""
    return [random_scene(rng, split) for _ in range(number)]


def pack(
    scenes: Sequence[Scene],
    kinds: Sequence[str],
    words: PreTrainedTokenizerFast,
    rng: np.random.Generator,
    augment: bool = True,
) -> Packed:
    """Questions of the given kinds about each scene."""
    asked = [[_tokens(*KINDS[kind](scene, rng), words) for kind in kinds] for scene in scenes]
    prefix = words.convert_tokens_to_ids([BOS, USER] + [IMAGE] * IMAGE_TOKENS)
    length = len(prefix) + max(sum(len(ids) for ids, _ in questions) for questions in asked)
    shape = (len(scenes), length)
    ids = torch.full(shape, words.pad_token_id)
    labels, positions = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, -1)
    start = len(prefix)
    ids[:, :start], positions[:, :start], segments[:, :start] = torch.tensor(prefix), torch.arange(start), 0
    for row, questions in enumerate(asked):
        at = start
        for segment, (tokens, answer) in enumerate(questions, 1):
            end = at + len(tokens)
            ids[row, at:end] = torch.tensor(tokens)
            # The label of a position is the token that follows it.
            labels[row, end - len(answer) - 1 : end - 1] = torch.tensor(answer)
            positions[row, at:end] = torch.arange(start, start + len(tokens))
            segments[row, at:end] = segment
            at = end
    return Packed(pixels(scenes, augment), ids, labels, positions, _visible(segments).unsqueeze(1))


def logits(model: LlavaForConditionalGeneration, packed: Packed) -> tuple[Tensor, Tensor]:
    """Logits and labels of the answer tokens, (answer tokens, vocabulary) and (answer tokens,)."""
    core = model.model
    core.language_model.set_attn_implementation(PLAIN)
    with torch.no_grad():
        seen = core.vision_tower(packed.pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    embedded = core.language_model.embed_tokens(packed.ids)
    image = core.multi_modal_projector(seen).to(embedded.dtype)
    embedded = torch.cat([embedded[:, :2], image, embedded[:, 2 + IMAGE_TOKENS :]], dim=1)
    mask = torch.zeros(packed.mask.shape, dtype=_dtype(embedded)).masked_fill(~packed.mask, HIDDEN)
    hidden = core.language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    answered = packed.labels != IGNORED
    return model.lm_head(hidden[answered]).float(), packed.labels[answered]


def pixels(scenes: Sequence[Scene], augment: bool) -> Tensor:
    """(scenes, 3, 32, 32) as the image processor gives them; augmented: digits turned, scaled, shifted."""
    ink = torch.zeros(len(scenes), 4, 8, 8)
    colours = torch.zeros(len(scenes), 4, 3)
    for row, scene in enumerate(scenes):
        for position, digit in scene.items():
            ink[row, POSITIONS.index(position)] = torch.from_numpy(scans()[0][digit.scan])
            colours[row, POSITIONS.index(position)] = torch.tensor(COLOURS[digit.colour], dtype=torch.float32)
    cells = functional.interpolate(ink.flatten(0, 1).unsqueeze(1), scale_factor=2)
    if augment:
        cells = functional.grid_sample(cells, _jitter(len(cells)), align_corners=False)
    coloured = cells.view(len(scenes), 4, 1, CELL, CELL) * colours[..., None, None]
    grid = coloured.view(len(scenes), 2, 2, 3, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE) / 127.5 - 1


def _jitter(number: int) -> Tensor:
    angle = (torch.rand(number) - 0.5) * 0.4
    scale = 1 + (torch.rand(number, 2) - 0.5) * 0.25
    shift = (torch.rand(number, 2) - 0.5) * 0.2
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    rows[:, :, :2] *= scale.unsqueeze(1)
    return functional.affine_grid(rows, [number, 1, CELL, CELL], align_corners=False)


def _tokens(question: str, answer: str, words: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """All token ids of a turn, and those of its answer."""
    said = [*words.encode(answer, add_special_tokens=False), words.convert_tokens_to_ids(EOS)]
    asked = [*words.encode(question, add_special_tokens=False), words.convert_tokens_to_ids(ASSISTANT)]
    return asked + said, said


def _dtype(hidden: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype


def _visible(segments: Tensor) -> Tensor:
    """True where a query (dim 1) may see a key (dim 2): earlier, and of the image or of its own question."""
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    earlier = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    # Padding sees itself, so that its softmax is defined.
    return earlier & ((key == query) | (key == 0))
