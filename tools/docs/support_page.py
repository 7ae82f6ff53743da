# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page that ``sweep_configs.py`` writes: one row for each family."""

import platform

import mmdet
import torch

#: cosine that a quantized network has to reach
_GOOD = 0.99
_CLIPS = (
    'Its data preprocessor takes clips of several frames with track samples; '
    'the sweep feeds images.'
)
#: what was found out about a family, printed only while it fails
FOUND = {
    'mask2former_vis': _CLIPS,
    'masktrack_rcnn': _CLIPS,
    'qdtrack': _CLIPS,
    'queryinst': 'As PyTorch starts its boxes they have negative sides; as '
    'MMDetection starts them they leave the image, and on a CPU MMDetection '
    'pastes a mask into the part of the image around its box.',
    'sort': 'MMDetection ships the config but not its `_base_`.',
    'ssd': 'A defect of MMDetection, whatever the image size: `SSDHead` does '
    'not run the constructor of `AnchorHead` and so has no `loss_cls`, which '
    '`BaseDenseHead._predict_by_feat_single` reads.',
}


def passes(row: dict) -> bool:
    """Whether a family quantizes and predicts as it should.

    Args:
        row (dict): See :func:`empty_row`.

    Returns:
        bool: Finite predictions, and outputs like the float ones.
    """
    return row['predicts'] and (row['cosine'] or 0) >= _GOOD


def exceptions(rows: dict[str, dict]) -> list[str]:
    """The reason of every family that does not pass.

    Args:
        rows (dict[str, dict]): Family to row.

    Returns:
        list[str]: Lines of Markdown, none if all pass.
    """
    lines = []
    for title, ran in (
        ('Run in float, do not pass', True),
        ('Do not run in float here', False),
    ):
        found = [
            n
            for n, r in rows.items()
            if r['float_ok'] == ran and not passes(r)
        ]
        if not found:
            continue
        lines += ['', f'### {title}', '']
        for name in found:
            row = rows[name]
            why = ' '.join(row['why'].split())
            told = [f'`{why}`.'] if why else []
            if row['cosine'] is not None:
                told.append(
                    f'Cosine {row["cosine"]:.4f}; the float model has '
                    f'{row["bfloat16"] or 0:.4f} in bfloat16.'
                )
            told.append(FOUND.get(name, ''))
            lines.append(f'- **{name}**: {" ".join(told).strip()}')
    return ['', '## Exceptions', *lines] if lines else []


def to_markdown(
    rows: dict[str, dict], total: int, command: str, size: tuple[int, int]
) -> str:
    """The support matrix as a page.

    Args:
        rows (dict[str, dict]): Family to row, see :func:`empty_row`.
        total (int): How many families there are.
        command (str): What made the page.
        size (tuple[int, int]): Height and width of the smallest images.

    Returns:
        str: Markdown.
    """
    usable = {n: r for n, r in rows.items() if r['float_ok']}
    good = [n for n, r in usable.items() if passes(r)]
    partial = any(r['bfloat16'] is None for r in usable.values())
    lines = [
        '# Support matrix',
        '',
        'One config of every family folder that MMDetection '
        f'{mmdet.__version__} ships, the smallest that runs here of the '
        'three smallest; random weights, `uniform` w8a8 on two images of '
        f'{size[0]} x {size[1]}, or larger where the network wants it. '
        'Cosine: the lowest over raw output tensors, quantized against '
        'float, on equal proposals and selections. bfloat16: the same for '
        'the float model with weights and inputs of layers in bfloat16, '
        'which is what this random network can show.'
        + partial
        * ' Rows without it are of an earlier version of the tool.',
        '',
        f'Made by `{command}` on {platform.machine()} CPU, torch '
        f'{torch.__version__}.',
        '',
        f'{len(rows)} of {total} families were run. **{len(usable)}** build '
        f'and predict in float here; **{len(good)}** of these '
        f'({100 * len(good) / max(1, len(usable)):.1f} %) quantize and '
        f'predict with finite output and cosine >= {_GOOD}.',
        '',
        '| family | config | image | float runs | quantized | predicts | '
        'layers | left float | bfloat16 | cosine | seconds |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name, r in rows.items():
        left = '; '.join(f'{n} x {w}' for w, n in r['left_float'].items())
        cells = [
            name,
            r['config'],
            '{} x {}'.format(*r['size']) if r['size'] else '',
            *(
                'yes' if r[k] else 'no'
                for k in ('float_ok', 'quantized', 'predicts')
            ),
            str(r['layers']),
            left,
            *(
                '' if r[k] is None else f'{r[k]:.4f}'
                for k in ('bfloat16', 'cosine')
            ),
            f'{r["seconds"]:.0f}',
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join([*lines, *exceptions(rows)]) + '\n'
