# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Two processes reconstruct what one does with twice the batch."""

import subprocess
import sys

import pytest
import reconstruct_ranks
import torch

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
SITUATIONS = ('unreadable', 'few', 'some', 'some_global', 'whole')
ROUNDED = ('rounded', 'rounded_some', 'rounded_few')


@pytest.fixture(scope='module')
def one():
    # as the processes do: another device draws other numbers
    with torch.device('cpu'):
        return reconstruct_ranks.everything(0, 1)


@pytest.fixture(scope='module')
def two(tmp_path_factory, environment):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp('ranks')
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                reconstruct_ranks.__file__,
                str(rank),
                '2',
                str(folder / 'meeting'),
                str(folder / f'{rank}.pth'),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [p.communicate(timeout=200)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    return [torch.load(folder / f'{rank}.pth') for rank in range(2)]


def check_same(ours, theirs):
    """The same but for the rounding of sums."""
    assert ours['notes'] == theirs['notes']
    for a, b in zip(ours['records'], theirs['records'], strict=True):
        assert len(a['curve']) == len(b['curve'])
        assert a == {
            **b,
            **{
                k: pytest.approx(b[k], rel=1e-5)
                for k in ('before', 'after', 'curve')
            },
        }
    a, b = ours['tensors'], theirs['tensors']
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', SITUATIONS)
def test_two_against_one(one, two, name):
    check_same(one[name], two[0][name])
    assert any(r['kept'] for r in one[name]['records'])


@pytest.mark.parametrize('name', ROUNDED)
def test_compensated_rounding(one, two, name):
    ours, theirs = one[name], two[0][name]
    assert ours['notes'] == theirs['notes'] and ours['records']
    for a, b in zip(ours['records'], theirs['records'], strict=True):
        assert a['rows'] == b['rows']
        assert a['after'] == pytest.approx(b['after'], rel=1e-5)
        assert a['share'] == pytest.approx(b['share'], abs=1e-5)
    for name, tensor in ours['tensors'].items():
        torch.testing.assert_close(
            tensor, theirs['tensors'][name], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize('name', SITUATIONS + ROUNDED)
def test_ranks_agree_to_the_bit(two, name):
    ours, theirs = two[0][name], two[1][name]
    assert ours['records'] == theirs['records']
    assert all(
        torch.equal(ours['tensors'][n], theirs['tensors'][n])
        for n in ours['tensors']
    )


def test_a_branch_is_reconstructed(one):
    """The convolution that only some images meet."""
    for name in ('some', 'some_global'):
        records = {r['unit']: r for r in one[name]['records']}
        assert records['backbone.4.conv']['before'] > 0


@pytest.mark.parametrize('name', ['apart', 'before', 'same'])
def test_ranks_stopped_apart(two, name):
    """A kill between the saves of two ranks: both go on from the later."""
    for rank in range(2):
        found, whole = two[rank][name], two[rank]['whole']
        assert found['records'] == whole['records']
        assert all(
            torch.equal(found['tensors'][n], whole['tensors'][n])
            for n in whole['tensors']
        )
