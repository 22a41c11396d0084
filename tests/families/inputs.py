"""Batches made by hand: two rows of different length, the second padded on the right, with an image each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from families.sizes import BOS, EOS, FIRST_SPECIAL, PAD, PATCH, TEXT_AFTER, TEXT_BEFORE, VISION_END, VISION_START


Tensors = dict[str, torch.Tensor]


def rows(config: PreTrainedConfig, image_tokens: Sequence[int], wrapped: bool = False) -> Tensors:
    """Return ids and attention mask of two rows with the given number of image tokens each, padded on the right."""
    generator = torch.Generator().manual_seed(1234)
    rows = []
    for count, after in zip(image_tokens, TEXT_AFTER, strict=True):
        text = torch.randint(EOS + 1, FIRST_SPECIAL, (TEXT_BEFORE + after,), generator=generator).tolist()
        image = [config.image_token_id] * count
        if wrapped and count:
            image = [VISION_START, *image, VISION_END]
        rows.append([BOS, *text[:TEXT_BEFORE], *image, *text[TEXT_BEFORE:]])
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4321))


def one_image_each(config: PreTrainedConfig, tokens: int, size: int) -> Tensors:
    return rows(config, (tokens, tokens)) | {"pixel_values": pixels(2, 3, size, size)}


def with_token_types(config: PreTrainedConfig, tokens: int, size: int) -> Tensors:
    inputs = one_image_each(config, tokens, size)
    return inputs | {"token_type_ids": (inputs["input_ids"] == config.image_token_id).long()}


def prefix_only(config: PreTrainedConfig, tokens: int, size: int) -> Tensors:
    # PaliGemma's token types tell a prompt (0) from an answer (1); an image is part of the prompt.
    inputs = one_image_each(config, tokens, size)
    return inputs | {"token_type_ids": torch.zeros_like(inputs["input_ids"])}


def any_resolution(config: PreTrainedConfig, tile_tokens: int = 4) -> Tensors:
    # A thumbnail and rows of tiles, side by side; each row of tokens is closed by a newline token.
    # The first image has 2 x 2 tiles, the second 1 x 2.
    side = int(tile_tokens**0.5)
    counts = (tile_tokens + 2 * side * (2 * side + 1), tile_tokens + side * (2 * side + 1))
    image = {"pixel_values": pixels(2, 5, 3, 16, 16), "image_sizes": torch.tensor([[32, 32], [16, 32]])}
    return rows(config, counts) | image


def native_resolution(config: PreTrainedConfig) -> Tensors:
    # Sizes differ, so do the counts: (32 / 16) * (32 / 16) and (32 / 16) * (16 / 16) merged patches.
    image = {"pixel_values": pixels(2, 3, 32, 32), "image_sizes": torch.tensor([[32, 32], [32, 16]])}
    return rows(config, (4, 2)) | image


def image_lists(config: PreTrainedConfig, tokens: int) -> Tensors:
    mask = torch.ones(2, 1, 32, 32, dtype=torch.long)
    return rows(config, (tokens, tokens)) | {"pixel_values": pixels(2, 1, 3, 32, 32), "pixel_attention_mask": mask}


def flat_patches(config: PreTrainedConfig, frames: int = 2, types: bool = True) -> Tensors:
    """Return images as rows of flattened patches, with the grid of each (4 x 4 and 2 x 4, merged 2 x 2)."""
    inputs = rows(config, (4, 2), wrapped=True)
    if types:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == config.image_token_id).int()
    grid = torch.tensor([[1, 4, 4], [1, 2, 4]])
    return inputs | {"pixel_values": pixels(24, 3 * frames * PATCH * PATCH), "image_grid_thw": grid}


def padded_patches(config: PreTrainedConfig) -> Tensors:
    # Patches of 4 x 4 and of 2 x 4, the second padded to the number of the first; merged 2 x 2.
    mask = torch.tensor([[1] * 16, [1] * 8 + [0] * 8])
    shapes = torch.tensor([[4, 4], [2, 4]])
    image = {"pixel_values": pixels(2, 16, 3 * PATCH * PATCH), "pixel_attention_mask": mask, "spatial_shapes": shapes}
    return rows(config, (4, 2)) | image


def placed_patches(config: PreTrainedConfig) -> Tensors:
    # Patches of 4 x 4, each with its place, pooled 2 x 2.
    inputs = rows(config, (4, 4))
    places = torch.tensor([[[x, y] for y in range(4) for x in range(4)]] * 2)
    types = (inputs["input_ids"] == config.image_token_id).long()
    image = {"pixel_values": pixels(2, 16, 3 * PATCH * PATCH), "image_position_ids": places}
    return inputs | image | {"mm_token_type_ids": types}


def tiles(config: PreTrainedConfig) -> Tensors:
    # One image of one tile and one of two; text sees the image from the image token on.
    inputs = rows(config, (1, 1))
    tile_mask = torch.tensor([[[1, 0, 0, 0]], [[1, 1, 0, 0]]])
    seen = (inputs["input_ids"] == config.image_token_id).cumsum(1) * inputs["attention_mask"]
    return inputs | {
        "pixel_values": pixels(2, 1, 4, 3, 16, 16),
        "aspect_ratio_ids": torch.tensor([[1], [2]]),
        "aspect_ratio_mask": tile_mask,
        "cross_attention_mask": seen[:, :, None, None] * tile_mask[:, None],
    }
