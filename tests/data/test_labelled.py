"""Pictures by name or path, with classes where they have some."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tessera.data.labelled import open_picture_set
from tessera.errors import UserError


def test_pictures_are_taken_with_classes_where_they_have_some(tmp_path: Path) -> None:
    for name in ("classes/red", "classes/blue", "others"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    found = open_picture_set([str(tmp_path / "classes")])
    assert found.classes == ("blue", "red") and len(found.train) + len(found.heldout) == 24
    found = open_picture_set([str(tmp_path / "others")])
    assert found.classes == () and len(found.train) + len(found.heldout) == 12
    assert open_picture_set(["scenes"]).classes == ()
    assert "Food & Drink" in open_picture_set([]).classes
    with pytest.raises(UserError, match="one set of pictures"):
        open_picture_set(["scenes", "emoji"])
    with pytest.raises(UserError, match="did you mean 'scenes'"):
        open_picture_set(["scene"])
