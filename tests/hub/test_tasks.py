"""``hf:`` tasks: built from the table without a network, or read from a folder of one's own."""

from __future__ import annotations

import json
import math
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gaugefix import load_task
from gaugefix.errors import TaskError
from gaugefix.hub import ARCHITECTURES, hub_model
from gaugefix.training import train

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.transformers

SMALL = [name for name, a in ARCHITECTURES.items() if not a.large]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is a failure."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny Llama with its weights, as save_pretrained leaves it."""
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32, max_position_embeddings=16, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


class TestTable:
    @pytest.mark.parametrize("name", SMALL)
    def test_loss_is_per_sample_and_that_of_guessing(self, name: str) -> None:
        task = load_task(f"hf:{name}")
        loss = task.check()
        config: Any = task.model.config
        classes = config.num_labels if ARCHITECTURES[name].kind in {"sequence", "image"} else config.vocab_size
        assert loss.shape == (task.batch_size,)
        assert loss.mean().item() == pytest.approx(math.log(classes), rel=0.15)

    def test_same_seed_same_task(self) -> None:
        one, two, other = (load_task("hf:llama", seed=s) for s in (0, 0, 1))
        assert torch.equal(one.first_batch()[0], two.first_batch()[0])
        weights = [dict(task.model.named_parameters())["lm_head.weight"] for task in (one, two, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert not torch.equal(one.first_batch()[0], other.first_batch()[0])

    def test_global_random_state_is_left_alone(self) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        load_task("hf:gpt2")
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("name", ["gpt2", "vit"])
    def test_the_data_can_be_learned(self, name: str) -> None:
        task = load_task(f"hf:{name}")
        before = task.check().mean().item()
        train(task, epochs=6)
        assert task.check().mean().item() < 0.9 * before

    def test_causal_models_read_the_text_if_it_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "tinyshakespeare.txt").write_bytes(b"To be, or not to be: " * 50)
        ids = load_task("hf:gpt2", data_dir=tmp_path).first_batch()[0]
        assert set(bytes(ids[0].tolist())) <= set(b"To be, or not to be: ")

    def test_large_ones_are_for_the_meta_device(self) -> None:
        with pytest.raises(TaskError, match=r"hf:llama-8b is for the meta device.*gaugefix symmetries hf:llama-8b"):
            load_task("hf:llama-8b")
        model = hub_model("hf:llama-8b", meta=True).model
        assert sum(p.numel() for p in model.parameters()) == 8_030_261_248
        assert all(p.is_meta for p in model.parameters())


class TestFolder:
    def test_round_trip(self, saved: Path) -> None:
        task = load_task(f"hf:{saved}")
        original = transformers.LlamaForCausalLM.from_pretrained(saved)
        ids = task.first_batch()[0]
        assert torch.equal(task.model(ids).logits, original.eval()(ids).logits)
        assert task.epochs == 0  # audited as it is
        assert task.name == f"hf:{saved}"

    def test_shards(self, saved: Path, tmp_path: Path) -> None:
        whole = transformers.LlamaForCausalLM.from_pretrained(saved)
        whole.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        parts = hub_model(f"hf:{tmp_path / 'shards'}").model
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))

    def test_a_shard_is_missing(self, saved: Path, tmp_path: Path) -> None:
        folder = tmp_path / "shards"
        transformers.LlamaForCausalLM.from_pretrained(saved).save_pretrained(folder, max_shard_size="2KB")
        sorted(folder.glob("*.safetensors"))[0].unlink()
        with pytest.raises(TaskError, match="weights could not be loaded"):
            load_task(f"hf:{folder}")

    def test_no_weights(self, saved: Path) -> None:
        (saved / "model.safetensors").unlink()
        with pytest.raises(TaskError, match=r"no model\.safetensors.*gaugefix symmetries"):
            load_task(f"hf:{saved}")
        assert hub_model(f"hf:{saved}", meta=True).config.hidden_size == 8

    def test_pickles_are_refused(self, saved: Path) -> None:
        (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
        with pytest.raises(TaskError, match=r"pytorch_model\.bin is a pickle, which is never loaded"):
            load_task(f"hf:{saved}")

    def test_broken_weights(self, saved: Path) -> None:
        (saved / "model.safetensors").write_bytes(b"not a safetensors file")
        with pytest.raises(TaskError, match="weights could not be loaded"):
            load_task(f"hf:{saved}")

    def test_configuration_of_another_model(self, saved: Path) -> None:
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(TaskError, match=r"are not in the checkpoint.*layers\.2"):
            load_task(f"hf:{saved}")

    def test_unknown_head(self, saved: Path) -> None:
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
        with pytest.raises(TaskError, match=r"\['LlamaModel'\] is not understood.*ForCausalLM"):
            load_task(f"hf:{saved}")

    def test_no_config(self, tmp_path: Path) -> None:
        with pytest.raises(TaskError, match=r"no config\.json.*save_pretrained"):
            load_task(f"hf:{tmp_path}")

    def test_broken_config(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
        with pytest.raises(TaskError, match=r"cannot read config\.json"):
            load_task(f"hf:{tmp_path}")

    def test_neither_a_name_nor_a_folder(self) -> None:
        with pytest.raises(
            TaskError, match=r"hf:lama: neither a known architecture nor a folder\. Known: gpt2, .*llama"
        ):
            load_task("hf:lama")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TaskError, match=r"pip install 'gaugefix\[transformers\]'"):
        load_task("hf:gpt2")
