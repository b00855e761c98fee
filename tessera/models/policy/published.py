"""What the releases of GR-1 leave (github.com/bytedance/GR-1, `state_dict` of its snapshots, and the same of the
community's trainer, github.com/EDiRobotics/GR1-Training), as a safetensors file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tessera.errors import CheckpointError
from tessera.models.policy.configuration import GR1Config
from tessera.models.policy.modeling import GR1Policy
from tessera.weights import load_state, shapes_in

UNREAD = 384  # values of the release's word table of one row, which nothing reads
# The frozen encoders, causal masks, and what nothing reads or follows from the sizes.
_LEFT_OUT = re.compile(r"model_(clip|mae)\.|transformer\.wte\.|.*\.attn\.(masked_)?bias$|decoder_pos_embed$")
_CONV1D = re.compile(r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_VECTORS = ("mask_token", "perceiver_resampler.media_pos_emb")
_RENAMED = (
    (r"transformer\.h\.(\d+)\.ln_(\d)", r"blocks.\1.norm\2"),
    (r"transformer\.h\.(\d+)\.attn\.c_attn", r"blocks.\1.attn.qkv"),
    (r"transformer\.h\.(\d+)\.attn\.c_proj", r"blocks.\1.attn.out"),
    (r"transformer\.h\.(\d+)\.mlp\.c_fc", r"blocks.\1.mlp.fc1"),
    (r"transformer\.h\.(\d+)\.mlp\.c_proj", r"blocks.\1.mlp.fc2"),
    (r"transformer\.ln_f", "norm"),
    (r"perceiver_resampler\.layers\.(\d+)\.0\.norm_media", r"resampler.layers.\1.token_norm"),
    (r"perceiver_resampler\.layers\.(\d+)\.0\.norm_latents", r"resampler.layers.\1.latent_norm"),
    (r"perceiver_resampler\.layers\.(\d+)\.0\.to_", r"resampler.layers.\1."),
    (r"perceiver_resampler\.layers\.(\d+)\.1\.0", r"resampler.layers.\1.mlp_norm"),
    (r"perceiver_resampler\.layers\.(\d+)\.1\.1", r"resampler.layers.\1.mlp.fc1"),
    (r"perceiver_resampler\.layers\.(\d+)\.1\.3", r"resampler.layers.\1.mlp.fc2"),
    (r"perceiver_resampler\.media_pos_emb", "resampler.media"),
    (r"perceiver_resampler\.latents", "resampler.latents.weight"),
    (r"perceiver_resampler\.", "resampler."),
    (r"embed_lang", "goal"),
    (r"embed_(arm|gripper)_state", r"state.\1"),
    (r"embed_state", "state.both"),
    (r"embed_timestep", "time"),
    (r"embed_hand_img", "cameras.1.token"),
    (r"embed_img", "cameras.0.token"),
    (r"embed_hand_patch", "cameras.1.patches"),
    (r"embed_patch", "cameras.0.patches"),
    (r"embed_ln", "embed_norm"),
    (r"action_queries", "action_query"),
    (r"obs_hand_queries", "cameras.1.queries"),
    (r"obs_queries", "cameras.0.queries"),
    (r"pred_act_mlps", "action.layers"),
    (r"pred_(arm|gripper)_act", r"action.\1"),
    (r"mask_token", "decoder.mask_token"),
    (r"decoder_blocks\.(\d+)\.attn\.proj", r"decoder.blocks.\1.attn.out"),
    (r"decoder_blocks", "decoder.blocks"),
    (r"decoder_(embed|norm)", r"decoder.\1"),
    (r"decoder_pred", "decoder.pixels"),
)


def load_published(path: str | Path, **fields: Any) -> GR1Policy:
    """The policy without its frozen encoders, in evaluation mode.

    Args:
        fields: of `GR1Config` that no weight tells: heads, decoder_heads, image_size, ahead and their like.

    Raises:
        CheckpointError: it cannot be read, is a pickle, is of another architecture, predicts chunks of actions or
            embeds positions.
    """
    path = Path(path)
    shapes_in(path)  # says in a sentence what is wrong with a damaged file
    state = {name.removeprefix("module."): value for name, value in load_file(path).items()}
    if "embed_timestep.weight" not in state or "perceiver_resampler.latents" not in state:
        raise CheckpointError(f"{path} holds no policy of GR-1; its first names are {', '.join(sorted(state)[:5])}")
    _fold_chunks(state, path)
    sizes = _sizes(state, fields.get("resampler_heads", GR1Config.resampler_heads))
    model = GR1Policy(GR1Config(**{**sizes, **fields}))
    held = {_name(name): _laid_out(name, value) for name, value in state.items() if not _LEFT_OUT.match(name)}
    load_state(model, held | {"decoder.places.table": model.decoder.places.table}, str(path))
    return model.eval()


def _fold_chunks(state: dict[str, Tensor], path: Path) -> None:
    """The community's trainer adds a query for each action of a chunk, and positions of GPT-2; with one action and no
    positions it is the released model."""
    positions = state.pop("transformer.wpe.weight", torch.zeros(1))
    if positions.any():
        raise CheckpointError(f"{path} embeds the positions of its tokens, which GR-1 does not")
    chunk = state.pop("action_chunk_queries.weight", None)
    if chunk is not None:
        if len(chunk) > 1:
            raise CheckpointError(f"{path} predicts {len(chunk)} actions at once; only policies of one are read")
        state["action_queries.weight"] = state["action_queries.weight"] + chunk


def _sizes(state: dict[str, Tensor], heads: int) -> dict[str, Any]:
    """What the shapes tell of the configuration; `heads` of the resampler they do not tell."""

    def blocks(prefix: str) -> int:
        return len({name.split(".")[prefix.count(".")] for name in state if name.startswith(prefix)})

    width, text = state["embed_lang.weight"].shape
    inner = len(state["perceiver_resampler.layers.0.0.to_q.weight"])
    return {
        "width": width, "text_width": text, "vision_width": state["embed_img.weight"].shape[1],
        "window": len(state["embed_timestep.weight"]), "depth": blocks("transformer.h."),
        "decoder_depth": blocks("decoder_blocks."), "resampler_depth": blocks("perceiver_resampler.layers."),
        "latents": len(state["perceiver_resampler.latents"]), "resampler_head_width": inner // heads,
        "state_size": state["embed_arm_state.weight"].shape[1] + 1,
        "action_size": len(state["pred_arm_act.weight"]) + 1,
        "patch_size": round((len(state["decoder_pred.weight"]) / 3) ** 0.5),
    }  # fmt: skip


def _name(theirs: str) -> str:
    for pattern, ours in _RENAMED:
        found, number = re.subn(f"^{pattern}", ours, theirs)
        if number:
            return found
    return theirs


def _laid_out(name: str, value: Tensor) -> Tensor:
    if name in _VECTORS:
        return value.flatten()
    return value.T.contiguous() if _CONV1D.fullmatch(name) else value
