# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where the float detectors of docs/reproduce.md come from.

Addresses of checkpoints are read from the metafiles of the installed
MMDetection.
"""

import functools
from pathlib import Path

import mmdet
import yaml

from tools.docs.markdown import markdown_table

ZOO = Path(mmdet.__file__).parent / '.mim' / 'configs'


@functools.cache
def zoo() -> dict[str, dict]:
    """What the metafiles of MMDetection say, by the stem of a config."""
    models = {}
    for file in sorted(ZOO.glob('*/metafile.yml')):
        found = yaml.safe_load(file.read_text())
        # some are a bare list
        found = found.get('Models', []) if isinstance(found, dict) else found
        models.update({Path(m['Config']).stem: m for m in found})
    return models


def checkpoints(data: dict) -> tuple[str, str]:
    """The table of detectors and the commands that fetch them."""
    printed = {}
    for table in data['tables'].values():
        if table.get('rows') and table['rows'][0][0] == 'float':
            printed.update(
                zip(table['columns'], table['rows'][0][2], strict=True)
            )
    rows, lines = [], []
    for stem, detector in data['detectors'].items():
        model = zoo().get(stem)
        url = model['Weights'] if model else detector['weights']
        ap = model['Results'][0]['Metrics']['box AP'] if model else ''
        rows.append([detector['name'], f'`{stem}`', printed[stem], ap])
        lines.append(f'wget -O checkpoints/{stem}.pth \\\n    {url}')
    head = ['detector', 'MMDetection config', 'paper', 'MMDetection']
    return markdown_table(head, rows), '\n'.join(lines)
