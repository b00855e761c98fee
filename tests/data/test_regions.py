"""Regions: read from the published files, refused with a sentence, proposed where there are none."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.proposals import propose
from tessera.data.readers.detections import COLUMNS, Detections
from tessera.data.regions import as_shares, collate_regions, named, unnamed
from tessera.data.worlds.scenes.draw import draw, object_boxes
from tessera.data.worlds.scenes.graph import random_scene
from tessera.errors import BadSample, DataError


def detected(number: int = 36, width: int = 2048, seed: int = 0) -> dict[str, Any]:
    """What the detector says of one picture of 640 x 480."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((number, 2, 2)), axis=1).reshape(number, 4).astype(np.float32)
    return {
        "img_h": 480, "img_w": 640, "objects_id": rng.integers(1600, size=number),
        "objects_conf": rng.random(number, dtype=np.float32), "attrs_id": rng.integers(400, size=number),
        "attrs_conf": rng.random(number, dtype=np.float32), "num_boxes": number,
        "boxes": corners * np.array([640, 480, 640, 480], np.float32),
        "features": rng.random((number, width), dtype=np.float32),
    }  # fmt: skip


def line(name: str, fields: dict[str, Any]) -> bytes:
    """A line as the official extraction writes it."""

    def text(value: Any) -> bytes:
        return base64.b64encode(value.tobytes()) if isinstance(value, np.ndarray) else str(value).encode()

    return b"\t".join([name.encode(), *(text(fields[column]) for column in COLUMNS[1:])]) + b"\n"


def test_a_published_tsv_gives_its_regions_picture_by_picture(tmp_path: Path) -> None:
    pictures = {f"COCO_{seed}": detected(seed=seed) for seed in range(3)}
    file = tmp_path / "train2014_obj36.tsv"
    file.write_bytes(b"".join(line(name, fields) for name, fields in pictures.items()))
    found = Detections(file, regions=36, width=2048)
    assert len(found) == 3 and "COCO_1" in found and "COCO_9" not in found
    for name in ("COCO_2", "COCO_0"):
        regions, fields = found[name], pictures[name]
        assert regions.features is not None and np.array_equal(regions.features, fields["features"])
        assert np.allclose(regions.boxes[:, 0], fields["boxes"][:, 0] / 640)
        assert np.allclose(regions.boxes[:, 3], fields["boxes"][:, 3] / 480)
        assert np.array_equal(regions.objects, fields["objects_id"])
        assert np.array_equal(regions.attribute_confidence, fields["attrs_conf"])


def test_npz_files_are_read_under_both_sets_of_names_and_pickles_in_them_are_left_alone(tmp_path: Path) -> None:
    fields = detected(number=10, width=16)
    np.savez(tmp_path / "a.npz", **fields)
    np.savez(
        tmp_path / "b.npz", x=fields["features"], bbox=fields["boxes"], image_h=480, image_w=640,
        info=np.array({"objects_id": 3}, dtype=object),
    )  # fmt: skip
    found = Detections(tmp_path)
    assert len(found) == 2
    one, other = found["a"], found["b"]
    assert one.features is not None and other.features is not None
    assert np.array_equal(one.features, other.features) and np.array_equal(one.boxes, other.boxes)
    assert np.array_equal(one.objects, fields["objects_id"]) and not other.object_confidence.any()


def test_the_first_of_two_lines_of_a_picture_counts_and_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "1.tsv").write_bytes(line("x", detected(4, 8, seed=1)))
    first = Detections(tmp_path)
    (tmp_path / "2.tsv").write_bytes(line("x", detected(4, 8, seed=2)))
    both = Detections(tmp_path)
    assert np.array_equal(both["x"].boxes, first["x"].boxes)
    assert "1 met twice" in str(both.tally) and both.fingerprint() != first.fingerprint()


def _changed(**changes: Any) -> bytes:
    return line("x", {**detected(4, 8), **changes})


BOXES = detected(4, 8)["boxes"]
BAD = {
    "32 bytes, which are not those of 5 regions": _changed(num_boxes=5),
    "num_boxes is 'many', not a whole number above 0": _changed(num_boxes="many"),
    "lies outside its picture of 640 x 480 pixels": _changed(boxes=BOXES + np.float32(700)),
    "ends before it begins": _changed(boxes=np.ascontiguousarray(BOXES[:, [2, 3, 0, 1]])),
    "no finite number": _changed(features=np.full((4, 8), np.nan, np.float32)),
    "not whole base64": _changed(features="AAA"),
    "8 wide features, and the model takes 2048": _changed(),
}


@pytest.mark.parametrize("sentence", BAD)
def test_a_spoilt_line_is_a_bad_sample_that_names_file_picture_and_reason(sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.tsv"
    file.write_bytes(BAD[sentence])
    width = 2048 if "2048" in sentence else None
    with pytest.raises(BadSample, match="bad.tsv, picture 'x'") as caught:
        Detections(file, width=width)["x"]
    assert sentence in str(caught.value)


def test_another_number_of_regions_than_the_model_takes_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(line("x", detected(35, 8)))
    with pytest.raises(BadSample, match="35 regions, and the model takes 36"):
        Detections(tmp_path, regions=36)["x"]


def test_spoilt_npz_files_are_bad_samples(tmp_path: Path) -> None:
    fields = detected(4, 8)
    np.savez(tmp_path / "pickled.npz", **{**fields, "features": np.array([None], dtype=object)})
    np.savez(tmp_path / "without.npz", features=fields["features"], img_h=480, img_w=640)
    np.savez(tmp_path / "flat.npz", **{**fields, "features": fields["features"].ravel()})
    np.savez(tmp_path / "fewer.npz", **{**fields, "boxes": fields["boxes"][:3]})
    (tmp_path / "damaged.npz").write_bytes(b"PK nothing")
    found = Detections(tmp_path)
    for name, sentence in {
        "pickled": "holds a pickled object, which is never loaded", "without": "no array 'boxes' ('bbox')",
        "flat": "are not [K, F] and [K, 4]", "fewer": "4 regions have features and 3 have boxes",
        "damaged": "damaged or no .npz", "missing": "has no regions of picture 'missing'",
    }.items():  # fmt: skip
        with pytest.raises(BadSample) as caught:
            found[name]
        assert sentence in str(caught.value)


def test_what_is_no_set_of_detections_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.tsv").write_text("a\tb\n")
    (tmp_path / "nothing.tsv").write_text("")
    (tmp_path / "file.csv").write_text("a,b\n")
    cut = line("x", detected(4, 8))[:200]
    (tmp_path / "cut.tsv").write_bytes(line("w", detected(4, 8)) + cut[: cut.rindex(b"\t")])
    for name, sentence in {
        "absent.tsv": "no such file", "empty": "no .tsv and no .npz", "words.tsv": "line 1: 2 columns, not the 10",
        "nothing.tsv": "the file is empty", "file.csv": "not '.csv'", "cut.tsv": "line 2: ",
    }.items():  # fmt: skip
        with pytest.raises(DataError) as caught:
            Detections(tmp_path / name)
        assert sentence in str(caught.value)


def test_batches_are_padded_and_know_where_a_region_is() -> None:
    boxes = as_shares(np.array([[0, 0, 32, 64], [32, 0, 64, 64.0]]), 64, 64)
    batch = collate_regions([named(boxes, [1, 2], [3, 4]), unnamed(boxes[:1])])
    assert batch.mask.tolist() == [[True, True], [True, False]] and batch.features is None
    assert batch.objects.tolist() == [[1, 2], [0, 0]] and batch.attribute_confidence.tolist() == [[1, 1], [0, 0]]
    assert torch.equal(batch.boxes[0], torch.tensor([[0, 0, 0.5, 1], [0.5, 0, 1, 1]]))
    assert batch.boxes.shape == (2, 2, 4) and not batch.boxes[1, 1].any()


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = sides.clip(0).prod()
    return float(both / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - both))


def test_proposals_find_nearly_every_object_of_a_drawn_scene() -> None:
    scenes = [random_scene(np.random.default_rng([5, index])) for index in range(60)]
    found = [
        max(_overlap(box, true / 64) for box in propose(draw(scene)))
        for scene in scenes
        for true in object_boxes(scene)
    ]
    assert np.mean(np.array(found) > 0.6) > 0.97


def test_proposals_of_an_empty_picture_are_the_whole_and_never_more_than_the_limit() -> None:
    assert propose(np.full((20, 30, 3), 99, np.uint8)).tolist() == [[0, 0, 1, 1]]
    board = np.zeros((90, 90, 3), np.uint8)
    board[::9, ::9] = 255
    board = np.kron(board[::3, ::3], np.ones((3, 3, 1), np.uint8))
    assert len(propose(board, limit=36)) <= 36
