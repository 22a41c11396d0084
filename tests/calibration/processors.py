"""Processors of real architectures with tiny tokenizers and images, built without any download."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)


CORPUS = [
    "USER: Describe the image. ASSISTANT: It is colourful noise. A red square and a blue circle. USER: What is it?"
]

ANSWER_OPEN, ANSWER_CLOSE = "{% generation %}", "{% endgeneration %}"


def chat_template(image_token, generation_markers=True, bos=""):
    """`USER: <image>question ASSISTANT: answer</s>`, in LLaVA's manner."""
    before, after = (ANSWER_OPEN, ANSWER_CLOSE) if generation_markers else ("", "")
    return (
        bos + "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image_token + "{% elif message['role'] == 'assistant' %}"
        + before + "{{ part['text'] }}{% if loop.last %}</s>{% endif %}" + after
        + "{% else %}{{ part['text'] + ' ' }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    )  # fmt: skip


def tokenizer(special_tokens, add_bos=True, **named):
    """Byte-level BPE that puts `<s>` in front unless told not to, and gives a second text the token type 1."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    bos = "<s> " if add_bos else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos}$A", pair=f"{bos}$A:0 $B:1", special_tokens=[("<s>", 1)] if add_bos else []
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", **named}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], padding_side="left", **names
    )


def word_tokenizer(special_tokens):
    """BPE over words that carry the space before them, as Llama's does: a trailing space joins the next word."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<pad>", "<s>", "</s>", *special_tokens]
    backend.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def llava(vision="clip"):
    size = {"height": 28, "width": 28}
    if vision == "clip":
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size)
    else:
        image_processor = SiglipImageProcessorPil(size=size)
    strategy, extra = ("default", 1) if vision == "clip" else ("full", 0)
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer(["<image>"]),
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=chat_template("<image>"),
    )


def llava_next():
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=[[28, 56], [56, 28]]
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer(["<image>"]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )


def idefics3():
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer=tokenizer(["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]),
        image_seq_len=4,
        chat_template=chat_template("<image>"),
    )


def gemma3():
    special = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"}
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer=tokenizer(list(special.values()), extra_special_tokens=special),
        image_seq_length=4,
        chat_template=chat_template("<boi>", bos="<s>"),
    )


def paligemma():
    image_processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    image_processor.image_seq_length = 4
    return PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer(["<image>"], add_bos=False))


def mllama():
    special = {"image_token": "<|image|>"}
    return MllamaProcessor(
        image_processor=MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2),
        tokenizer=tokenizer(["<|image|>", "<|python_tag|>"], add_bos=False, extra_special_tokens=special),
        chat_template=chat_template("<|image|>"),
    )


BUILDERS = {
    "llava-clip": llava,
    "llava-siglip": lambda: llava("siglip"),
    "llava-next": llava_next,
    "idefics3": idefics3,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "mllama": mllama,
}


@cache
def build(name):
    """A processor by name, made once; tests that change it build their own."""
    return BUILDERS[name]()
