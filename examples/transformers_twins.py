"""Models of the transformers library trained on both sides, each from its own class, with no mapping written by hand.

    multibackend compare examples/transformers_twins.py --model gpt2
    multibackend compare examples/transformers_twins.py --model vit --precision float64

transformers before 4.57 holds Flax twins of many of its torch models. Here both are built from one tiny random
configuration; `compare` finds which parameter is which (GPT-2 keeps its projections the other way round in torch, and
whether a square one is transposed is told by the gradients of both models), gives both the same start, and trains.
Needs `pip install 'multibackend[all,transformers]'`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

import multibackend as mb

UPDATES = 5
CLASSES, WORDS = 5, 61


def gpt2(flavour: str) -> object:
    """A language model of two layers; `flavour` is "" for torch, "Flax" for Flax."""
    transformers = library()
    sizes = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return getattr(transformers, f"{flavour}GPT2LMHeadModel")(config)


def vit(flavour: str) -> object:
    """An image classifier of two layers; `flavour` is "" for torch, "Flax" for Flax."""
    transformers = library()
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
    )
    return getattr(transformers, f"{flavour}ViTForImageClassification")(config)


def library() -> Any:
    """The transformers library, or an end in words where it is not there or has no Flax models."""
    try:
        import transformers
    except ImportError:
        transformers = None
    if transformers is None or not hasattr(transformers, "FlaxGPT2LMHeadModel"):
        raise SystemExit(
            "this example needs transformers before 4.57 with Flax: pip install 'multibackend[all,transformers]'"
        )
    transformers.logging.set_verbosity_error()
    return transformers


def experiment(model: Literal["gpt2", "vit"] = "gpt2", learning_rate: float = 1e-3) -> mb.Experiment:
    """Random data of the right shapes: what is shown is that both learn alike, not that they learn much."""
    rng = np.random.default_rng(0)
    if model == "gpt2":
        words = rng.integers(0, WORDS, (64, 9)).astype(np.int32)
        data = {"inputs": words[:, :-1], "label": words[:, 1:]}
        build = gpt2
    else:
        images = rng.standard_normal((64, 3, 16, 16)).astype(np.float32)
        data = {"inputs": images, "label": rng.integers(0, CLASSES, 64).astype(np.int32)}
        build = vit
    return mb.Experiment(
        name=f"transformers-{model}",
        model=mb.Model(
            torch=lambda: build(""),
            jax=lambda: build("Flax"),
            call=lambda network, batch, train: network(batch["inputs"]).logits,
        ),
        loss=mb.losses.CrossEntropy(target="label"),
        optimizer=mb.optimizers.AdamW(learning_rate=learning_rate),
        train_data=data,
        micro_batch_size=8,
        gradient_accumulation_steps=2,
    )
