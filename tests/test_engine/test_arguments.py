# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Each wrong argument of the Python door is one sentence, found early."""

import re

import attending
import pytest
import torch
from attending import Attending
from mmengine.config import Config
from torch import nn
from torch.utils.data import DataLoader, Dataset
from two_levels import PASSES, RULES, Tiny, batches

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.engine.arguments import check_model, take_batches
from mmdet_ptq.errors import CalibrationError, PTQError

CFG = dict(bits='w8a8', rules=RULES, passes=PASSES)


class Images(Dataset):
    """Three images, not collated."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return dict(inputs=torch.zeros(3, 8, 8), data_samples=None)


def never():
    """A dataloader that must not be read."""
    raise AssertionError('read')
    yield


def message(call, *args):
    """What is said, which is one line without a traceback of torch."""
    with pytest.raises(PTQError) as raised:
        call(*args)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def in_place():
    model = Tiny()
    model.backbone.compile()
    return model


@pytest.mark.parametrize(
    ('make', 'says'),
    [
        (lambda: torch.compile(Tiny()), 'torch.compile'),
        (in_place, 'torch.compile'),
        (lambda: torch.jit.script(nn.Linear(2, 2)), 'scripted'),
        (lambda: nn.DataParallel(Tiny()), 'model.module'),
        (lambda: Tiny().backbone, 'Sequential is no detector'),
        (batches, 'the model is a list'),
        (lambda: 'config.py', 'the model is a str'),
        (lambda: DataLoader(Images()), 'the model is a DataLoader'),
        (lambda: None, 'the model is a NoneType'),
    ],
)
def test_model(make, says):
    given = make()
    assert says in message(check_model, given)
    # by the door, before a batch is read
    assert says in message(quantize_detector, given, never(), CFG)


@pytest.mark.parametrize('recipe', ['apq_vit', 'ptq4vit'])
def test_gradients_are_there_in_inference_mode(recipe):
    """They cannot be turned on within that mode, so it is left."""
    found = []
    for inference in (False, True):
        model = Attending().eval()
        with torch.inference_mode(inference):
            quantize_detector(
                model, attending.batches(), dict(recipe=recipe, bits='w4a4')
            )
        found.append(model.state_dict())
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_model_that_was_made_in_inference_mode():
    with torch.inference_mode():
        model = Tiny().eval()
    for call in (
        lambda: check_model(model),
        lambda: quantize_detector(model, never(), CFG),
    ):
        assert 'outside of that' in message(call)


def test_model_that_is_quantized():
    model = Tiny().eval()
    quantize_detector(model, batches(), CFG)
    assert 'quantized already' in message(
        quantize_detector, model, never(), CFG
    )


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        (Tiny(), 'a model (Tiny): arguments are model, dataloader'),
        ('data/train', "a path ('data/train')"),
        (Images(), 'a dataset (Images)'),
        (Config(dict(batch_size=1)), 'a Config'),
        (dict(batch_size=1), 'a dict'),
        (batches(1)[0], 'a single batch'),
        (torch.zeros(2, 3, 8, 8), 'a Tensor'),
        (3, 'a int'),
        ([(torch.zeros(1, 3, 8, 8), 0)], 'batch 0 of the dataloader is a tup'),
        ([torch.zeros(1, 3, 8, 8)], 'batch 0 of the dataloader is a Tensor'),
        ([*batches(2), [1]], 'batch 2 of the dataloader is a list'),
        ([dict(img=1, target=2)], 'a dict with the keys img, target'),
        (list(map(Images().__getitem__, range(2))), 'of shape (3, 8, 8)'),
        ([], 'no batch'),
    ],
)
def test_dataloader(given, says):
    with pytest.raises(CalibrationError, match=re.escape(says)):
        take_batches(given, 3)
    model = Tiny().eval()
    before = list(model.named_modules())
    assert says in message(quantize_detector, model, given, CFG)
    assert list(model.named_modules()) == before


def test_as_many_batches_as_asked_for():
    data = batches(4)
    assert take_batches(iter(data), 3) == data[:3]
    assert take_batches(data, 9) == data
    # stacked images are batches too
    stacked = [dict(inputs=torch.zeros(2, 3, 8, 8))]
    assert take_batches(stacked, 1) == stacked


@pytest.mark.parametrize(
    ('call', 'says'),
    [
        (
            lambda path: save_quantized(nn.Linear(1, 1), path),
            'the first argument is a Linear; arguments are session and path',
        ),
        (
            lambda path: save_quantized(path, nn.Linear(1, 1)),
            'the first argument is a PosixPath; arguments are session and',
        ),
        (
            lambda path: load_quantized(str(path), nn.Linear(1, 1)),
            'the first argument is a str; arguments are model and path',
        ),
        (
            lambda path: load_quantized(nn.Linear(1, 1), dict()),
            'the path is a dict; arguments are model and path, in this order',
        ),
    ],
)
def test_arguments_of_files(call, says, tmp_path):
    with pytest.raises(PTQError, match=says):
        call(tmp_path / 'quantized.pth')
