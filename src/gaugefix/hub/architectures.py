"""The built-in table of architectures: small ones to train, and well-known sizes for the meta device.

Weights are random and configurations are written out here, so that nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["causal", "masked", "seq2seq", "sequence", "image"]


@dataclass(frozen=True)
class Architecture:
    """How to build one random model.

    Attributes:
        model: class name in transformers.
        config: class name of its configuration.
        kind: what the model reads and is asked for.
        options: arguments of the configuration.
        large: only for the meta device.
    """

    model: str
    config: str
    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)
    large: bool = False


_SMALL_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "use_cache": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_SMALL_ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_GPT2 = {"use_cache": False, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_SMALL_GPT2 = _GPT2 | {
    "n_layer": 2,
    "n_embd": 64,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

#: name -> architecture, as in ``hf:NAME``
ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("GPT2LMHeadModel", "GPT2Config", "causal", _SMALL_GPT2),
    "gpt2-untied": Architecture(
        "GPT2LMHeadModel", "GPT2Config", "causal", _SMALL_GPT2 | {"tie_word_embeddings": False}
    ),
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", "causal", _SMALL_DECODER),
    "qwen3": Architecture("Qwen3ForCausalLM", "Qwen3Config", "causal", _SMALL_DECODER | {"head_dim": 16}),
    "gemma": Architecture("GemmaForCausalLM", "GemmaConfig", "causal", _SMALL_DECODER | {"head_dim": 16}),
    "gpt-neox": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", "causal", _SMALL_DECODER),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        "MixtralConfig",
        "causal",
        _SMALL_DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "bert": Architecture(
        "BertForSequenceClassification",
        "BertConfig",
        "sequence",
        _SMALL_ENCODER | {"vocab_size": 256, "max_position_embeddings": 64, "num_labels": 4},
    ),
    "bert-mlm": Architecture(
        "BertForMaskedLM", "BertConfig", "masked", _SMALL_ENCODER | {"vocab_size": 256, "max_position_embeddings": 64}
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        "seq2seq",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 256,
            "dropout_rate": 0.0,
            "use_cache": False,
            "decoder_start_token_id": 0,
        },
    ),
    "vit": Architecture(
        "ViTForImageClassification",
        "ViTConfig",
        "image",
        _SMALL_ENCODER | {"image_size": 16, "patch_size": 4, "num_labels": 10},
    ),
    "resnet": Architecture(
        "ResNetForImageClassification",
        "ResNetConfig",
        "image",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic", "num_labels": 10},
    ),
    "gpt2-small": Architecture("GPT2LMHeadModel", "GPT2Config", "causal", _GPT2, large=True),
    "bert-base": Architecture("BertForMaskedLM", "BertConfig", "masked", large=True),
    "vit-base": Architecture("ViTForImageClassification", "ViTConfig", "image", {"num_labels": 1000}, large=True),
    "resnet-50": Architecture("ResNetForImageClassification", "ResNetConfig", "image", {"num_labels": 1000}, True),
    "llama-1b": Architecture(
        "LlamaForCausalLM",
        "LlamaConfig",
        "causal",
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
            "use_cache": False,
        },
        large=True,
    ),
    "llama-8b": Architecture(
        "LlamaForCausalLM",
        "LlamaConfig",
        "causal",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "use_cache": False,
        },
        large=True,
    ),
}
