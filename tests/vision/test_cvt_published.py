"""CvT's published layouts: transformers' and the official repository's, and what is none of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CvtConfig, CvtForImageClassification, CvtModel, ViTConfig, ViTModel

from tessera.errors import CheckpointError
from tessera.vision import registry
from tessera.vision.cvt import CvT
from tessera.vision.cvt_published import load_published

TINY = {  # transformers gives the drop-path rate of a stage by its number among the blocks: three blocks there
    "embed_dim": (64, 128, 192), "num_heads": (1, 2, 3), "depth": (1, 2, 3)
}  # fmt: skip
# The names of microsoft/CvT, lib/models/cls_cvt.py, for those of transformers.
OFFICIAL = (
    ("cvt.encoder.stages.", "stage"),
    ("embedding.convolution_embeddings.projection", "patch_embed.proj"),
    ("embedding.convolution_embeddings.normalization", "patch_embed.norm"),
    ("layers.", "blocks."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm", "norm"),
    ("classifier", "head"),
    *(
        pair
        for word in ("query", "key", "value")
        for pair in (
            (f"attention.attention.convolution_projection_{word}.convolution_projection", f"attn.conv_proj_{word[0]}"),
            (f"attention.attention.projection_{word}", f"attn.proj_{word[0]}"),
        )
    ),
)


def official_name(name: str) -> str:
    for theirs, official in OFFICIAL:
        name = name.replace(theirs, official)
    name = re.sub(r"(conv_proj_.)\.convolution", r"\1.conv", name)
    return re.sub(r"(conv_proj_.)\.normalization", r"\1.bn", name)


@pytest.fixture
def theirs() -> CvtForImageClassification:
    torch.manual_seed(0)
    model = CvtForImageClassification(CvtConfig(**TINY, num_labels=5)).eval()
    for value in [*model.parameters(), *model.buffers()]:
        if value.is_floating_point():
            value.detach().uniform_(0.01, 0.2)
    return model


@pytest.mark.light("cvt", "weights")
@torch.no_grad()
def test_a_folder_of_transformers_gives_its_logits(theirs: CvtForImageClassification, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    ours, head = load_published(tmp_path)
    pictures = torch.randn(2, 3, 64, 48)
    logits = torch.nn.functional.linear(ours(pictures).pooled, head["weight"], head["bias"])
    torch.testing.assert_close(logits, theirs(pictures).logits, atol=1e-5, rtol=1e-5)
    by_name = registry.create(str(tmp_path))
    assert isinstance(by_name, CvT)
    assert torch.equal(by_name(pictures).tokens, ours(pictures).tokens)


@pytest.mark.light("cvt", "weights")
@torch.no_grad()
def test_a_bare_cvt_model_loads_with_a_norm_that_changes_no_scale(
    theirs: CvtForImageClassification, tmp_path: Path
) -> None:
    theirs.cvt.save_pretrained(tmp_path)
    ours, head = load_published(tmp_path)
    wanted = CvtModel.from_pretrained(tmp_path)(torch.ones(1, 3, 64, 64))
    found = ours(torch.ones(1, 3, 64, 64), output_hidden_states=True)
    torch.testing.assert_close(found.hidden_states[-1][:, :1], wanted.cls_token_value, atol=1e-5, rtol=1e-5)
    assert head == {}
    assert torch.equal(ours.norm.weight, torch.ones(192))


@pytest.mark.light("cvt", "weights")
@torch.no_grad()
def test_a_file_with_the_official_names_gives_the_same_model_with_quick_gelu(
    theirs: CvtForImageClassification, tmp_path: Path
) -> None:
    state = {official_name(name): value.contiguous() for name, value in theirs.state_dict().items()}
    names = (
        "stage0.patch_embed.proj.weight", "stage2.cls_token", "stage1.blocks.0.attn.conv_proj_k.bn.running_var",
        "stage2.blocks.1.attn.proj_v.bias", "stage2.blocks.1.mlp.fc2.bias", "norm.weight", "head.weight",
    )  # fmt: skip
    for name in names:
        assert name in state
    save_file(state, tmp_path / "cvt.safetensors")
    ours, head = load_published(tmp_path / "cvt.safetensors")
    assert ours.config.activation == "quick_gelu"
    assert (ours.config.widths, ours.config.heads, ours.config.depths) == ([64, 128, 192], [1, 2, 3], [1, 2, 3])
    assert torch.equal(head["weight"], theirs.classifier.weight)
    theirs.save_pretrained(tmp_path / "folder")
    for name, value in load_published(tmp_path / "folder")[0].state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


def test_weights_of_another_architecture_are_refused_with_the_first_names_that_differ(tmp_path: Path) -> None:
    vit = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    vit.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a 'vit', not a 'cvt'"):
        load_published(tmp_path)
    with pytest.raises(CheckpointError, match="holds no CvT.*first names are embeddings.class_token, embeddings.patch"):
        load_published(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**CvtConfig(**TINY).to_dict()}))
    with pytest.raises(
        CheckpointError, match=r"weights of a CvT: \d+ missing \(stages.0.blocks.0.attn.key.bias, .*unexp"
    ):
        load_published(tmp_path)


def test_weights_of_another_size_are_refused_by_shape(theirs: CvtForImageClassification, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "embed_dim": [64, 128, 256], "num_heads": [1, 2, 4]}))
    with pytest.raises(CheckpointError, match=r"of another shape \(norm.bias \[192\] for \[256\]"):
        load_published(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("qkv_projection_method", ["avg"] * 3),
        ("cls_token", [True] * 3),
        ("stride_kv", [2, 2, 1]),
        ("qkv_bias", [False] * 3),
    ],
)
def test_a_cvt_of_a_kind_that_was_never_published_is_refused(tmp_path: Path, field: str, value: list) -> None:
    values = {**CvtConfig(**TINY).to_dict(), field: value}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"this CvT has {field} "):
        load_published(tmp_path)


def test_a_folder_without_a_configuration_or_with_a_pickle_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no config.json"):
        load_published(tmp_path)
    (tmp_path / "cvt.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_published(tmp_path / "cvt.pth")
