"""The untrained parts: a byte-level tokenizer, a LLaVA processor and the model."""

import numpy as np
from scenes import IMAGE_SIZE, KINDS, random_scene
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)


PATCH = 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2
PAD, BOS, EOS, USER, ASSISTANT, IMAGE = "<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<image>"
SPECIAL = [PAD, BOS, EOS, USER, ASSISTANT, IMAGE]
VOCABULARY = 384

CHAT_TEMPLATE = (
    "{{ '" + BOS + "' }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ '" + USER + "' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '" + IMAGE + "' }}{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% else %}{{ '" + ASSISTANT + "' }}{% generation %}{% for part in message.content %}{{ part.text }}{% endfor %}"
    "{{ '" + EOS + "' }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on the texts of 2,000 scenes."""
    rng = np.random.default_rng(0)
    texts = [" ".join(ask(random_scene(rng, "train"), rng)) for _ in range(2000) for ask in KINDS.values()]
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bare.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def processor() -> LlavaProcessor:
    """Image processor, tokenizer and chat template in one; 16 image tokens an image."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(
        size=side, crop_size=side, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5], do_center_crop=False
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def model(words: PreTrainedTokenizerFast, key_value_heads: int) -> LlavaForConditionalGeneration:
    """An untrained LLaVA: CLIP tower, two-layer projector, Llama backbone of 8 layers and 8 heads."""
    size = len(words)
    ids = {name: words.convert_tokens_to_ids(token) for name, token in (("pad", PAD), ("bos", BOS), ("eos", EOS))}
    text = LlamaConfig(
        vocab_size=size,
        hidden_size=160,
        intermediate_size=416,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=key_value_heads,
        head_dim=20,
        max_position_embeddings=512,
        pad_token_id=ids["pad"],
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
    )
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=96,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        pad_token_id=ids["pad"],
        tie_word_embeddings=False,
    )
    made = LlavaForConditionalGeneration(config)
    for name, value in ids.items():
        setattr(made.generation_config, f"{name}_token_id", value)
    return made
