"""What lmms-eval finds at its entry point `lmms_eval.models`: the model `tessera`, which is any folder of this library
that chats or answers.

    python -m lmms_eval --model tessera --model_args pretrained=runs/llava/model --tasks mme --batch_size 16
"""

from __future__ import annotations

from typing import Any

CLASS = "tessera.harness.lmms_model.TesseraModel"


def manifest() -> Any:
    """The ModelManifest of lmms-eval 0.7; the class itself is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="tessera", chat_class_path=CLASS)
