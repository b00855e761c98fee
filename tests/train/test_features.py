import numpy as np
import torch

from tessera.data.sample import Image
from tessera.train.features import AT_ONCE, FeatureStore


def picture(value: int, key: str | None) -> Image:
    return Image(np.full((2, 2, 3), value, np.uint8), key=key)


class Encoder:
    def __init__(self):
        self.calls: list[int] = []

    def __call__(self, images):
        self.calls.append(len(images))
        return torch.tensor([[float(image.source[0, 0, 0]) / 3] for image in images])


def test_a_picture_is_encoded_once_and_a_keyless_one_each_time():
    encoder = Encoder()
    store = FeatureStore(encoder)
    first = store([picture(1, "a"), picture(2, None), picture(1, "a")])
    again = store([picture(2, None), picture(1, "a")])
    assert encoder.calls == [2, 1]
    assert torch.equal(first[0], first[2])
    assert torch.equal(again, torch.stack([first[1], first[0]]))


def test_many_pictures_are_encoded_in_parts_in_their_order():
    encoder = Encoder()
    images = [picture(value % 256, str(value)) for value in range(AT_ONCE + 3)]
    found = FeatureStore(encoder)(images)
    assert encoder.calls == [AT_ONCE, 3]
    assert torch.equal(found, FeatureStore(Encoder(), limit=0)(images[::-1]).flip(0))


def test_features_do_not_depend_on_what_is_remembered():
    full, empty = FeatureStore(Encoder()), FeatureStore(Encoder(), limit=0)
    images = [picture(value, str(value)) for value in range(5)]
    full(images)
    assert torch.equal(full(images), empty(images))
    assert torch.equal(empty(images), empty(images))


def test_what_is_asked_for_the_last_time_goes_and_leaves_room():
    encoder = Encoder()
    store = FeatureStore(encoder, limit=4)  # two numbers in half precision
    images = [picture(1, "a"), picture(2, "b"), picture(3, "c"), picture(4, None)]
    first = store(images[:2])
    assert torch.equal(store.last([images[0], images[3], images[0]])[[0, 2]], first[[0, 0]])
    assert encoder.calls == [2, 1]
    store([images[2]])
    assert torch.equal(store(images[1:3])[0], first[1])
    assert encoder.calls == [2, 1, 1]
    assert torch.equal(store([images[0]]), first[:1])
    assert encoder.calls == [2, 1, 1, 1]


def test_features_are_read_and_remembered_under_bf16_autocast():
    store = FeatureStore(Encoder())
    images = [picture(1, "a"), picture(2, "b")]
    with torch.autocast("cpu", torch.bfloat16):
        inside = store(images)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, store(images))
