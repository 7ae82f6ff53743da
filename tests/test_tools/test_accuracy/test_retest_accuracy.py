# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Artefacts tested again on other images, the tests themselves replaced."""

import json

import pytest

from tools.accuracy.retest_accuracy import main
from tools.accuracy.suites import ROOT, SUITES

QDROP = ('detr', 'qdrop', 'w3a3', 0)
REG = ('detr', 'reg_ptq', 'w3a3', 0)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def artefact(work, code, cell, ap, content=b'codes'):
    folder = work / code / '_'.join(map(str, cell))
    write(folder / 'ptq_result.json', dict(quantized={'coco/bbox_mAP': ap}))
    (folder / 'quantized.pth').write_bytes(content)
    return folder / 'quantized.pth'


class Tool:
    """Retests suites of a folder; a test takes no time.

    Attributes:
        ran (list[Path]): Checkpoints of the last call.
        fails (bool): Whether tests fail.
    """

    def __init__(self, folder):
        self.folder, self.path = folder, folder / 's3_other.json'
        self.work, self.data = folder / 'work', folder / 'other'
        self.ran, self.fails = [], False

    def test(self, detector, checkpoint, data, folder):
        self.ran.append(checkpoint)
        if self.fails:
            raise RuntimeError('exit code 1')
        return 0.75 if checkpoint.name == 'detr_digits.pth' else 0.625

    def run_main(self, *args, suite='s3'):
        self.ran.clear()
        fixed = ['--out', self.folder, '--work-dir', self.work]
        words = [suite, self.data, *fixed, *args]
        return main(list(map(str, words)), self.test)


@pytest.fixture
def tool(tmp_path):
    found = Tool(tmp_path)
    write(found.data / 'val.json', {})
    write(found.data / 'settings.json', dict(seed=2, train=1, val=99))
    cells = [
        dict(
            zip(('detector', 'recipe', 'bits', 'seed'), cell, strict=True),
            float=0.5,
            quantized=ap,
            mask=0.2,
            mask_float=0.4,
            settings=dict(iters=7, images=5, global_every=3),
        )
        for cell, ap in ((QDROP, 0.25), (REG, 0.3))
    ]
    write(tmp_path / 's3.json', cells)
    return found


def test_artefacts_of_the_cells(tool, capsys):
    artefact(tool.work / 's3', 'old code', QDROP, 0.2)
    same = artefact(tool.work / 's3', 'code', QDROP, 0.25)
    assert tool.run_main() == 0
    plain = ROOT / 'demo/checkpoints/detr_digits.pth'
    # the artefact that the cell's AP is of, and the float detector
    assert tool.ran == [plain, same]
    assert 'reg_ptq w3a3 0 has no artefact' in capsys.readouterr().out
    (found,) = json.loads(tool.path.read_text())
    assert (found['quantized'], found['float']) == (0.625, 0.75)
    table = tool.path.with_suffix('.md').read_text()
    assert 'on 99 other images, data/other' in table
    assert '| qdrop | 0.625 |' in table and '| float | 0.750 |' in table


def test_masks_are_not_those_of_other_images(tool):
    artefact(tool.work / 's3', 'code', QDROP, 0.25)
    assert tool.run_main() == 0
    (found,) = json.loads(tool.path.read_text())
    assert found['quantized'] == 0.625
    assert 'mask' not in found and 'mask_float' not in found


def test_what_is_tested_is_kept(tool):
    first = artefact(tool.work / 's3', 'code', QDROP, 0.25)
    tool.run_main()
    second = artefact(tool.work / 's3', 'code', REG, 0.3)
    tool.run_main()
    assert tool.ran == [second]
    assert len(json.loads(tool.path.read_text())) == 2
    first.write_bytes(b'other codes')
    tool.run_main()
    assert tool.ran == [first]
    write(tool.data / 'val.json', dict(images=[]))
    tool.run_main('--methods', 'reg_ptq')
    assert tool.ran[1:] == [second] and len(tool.ran) == 2


def test_a_cell_of_another_suite(tool):
    cells = json.loads(tool.path.with_name('s3.json').read_text())
    cells[0]['suite'] = 'table1'
    write(tool.path.with_name('s3.json'), cells)
    path = artefact(tool.work / 'table1', 'code', QDROP, 0.25)
    tool.run_main()
    assert path in tool.ran


def test_cells_of_another_budget(tool):
    artefact(tool.work / 's3', 'code', QDROP, 0.25)
    more = artefact(tool.work / 's3', 'code', REG, 0.375)
    cells = json.loads(tool.path.with_name('s3.json').read_text())
    cells[1]['quantized'] = 0.375
    write(tool.path.with_name('s3_long.json'), cells[1:])
    assert tool.run_main('--budget', 'long') == 0
    assert tool.ran[1:] == [more] and not tool.path.exists()
    table = tool.path.with_name('s3_long_other.md').read_text()
    assert 'retest_accuracy s3 data/other --budget long`' in table


def test_a_failed_test_is_told(tool, capsys):
    artefact(tool.work / 's3', 'code', QDROP, 0.25)
    tool.run_main()
    artefact(tool.work / 's3', 'code', REG, 0.3)
    tool.fails = True
    assert tool.run_main() == 1
    assert 'exit code 1' in capsys.readouterr().out
    assert len(json.loads(tool.path.read_text())) == 1


def test_no_such_set(tool, capsys):
    (tool.data / 'val.json').unlink()
    with pytest.raises(SystemExit):
        tool.run_main()
    assert 'val.json does not exist' in capsys.readouterr().err


def test_nothing_to_retest(tool, capsys):
    """No finished cell, or cells of photographs and not of digits."""
    tool.path.with_name('s3.json').unlink()
    with pytest.raises(SystemExit):
        tool.run_main()
    assert 's3.json does not exist' in capsys.readouterr().err
    assert 'yolox' in SUITES
    with pytest.raises(SystemExit):
        tool.run_main(suite='yolox')
    assert "invalid choice: 'yolox'" in capsys.readouterr().err
