"""What benchmarks of time and memory run on: a LLaVA of any size with random weights, its processor, and texts."""

from pathlib import Path

import torch
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    ProcessorMixin,
)

from optimum_mllm_prune.calibration.batches import IGNORED_LABEL, Batch, Modality


PROCESSOR = Path(__file__).parents[1] / "examples" / "digit_scenes" / "llava"
SIDE, PATCH = 112, 14
VOCABULARY = 8192


def adapted_processor() -> ProcessorMixin:
    """The processor of the example, for images of 64 patches."""
    processor = AutoProcessor.from_pretrained(PROCESSOR)
    processor.image_processor.size = processor.image_processor.crop_size = {"height": SIDE, "width": SIDE}
    processor.patch_size = PATCH
    return processor


def random_model(layers: int, width: int, vocabulary: int = VOCABULARY, seed: int = 0) -> PreTrainedModel:
    """A LLaVA in fp32 for that processor: heads of 64, MLPs 2.75 times as wide as its hidden states, a small tower."""
    torch.manual_seed(seed)
    processor = adapted_processor()
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(config).eval()


def text_batch(rows: int, tokens: int, vocabulary: int = VOCABULARY) -> Batch:
    """Random text without images, the second half of every row its answer."""
    first_word = 1 + max(*adapted_processor().tokenizer.all_special_ids, adapted_processor().image_token_id)
    ids = torch.randint(first_word, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : tokens // 2] = IGNORED_LABEL
    modality = torch.where(labels == IGNORED_LABEL, Modality.PROMPT, Modality.ANSWER).to(torch.int8)
    return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels, modality)
