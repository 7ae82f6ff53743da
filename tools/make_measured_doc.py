# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Writes docs/measured.md from the result files in docs/results."""

import argparse
import json
import sys
from pathlib import Path

RESULTS = Path('docs/results')


def coco_table(files: list[Path]) -> str:
    """YOLOX-nano on coco_mini, a row for each ``ptq_result.json``."""
    lines = [
        '| recipe | bits | box AP | float | MB | layers | float layers |',
        '|---|---|---|---|---|---|---|',
    ]
    for file in sorted(files):
        r = json.loads(file.read_text())
        before = r['float'].get('coco/bbox_mAP')
        lines.append(
            f'| {r["recipe"]} | {r["bits"]} '
            f'| {r["quantized"]["coco/bbox_mAP"]:.3f} '
            f'| {"" if before is None else f"{before:.3f}"} '
            f'| {r["storage_mb"]["quantized"]:.2f} '
            f'| {r["layers"]["quantized"]} | {len(r["layers"]["float"])} |'
        )
    return '\n'.join(lines)


def time_table(found: dict) -> str:
    """Ratios of tools/benchmark.py."""
    lines = [
        '| detector | convert + calibrate | simulated forward |',
        '|---|---|---|',
    ]
    lines += [
        f'| {name} | {r["calibrate"]:.2f} | {r["forward"]:.2f} |'
        for name, r in found['detectors'].items()
    ]
    return '\n'.join(lines)


def document() -> str:
    """The page; parts without result files are left out."""
    parts = [
        '# Measured',
        '',
        'Made by `python tools/make_measured_doc.py` from `docs/results`.',
        '',
    ]
    files = list(RESULTS.glob('yolox_nano_*.json'))
    if files:
        versions = json.loads(files[0].read_text())['versions']
        parts += [
            '## COCO: YOLOX-nano',
            '',
            "MMDetection's `yolox_nano_8xb8-300e_coco.py` with its trained "
            'weights on 164 COCO val images, calibrated on 32 of 337 train '
            'images: depthwise convolutions, SiLU and folded batch norms. '
            f'CPU, torch {versions["torch"]}. Command:',
            '',
            '```bash',
            'python tools/ptq.py configs/coco_mini/yolox_nano_coco-mini.py '
            'YOLOX_NANO.pth \\',
            '    --recipe RECIPE --bits BITS',
            '```',
            '',
            coco_table(files),
            '',
        ]
    path = RESULTS / 'benchmark.json'
    if path.is_file():
        found = json.loads(path.read_text())
        s = found['settings']
        parts += [
            '## Time',
            '',
            'Ratios to the float model in the same run: conversion and '
            f'calibration on {s["images"]} images over {s["images"]} float '
            'predictions; median simulated prediction over median float '
            f'prediction. Random weights, {s["size"]} x {s["size"]}, '
            f'`{s["recipe"]}` {s["bits"]}, {s["threads"]} threads, '
            f'{found["machine"]}. Command: `{found["command"]}`',
            '',
            time_table(found),
            '',
        ]
    return '\n'.join(parts)


def main() -> int:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='docs/measured.md')
    args = parser.parse_args()
    Path(args.out).write_text(document())
    return 0


if __name__ == '__main__':
    sys.exit(main())
