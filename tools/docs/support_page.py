# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The page that ``sweep_configs.py`` writes: one row for each family."""

import platform

import mmdet
import torch

#: cosine that a quantized network has to reach
_GOOD = 0.99
_STEPS = ('float_ok', 'quantized', 'predicts')
_CLIPS = (
    'Its data preprocessor takes clips of several frames with track samples; '
    'the sweep feeds images.'
)
#: what was found out about a run through the runner, printed only
#: while it fails
FOUND_RUNNER = {
    'rpn': 'A defect of MMDetection: its `eval_recalls` makes one array of '
    'images with different numbers of proposals, which NumPy 1.24 and later '
    'refuse.',
}
#: what was found out about a family, printed only while it fails
FOUND = {
    'deepsort': _CLIPS,
    'mask2former_vis': _CLIPS,
    'masktrack_rcnn': _CLIPS,
    'ocsort': _CLIPS,
    'qdtrack': _CLIPS,
    'queryinst': 'As PyTorch starts its boxes they have negative sides; as '
    'MMDetection starts them they leave the image, and on a CPU MMDetection '
    'pastes a mask into the part of the image around its box.',
    'reid': 'It embeds crops of people of one size and detects nothing.',
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


def went_through(row: dict) -> bool:
    """Whether a family's config went through the runner.

    Args:
        row (dict): See :func:`empty_row`.

    Returns:
        bool: Quantized by the command, saved, loaded, tested to the same.
    """
    return row['runner'] == 'yes'


def runner_notes(rows: dict[str, dict]) -> list[str]:
    """What did not go through the runner, and what was replaced for it.

    Args:
        rows (dict[str, dict]): Family to row.

    Returns:
        list[str]: Lines of Markdown, none if there is nothing to tell.
    """
    lines = []
    for title, found in (
        (
            'Do not go through the runner',
            [
                f'- **{n}**: `{r["runner"]}`. {FOUND_RUNNER.get(n, "")}'
                for n, r in rows.items()
                if r['runner'] and not went_through(r)
            ],
        ),
        (
            'Parts of the config that were replaced',
            [
                f'- **{n}**: {r["replaced"]}.'
                for n, r in rows.items()
                if r['replaced']
            ],
        ),
        (
            'Detect nothing, so that equal predictions say little',
            [f'- **{n}**' for n, r in rows.items() if r['detected'] == 0],
        ),
    ):
        if found:
            lines += ['', f'### {title}', '', *(s.strip() for s in found)]
    return ['', '## Through the runner', *lines] if lines else []


def optional_packages(rows: dict[str, dict]) -> list[str]:
    """Families that build only with packages that MMDetection can do without.

    Args:
        rows (dict[str, dict]): Family to row.

    Returns:
        list[str]: Lines of Markdown, none if no row has any.
    """
    found = {n: r for n, r in rows.items() if r['without']}
    if not found:
        return []
    versions = {k: v for r in found.values() for k, v in r['extras'].items()}
    lines = [
        '',
        '## With optional packages',
        '',
        'These families fail without a package that MMDetection does not '
        'require, and were run again with '
        + ', '.join(f'{k} {v}' for k, v in sorted(versions.items()))
        + '. Language models have random weights. What is of torchvision '
        'needs a build that fits that of torch.',
        '',
        '| family | without | builds | float runs | quantized | predicts | '
        'runner |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, row in found.items():
        without = ' '.join(row['without'].split()).replace('|', '/')
        cells = [name, f'`{without}`']
        cells += [_yes(row[k]) for k in ('built', *_STEPS)]
        cells.append(_runner_cell(row))
        lines.append('| ' + ' | '.join(cells) + ' |')
    return lines


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
        'Which detectors work? One config of every family folder of '
        f'MMDetection {mmdet.__version__} was tried: the smallest that runs '
        'here, of the three smallest. It has random weights, and is '
        'quantized by `uniform` w8a8 on two images of '
        f'{size[0]} x {size[1]}, or larger where the network wants it.',
        '',
        '* *cosine*: how alike raw outputs of the quantized and the float '
        'model are, with equal proposals and selections; the lowest over '
        'output tensors.',
        '* *bfloat16*: the same for the float model with weights and inputs '
        'of layers in bfloat16. It tells how much this random network '
        'changes by rounding alone.'
        + partial
        * ' Rows without it are of an earlier version of the tool.',
        '* *left float*: how many layers stay float, and why.',
        '',
        f'Made by `{command}` on {platform.machine()} CPU, torch '
        f'{torch.__version__}.',
        '',
        f'{len(rows)} of {total} families were run. **{len(usable)}** build '
        f'and predict in float here; **{len(good)}** of these '
        f'({100 * len(good) / max(1, len(usable)):.1f} %) quantize and '
        f'predict with finite output and cosine >= {_GOOD}.',
        '',
        *_about_runner(rows),
        '| family | config | image | float runs | quantized | predicts | '
        'runner | layers | left float | bfloat16 | cosine | seconds |',
        '|---|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name, r in rows.items():
        left = '; '.join(f'{n} x {w}' for w, n in r['left_float'].items())
        cells = [
            name,
            r['config'],
            '{} x {}'.format(*r['size']) if r['size'] else '',
            *(_yes(r[k]) for k in _STEPS),
            _runner_cell(r),
            str(r['layers']),
            left,
            *(
                '' if r[k] is None else f'{r[k]:.4f}'
                for k in ('bfloat16', 'cosine')
            ),
            f'{r["seconds"]:.0f}',
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    lines += optional_packages(rows) + exceptions(rows) + runner_notes(rows)
    return '\n'.join(lines) + '\n'


def _about_runner(rows: dict[str, dict]) -> list[str]:
    """The paragraph on the run through the runner, with its counts."""
    tried = [r for r in rows.values() if r['runner']]
    if not tried:
        return []
    good = sum(map(went_through, tried))
    return [
        '*runner*: what predicts goes once through the command, as a user '
        'runs it: `mmdet-ptq quantize CONFIG CHECKPOINT --recipe uniform '
        '--bits w8a8 --calib-num 2 --no-float-eval`, with model, pipelines, '
        'hooks and evaluator of the config, on two images in COCO format '
        'with the classes that the test data set of the config declares. '
        '"yes" means that `quantized.pth`, loaded on the config in the work '
        'dir, gives the same metrics and the same predictions. '
        f'**{good}** of {len(tried)} that were tried do.',
        '',
    ]


def _yes(value: bool) -> str:
    """A truth value in a table."""
    return 'yes' if value else 'no'


def _runner_cell(row: dict) -> str:
    """How the run through the runner ended, nothing if it was not tried."""
    return _yes(went_through(row)) if row['runner'] else ''
