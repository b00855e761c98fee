"""A frozen CLIP with learned prompts: which of K named classes a picture shows.

    model = PromptedCLIP.over(clip, tokenizer, classes, "maple")
    model(pixel_values).logits
    save_prompts(model, "prompts.safetensors")
    other = load_prompts("prompts.safetensors", another_clip, tokenizer, other_classes)

Legend: B pictures, K classes of L words, n text prompts, joint width D.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from tessera.adapt.class_names import TEMPLATE, lead, read_names
from tessera.adapt.injection import patch_prompts, word_prompts
from tessera.adapt.prompts import PromptLearner, Prompts, Sizes, prompts_of
from tessera.errors import CheckpointError, reason
from tessera.files import atomic_file
from tessera.weights import load_state, shapes_in

LEARNED = "learner.*"  # the parameters that train, as a pattern of `Stage.trainable`
_FORMAT = "tessera-prompts-1"


class PromptedCLIP(nn.Module):
    """CLIP's own forward with prompts put in; everything but the prompts is frozen, the logit scale too.

    Args:
        clip: any CLIPModel; its gradients are switched off, its weights stay as they are.
        tokenizer: of its text tower.
        template: what a class name stands in.

    Raises:
        UserError: class names that cannot be read, see `read_names`.
    """

    ids: Tensor

    def __init__(
        self, clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, classes: Sequence[str], learner: PromptLearner,
        template: str = TEMPLATE,
    ) -> None:  # fmt: skip
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.learner, self.tokenizer, self.template = learner, tokenizer, template
        self.classes = tuple(classes)
        longest = clip.text_model.config.max_position_embeddings
        ids = read_names(tokenizer, self.classes, learner.prompts.text, longest, template)
        self.register_buffer("ids", ids, persistent=False)
        self.to(clip.device)

    @classmethod
    def over(
        cls, clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, classes: Sequence[str],
        prompts: Prompts | str = "maple", template: str = TEMPLATE,
    ) -> PromptedCLIP:  # fmt: skip
        """New prompts, those of the first layer started at the template's words where it has enough.

        Args:
            prompts: or the name of a published method.

        Raises:
            UserError: there is no such method, it does not fit the CLIP, or class names that cannot be read.
        """
        sizes = Sizes.of(clip.config)
        asked = prompts_of(prompts, sizes) if isinstance(prompts, str) else prompts
        words = lead(tokenizer, template)
        start = None
        if 0 < asked.text <= len(words):
            table = clip.text_model.embeddings.token_embedding.weight.detach()
            start = table[torch.tensor(words[: asked.text], device=table.device)]
        return cls(clip, tokenizer, classes, PromptLearner(asked, sizes, start), template)

    def renamed(self, classes: Sequence[str]) -> PromptedCLIP:
        """The same CLIP and prompts over other classes. Raises UserError as the constructor."""
        other = PromptedCLIP(self.clip, self.tokenizer, classes, self.learner, self.template)
        return other.train(self.training)

    def train(self, mode: bool = True) -> PromptedCLIP:
        """The mode of the prompts; CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where pictures are looked at."""
        return self.clip.device

    @property
    def dtype(self) -> torch.dtype:
        """In what precision."""
        return self.clip.dtype

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures [B, 3, H, W]."""
        with patch_prompts(self.clip.vision_model, self.learner.vision_prompts()):
            pooled = self.clip.vision_model(pixel_values).pooler_output
        return F.normalize(self.clip.visual_projection(pooled), dim=-1)

    def text_features(self, seen: Tensor | None = None) -> Tensor:
        """Unit vectors [K, D] of the classes; with `seen` [B, D] and conditional prompts [B, K, D]."""
        prompts, ids = self.learner.text_prompts(seen), self.ids
        apart = self.learner.conditional is not None
        if apart:  # each picture has prompts of its own, which all classes share
            ids = ids.repeat(len(prompts[0]), 1)
            prompts = [prompts[0].repeat_interleave(len(self.ids), dim=0)]
        with word_prompts(self.clip.text_model, prompts):
            pooled = self.clip.text_model(ids).pooler_output
        features = F.normalize(self.clip.text_projection(pooled), dim=-1)
        return features.unflatten(0, (-1, len(self.ids))) if apart else features

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        """Logits [B, K] of pictures [B, 3, H, W]: cosines times CLIP's own scale."""
        images = self.image_features(pixel_values)
        texts = self.text_features(images)
        with torch.autocast(images.device.type, enabled=False):  # a scale of 100 makes the steps of bf16 large
            images, texts = images.float(), texts.float()
            cosines = (texts @ images[..., None])[..., 0] if texts.ndim == 3 else images @ texts.T
            return ImageClassifierOutputWithNoAttention(logits=self.clip.logit_scale.float().exp() * cosines)


def save_prompts(model: PromptedCLIP, file: str | Path) -> None:
    """Write what was learned, and nothing of CLIP, as one safetensors file. Class names are kept beside the prompts; no
    weight belongs to a class."""
    learner = model.learner
    about = {
        "format": _FORMAT, "prompts": asdict(learner.prompts), "sizes": asdict(learner.sizes),
        "template": model.template, "classes": list(model.classes),
    }  # fmt: skip
    tensors = {name: value.detach().cpu().contiguous() for name, value in learner.state_dict().items()}
    with atomic_file(file) as aside:
        save_file(tensors, aside, metadata={"tessera": json.dumps(about)})


def load_prompts(
    file: str | Path, clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, classes: Sequence[str] | None = None
) -> PromptedCLIP:
    """The prompts in a file on a CLIP of the size that they were learned on, in evaluation mode.

    Args:
        classes: other names than those that the prompts were learned with.

    Raises:
        CheckpointError: the file is absent, damaged, a pickle or no prompts, or of a CLIP of another size.
        UserError: class names that cannot be read.
    """
    file = Path(file)
    about = _about(file)
    try:
        sizes, prompts = Sizes(**about["sizes"]), Prompts(**about["prompts"])
        template, known = str(about["template"]), [str(name) for name in about["classes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} does not say which prompts it holds: {reason(error)}") from error
    differing = _differing(sizes, Sizes.of(clip.config))
    if differing:
        raise CheckpointError(
            f"the prompts in {file} are of a CLIP of another size: {differing}; load them onto theirs"
        )
    learner = PromptLearner(prompts, sizes)
    load_state(learner, load_file(file), str(file))
    return PromptedCLIP(clip, tokenizer, known if classes is None else classes, learner, template).eval()


def _about(file: Path) -> dict[str, Any]:
    shapes_in(file)  # says what is wrong with a file that cannot be read
    with safe_open(file, framework="pt") as held:
        text = (held.metadata() or {}).get("tessera", "")
    try:
        about = json.loads(text)
        if about["format"] == _FORMAT:
            return dict(about)
    except (ValueError, KeyError, TypeError):
        pass
    raise CheckpointError(f"{file} holds no learned prompts; give the file that `save_prompts` wrote")


def _differing(wanted: Sizes, found: Sizes) -> str:
    """As "text_width 512, here 192"."""
    both = zip(asdict(wanted).items(), asdict(found).values(), strict=True)
    return ", ".join(
        f"{name.replace('_', ' ')} {theirs}, here {ours}" for (name, theirs), ours in both if theirs != ours
    )
