"""Folding models of the transformers library: dead heads, units and directions go, attributes follow."""

from __future__ import annotations

import pytest
import torch

from gaugefix.control import fold
from gaugefix.control.state import state_of, write_state
from gaugefix.hub import hub_model
from gaugefix.symmetry import find_symmetries

pytest.importorskip("transformers")
pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")]

#: classes that must become smaller when one unit of each is idle: heads, width of heads, hidden units
EXPECTED = {
    "gpt2": {"transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_attn #3", "transformer.h.1.mlp.c_fc"},
    "llama": {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj"},
    "resnet": {"resnet.embedder.embedder.convolution", "resnet.encoder.stages.1.layers.0.layer.0.convolution"},
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_idle_parts_go(name: str) -> None:
    hub = hub_model(f"hf:{name}")
    model, args = hub.model, hub.example()
    found, state = find_symmetries(model, args, verify=False), state_of(model)
    for u in found.units:
        queries = u.kind == "head_dim" and not u.outgoing
        for s in u.incoming[:1] if queries else u.outgoing if "normalised" not in u.flags else ():
            block = s.take(state[s.param]).clone()
            block[:, 0] = 0
            state[s.param] = s.put(state[s.param], block)
    write_state(model, state)
    done = fold(model, found, tolerance=0, example_inputs=args)
    assert done.error < 1e-5
    assert EXPECTED[name] <= {c.name for c in done.removed}
    if name == "gpt2":
        attention = done.model.transformer.h[0].attn
        assert (attention.num_heads, attention.head_dim, attention.split_size) == (3, 15, 45)
        assert done.model.lm_head.weight is done.model.transformer.wte.weight
    if name == "llama":
        assert {m.num_key_value_groups for m in done.model.modules() if hasattr(m, "num_key_value_groups")} == {1}
    torch.testing.assert_close(done.model(*args).logits, model(*args).logits, rtol=1e-4, atol=1e-5)
