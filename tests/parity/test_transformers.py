"""Twins of the transformers library match with no rename and train alike: the last versions with Flax models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.variants import QUICK

import multibackend as mb

transformers = pytest.importorskip("transformers", reason="needs transformers<4.57")
pytestmark = [
    pytest.mark.skipif(not hasattr(transformers, "FlaxGPT2LMHeadModel"), reason="needs transformers<4.57 and Flax"),
    pytest.mark.filterwarnings("ignore"),  # the library's own, among them that its Flax models are deprecated
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "transformers_twins.py"
WORDS = 61
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SEQUENCES = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "decoder_start_token_id": 2,
}


def example() -> Any:
    spec = importlib.util.spec_from_file_location("transformers_twins", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["gpt2", "vit"])
def test_the_example_matches_and_learns(model: str, precision: str) -> None:
    """5 updates; GPT-2's projections, squares among them, are all found to be stored the other way round."""
    report = mb.compare(example().experiment(model=model), updates=5, precision=precision, executions=QUICK)
    assert report.matches, report.first_divergence
    changes = {link.reference: link.change for link in report.matching.links}
    turned = {name for name, change in changes.items() if change == "transposed"}
    if model == "gpt2":
        assert turned == {
            name for name in changes if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        }
        assert len(turned) == 8
    else:
        assert not turned


def ids(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(5, WORDS, (16, 8)).astype(np.int32)


def on_text(model: Any, batch: Any, train: bool) -> Any:
    return model(batch["ids"]).logits


def on_images(model: Any, batch: Any, train: bool) -> Any:
    return model(batch["images"]).logits


def translated(model: Any, batch: Any, train: bool) -> Any:
    return model(batch["ids"], decoder_input_ids=batch["before"]).logits


FAMILIES: dict[str, tuple[str, str, dict[str, Any], Callable[[Any, Any, bool], Any], dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForMaskedLM", {**TEXT, **NO_DROPOUT}, on_text, {}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**TEXT, "num_key_value_heads": 2}, on_text, {}),
    "bart": ("BartConfig", "BartForConditionalGeneration", SEQUENCES, translated, {}),
    "resnet": (
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5, "layer_type": "basic"},
        on_images,
        {"input_shape": (1, 16, 16, 3)},
    ),
}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "llama" else pytest.mark.slow) for name in FAMILIES]
)
def test_other_families_match_with_no_rename(family: str) -> None:
    """Masked language models, tied weights, encoders and decoders, and BatchNorm, told its mode through the object."""
    config_name, name, sizes, call, flax = FAMILIES[family]
    config = getattr(transformers, config_name)(**sizes)
    rng = np.random.default_rng(0)
    data = {"ids": ids(rng), "before": ids(rng), "images": rng.standard_normal((16, 3, 16, 16)).astype(np.float32)}
    images = family == "resnet"
    data["label"] = rng.integers(0, 5, 16).astype(np.int32) if images else ids(rng)
    experiment = mb.Experiment(
        model=mb.Model(
            torch=lambda: getattr(transformers, name)(config),
            jax=lambda: getattr(transformers, f"Flax{name}")(config, **flax),
            call=call,
        ),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.AdamW(learning_rate=1e-3),
        train_data=data,
        micro_batch_size=8,
    )
    report = mb.compare(experiment, updates=5, precision="float32", executions=QUICK)
    assert report.matches, report.first_divergence
    assert not [name for name in report.matching.reference_only if "num_batches_tracked" not in name]
