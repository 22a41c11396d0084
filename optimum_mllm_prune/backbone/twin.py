"""The one exception to "no per-model rules": a Llama backbone declared as its numerically identical twin, Mistral.

`LlamaConfig` rejects head counts that do not divide `hidden_size` although its attention honours `head_dim`.
`MistralConfig` accepts them, and without a sliding window its model has the same tensor names and the same
mathematics, as long as the Llama has no biases. So 32 -> 26 heads of a 4096-wide Llama can be saved as `mistral`.
"""

from typing import Any

from transformers import MistralConfig, PreTrainedConfig

from .text_config import text_config, text_path


TWIN_OF = {"llama": "mistral"}


def twin_name(config: PreTrainedConfig) -> str | None:
    """Model type of the twin of the text backbone; None where there is none (or the text config is not a part)."""
    text = text_config(config)
    if not text_path(config) or getattr(text, "attention_bias", False) or getattr(text, "mlp_bias", False):
        return None
    return TWIN_OF.get(text.model_type)


def as_twin(text: dict[str, Any]) -> dict[str, Any]:
    """The same text config, a dict, declared as the twin: Mistral's keys kept, attention over the whole sequence."""
    known = MistralConfig().to_dict().keys()
    kept = {key: value for key, value in text.items() if key in known}
    return {**kept, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
