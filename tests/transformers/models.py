"""Random tiny models of the transformers library, wide enough to be generic and narrow enough for a dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


def _ids(vocabulary: int, n: int = 2, length: int = 4) -> Tensor:
    return torch.arange(n * length).reshape(n, length) * 7 % vocabulary


def _random_ids(vocabulary: int, n: int) -> Tensor:
    """Enough contexts that no layer is a table of a few words."""
    return torch.randint(vocabulary, (n, 4), generator=torch.Generator().manual_seed(0))


def _decoder(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 11, "max_position_embeddings": 16, "use_cache": False,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, **options,
    }  # fmt: skip


def _encoder(**options: Any) -> dict[str, Any]:
    return {"hidden_size": 6, "intermediate_size": 7, "num_hidden_layers": 1, "num_attention_heads": 2, **options}


def gpt2(*, tied: bool) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        n_layer=1, n_embd=4, n_head=2, n_positions=4, vocab_size=9, n_inner=5, use_cache=False,
        tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def llama(**options: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_decoder(**options)))


def qwen3() -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_decoder()))


def cohere() -> nn.Module:
    from transformers import CohereConfig, CohereForCausalLM

    return CohereForCausalLM(CohereConfig(**_decoder(vocab_size=20, tie_word_embeddings=True)))


def olmo2() -> nn.Module:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    return Olmo2ForCausalLM(Olmo2Config(**_decoder(vocab_size=16)))


def gemma3() -> nn.Module:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(Gemma3TextConfig(**_decoder()))


def gptj() -> nn.Module:
    from transformers import GPTJConfig, GPTJForCausalLM

    return GPTJForCausalLM(GPTJConfig(
        vocab_size=30, n_positions=8, n_embd=12, n_layer=1, n_head=2, rotary_dim=4, n_inner=4, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def bloom() -> nn.Module:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=9, hidden_size=6, n_layer=1, n_head=2, use_cache=False))


def distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig(
        vocab_size=9, dim=6, n_layers=1, n_heads=2, hidden_dim=7, max_position_embeddings=4,
    ))  # fmt: skip


def clip_text() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**_encoder(
        vocab_size=9, max_position_embeddings=4, eos_token_id=2, bos_token_id=1, pad_token_id=0,
    )))  # fmt: skip


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperModel

    return WhisperModel(WhisperConfig(
        vocab_size=9, d_model=6, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=5, decoder_ffn_dim=5, num_mel_bins=4, max_source_positions=4,
        max_target_positions=4, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    ))  # fmt: skip


def convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextModel

    return ConvNextModel(ConvNextConfig(num_channels=2, patch_size=2, num_stages=2, hidden_sizes=[4, 6], depths=[1, 1]))


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**_decoder(num_local_experts=3, num_experts_per_tok=2)))


def gemma() -> nn.Module:
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(**_decoder(num_attention_heads=2, num_key_value_heads=1)))


def olmo() -> nn.Module:
    from transformers import OlmoConfig, OlmoForCausalLM

    return OlmoForCausalLM(OlmoConfig(**_decoder(num_attention_heads=2, num_key_value_heads=1, pad_token_id=0)))


def phi3() -> nn.Module:
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM(Phi3Config(**_decoder(num_attention_heads=2, num_key_value_heads=1, pad_token_id=0)))


def gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(
        hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, vocab_size=11,
        max_position_embeddings=16, use_cache=False, tie_word_embeddings=False, rotary_pct=1.0,
        use_parallel_residual=False, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**_encoder(vocab_size=9, max_position_embeddings=4, num_labels=3)))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_encoder(
        intermediate_size=5, num_hidden_layers=2, image_size=4, patch_size=2, num_channels=2, num_labels=7
    )))  # fmt: skip


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(
        d_model=6, d_kv=4, d_ff=5, num_layers=1, num_heads=2, vocab_size=9, use_cache=False,
        relative_attention_num_buckets=4, relative_attention_max_distance=4, decoder_start_token_id=0,
    ))  # fmt: skip


def resnet(layer_type: str, width: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(
        num_channels=2, embedding_size=width, hidden_sizes=[width, 2 * width], depths=[1, 1], layer_type=layer_type,
        num_labels=3,
    ))  # fmt: skip


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(llama(), config)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """A model with what must be found in it.

    Attributes:
        make: builds it.
        args: example arguments.
        flat: flat directions, measured without the search; what the search explains is ``flat - hidden``.
        groups: pairs (part of a symmetry's name, its group) that must be there.
        hidden: directions that are not explained, with the reason.
        opaque: names of operations that are reported.
        needs: packages besides transformers.
    """

    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    flat: int
    groups: tuple[tuple[str, str], ...]
    hidden: tuple[int, str] = (0, "")
    opaque: tuple[str, ...] = ()
    needs: tuple[str, ...] = field(default=())


_GQA = (
    ("permute", "S_2"),  # key-value heads, with their queries
    ("permute", "(S_2)^2"),  # queries of one key-value head
    ("rotate", "(GL(4))^2"),
    ("rotate the stream", "O(8)"),
)

CASES: dict[str, Case] = {
    "gpt2, tied": Case(
        lambda: gpt2(tied=True), (_ids(9),), 73,
        (("c_attn: permute", "S_2"), ("rotate", "(GL(2))^2"), ("c_fc: permute", "S_5"), ("flip signs", "Z_2")),
    ),
    "gpt2, untied": Case(
        lambda: gpt2(tied=False), (_ids(9),), 96,
        (("c_attn: permute", "S_2"), ("rotate", "(GL(2))^2"), ("c_fc: permute", "S_5"),
         ("rotate the stream", "O(3)"), ("add to every unit", "T(9)")),
    ),
    "llama": Case(
        llama, (_ids(11),), 99,
        (*_GQA, ("gate_proj: permute", "S_6"), ("gate_proj: rescale", "R+^6"), ("turn rotary pairs", "SO(2)^4")),
    ),
    "qwen3": Case(qwen3, (_ids(11),), 99, (*_GQA, ("gate_proj: permute", "S_6"), ("rescale", "R+^2"))),
    "gemma": Case(  # the gains of its norms are 1 + w
        gemma, (_ids(11),), 79,
        (("rotate the stream", "O(8)"), ("gate_proj: permute", "S_6"), ("turn rotary pairs", "SO(2)^2")),
    ),
    "olmo": Case(  # norms without gains, their ε written into the call
        olmo, (_ids(11),), 112,
        (("rotate the stream", "O(7)"), ("v_proj: rotate", "GL(4)"), ("turn rotary pairs", "SO(2)^2")),
    ),
    "phi3": Case(  # fused qkv and gate-up projections
        phi3, (_ids(11),), 79,
        (("rotate the stream", "O(8)"), ("gate_up_proj", "S_6"), ("turn rotary pairs", "SO(2)^2")),
    ),
    "gpt-neox": Case(  # queries, keys and values side by side inside each head
        gpt_neox, (_ids(11),), 175,
        (("query_key_value: permute", "S_2"), ("rotate", "(GL(4))^2"), ("turn rotary pairs", "SO(2)^4")),
    ),
    "olmo2": Case(  # norms behind attention and behind the feed-forward part, and of all queries together
        olmo2, (_random_ids(16, 16),), 55,
        (("v_proj: rotate", "(GL(4))^2"), ("gate_proj: permute", "S_6"), ("gate_proj: rescale", "R+^6")),
    ),
    "cohere": Case(  # attention and feed-forward part side by side, rotary pairs interleaved
        cohere, (_random_ids(20, 16),), 121,
        (("v_proj: rotate", "(GL(4))^2"), ("gate_proj: permute", "S_6"), ("turn rotary pairs", "SO(2)^4")),
    ),
    "gemma3": Case(
        gemma3, (_random_ids(11, 12),), 73, (("gate_proj: permute", "S_6"), ("v_proj: rotate", "(GL(4))^2")),
    ),
    "gpt-j": Case(  # rotary pairs in a part of each head
        gptj, (_random_ids(30, 24),), 289, (("turn rotary pairs", "SO(2)^4"), ("fc_in: permute", "S_4")),
    ),
    "bloom": Case(bloom, (_random_ids(9, 12),), 149, (("rotate", "(GL(3))^2"),)),
    "distilbert": Case(distilbert, (_random_ids(9, 8),), 121, (("rotate", "(GL(3))^2"), ("lin1: permute", "S_7"))),
    "clip, text": Case(
        clip_text, (_random_ids(9, 8),), 131, (("rotate", "(GL(3))^2"), ("fc1: permute", "S_7")), opaque=("index",),
    ),
    "whisper": Case(
        whisper, (torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(0)), None, _random_ids(9, 8)), 306,
        (("rotate", "(GL(3))^2"), ("fc1: permute", "S_5")),
    ),
    "convnext": Case(  # norms over channels in front of convolutions
        convnext, (torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(0)),), 134,
        (("downsampling_layer.1.weight: null direction", "T(24)"), ("pwconv1.weight: null direction", "T(16)")),
    ),
    "mixtral": Case(
        mixtral, (_ids(11),), 119,
        (*_GQA, ("experts", "(S_6)^3"), ("experts", "R+^18"), ("gate.weight: add to every unit", "T(8)")),
        opaque=("topk",),
    ),
    "bert": Case(
        bert, (_ids(9), None, torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])), 146,
        (("query: permute", "S_2"), ("query: rotate", "(GL(3))^2"), ("value: rotate", "(GL(3))^2"),
         ("intermediate.dense: permute", "S_7"), ("pooler.dense: permute", "S_6"), ("pooler.dense: flip", "Z_2^6"),
         ("key.bias: shift", "T(6)")),
    ),
    "vit": Case(
        vit, (torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)),), 271,
        (("q_proj: permute", "S_2"), ("q_proj: rotate", "(GL(3))^2"), ("fc1: permute", "S_5"),
         ("rotate the stream", "O(5)"), ("projection.weight: add to every unit", "T(8)"),
         ("classifier.weight: null direction", "T(7)")),
    ),
    "t5": Case(
        t5, (_ids(9), None, _ids(9)), 239,
        (("q: rotate", "(GL(4))^2"), ("v: rotate", "(GL(4))^2"), ("wi: permute", "S_5"), ("wi: rescale", "R+^5"),
         ("relative_attention_bias.weight: shift", "T(2)")),
        hidden=(2, "the encoder's bucket for 'later, at distance zero' is never looked up: one dead row, two heads"),
    ),
    "resnet, basic": Case(
        lambda: resnet("basic", 3), (torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0)),), 51,
        (("embedder.embedder.convolution: permute", "S_3"), ("rescale", "R+^3"), ("flip signs", "Z_2^3")),
    ),
    "resnet, bottleneck": Case(
        lambda: resnet("bottleneck", 4), (torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(0)),), 56,
        (("embedder.embedder.convolution: permute", "S_4"), ("rescale", "R+^4"), ("flip signs", "Z_2^4")),
    ),
    "lora": Case(
        lora, (_ids(11),), 179,
        (*_GQA, ("lora_A", "GL(2)"), ("takes back", "T(48)"), ("takes back", "T(32)")),
        needs=("peft",),
    ),
}  # fmt: skip
