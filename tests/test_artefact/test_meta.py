# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Meta of a dataset, saved and loaded."""

import io

import numpy as np
import pytest
import torch
from log_kit import logged

from mmdet_ptq.artefact import decode_meta, encode_meta


def through_a_file(meta):
    file = io.BytesIO()
    torch.save(encode_meta(meta), file)
    file.seek(0)
    return decode_meta(torch.load(file, weights_only=True))


@pytest.mark.parametrize(
    'value',
    [
        ('cat', 'dog'),
        ['cat', 'dog'],
        [(1, 2, 3), (4, 5, 6)],
        'random',
        None,
        True,
        0.1,
        b'cat',
        {1: ('a', [2, (3,)]), 'b': {}},
    ],
    ids=str,
)
def test_plain_types_stay(value):
    found = through_a_file(dict(x=value))['x']
    assert found == value and repr(found) == repr(value)


@pytest.mark.parametrize(
    'dtype', ['u1', 'i2', 'i8', 'f2', 'f4', 'f8', '?', 'U', 'S']
)
@pytest.mark.parametrize('shape', [(), (3,), (2, 3), (0, 3)])
def test_arrays_stay_arrays(dtype, shape):
    value = np.random.default_rng(0).uniform(0, 9, shape).astype(dtype)
    value = value[()] if shape == () else value
    found = through_a_file(dict(x=[value]))['x'][0]
    assert type(found) is type(value) and found.dtype == value.dtype
    assert found.shape == value.shape and np.array_equal(found, value)
    assert decode_meta(dict(x=value))['x'] is value
    # in a dict as well, whose keys stay
    found = through_a_file(dict(x={'a': {0: value}}))['x']['a'][0]
    assert found.dtype == value.dtype and np.array_equal(found, value)


def test_tensors_stay():
    found = through_a_file(dict(x=torch.arange(3)))['x']
    assert torch.equal(found, torch.arange(3))


class Special(torch.Tensor):
    """A safe loader knows no subclasses."""


def test_what_no_safe_loader_takes_is_left_out():
    meta = dict(a=[{1, 2}], b=np.array([{}]), c=object(), d=1)
    meta |= dict(e=torch.ones(2).as_subclass(Special), f={np.int64(1): 2})
    meta |= dict(g=np.ones(2, np.complex64), h={np.str_('x'): [1]})
    meta |= dict(i={frozenset('a'): 1})
    with logged() as said:
        assert through_a_file(meta) == dict(d=1)
    for key, what in (
        ('a', 'a set'),
        ('b', 'an array of object'),
        ('c', 'a object'),
        ('e', 'a Special'),
        ('f', 'a int64 as a key'),
        ('g', 'an array of complex64'),
        ('h', 'a str_ as a key'),
        ('i', 'a frozenset'),
    ):
        told = f"dataset_meta['{key}'] is not saved: it holds {what}\n"
        assert told in said.text


@pytest.mark.skipif(
    np.dtype(np.longdouble).itemsize == 8, reason='it is as long as a double'
)
def test_numbers_longer_than_those_of_python_are_left_out():
    with logged() as said:
        assert encode_meta(dict(x=np.ones(2, np.longdouble))) == {}
    assert 'array of float' in said.text
