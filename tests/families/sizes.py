"""Sizes and token ids that all families share."""

HIDDEN, MLP, HEADS, KV_HEADS, LAYERS = 64, 96, 8, 4, 4
VISION_HIDDEN, VISION_MLP, VISION_HEADS, VISION_LAYERS = 48, 80, 4, 2
PATCH = 8
VOCAB = 300
PAD, BOS, EOS = 0, 1, 2
FIRST_SPECIAL = 280  # ids from here on never occur in text
IMAGE, VIDEO, VISION_START, VISION_END = 290, 291, 292, 293
SPECIAL_TOKENS = (PAD, BOS, EOS, *range(FIRST_SPECIAL, VOCAB))
TEXT_BEFORE, TEXT_AFTER = 4, (6, 3)  # text tokens around the image; the second row is shorter, so it is padded
