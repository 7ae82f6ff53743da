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
    """Ratios of ``tools/speed/benchmark.py``."""
    lines = [
        '| detector | convert + calibrate | simulated forward |',
        '|---|---|---|',
    ]
    lines += [
        f'| {name} | {r["calibrate"]:.2f} | {r["forward"]:.2f} |'
        for name, r in found['detectors'].items()
    ]
    return '\n'.join(lines)


def recipes_section(found: list[dict]) -> list[str]:
    """Time and memory of recipes, beside a float pass over the same images.

    Args:
        found (list[dict]): Of ``tools/speed/benchmark.py``, a recipe each.
    """
    lines = [
        '## Time and memory of recipes',
        '',
        'The whole quantization over float predictions of the calibration '
        'images, in the same run, and the seconds of one such prediction; a '
        'simulated prediction over a float one; and the largest memory of the '
        'process after the float predictions and after all, empty where '
        'another detector had run in it before. Random weights, one CPU '
        'thread. Command: `python -m tools.speed.benchmark --recipe '
        'RECIPE --bits BITS --size HEIGHT WIDTH --images IMAGES --repeats 1 '
        '--threads 1 --only DETECTOR --out '
        'docs/results/benchmark_RECIPE.json`',
        '',
        '| detector | recipe | bits | size | images | quantization / float '
        '| float, s | forward / float | float, MB | all, MB |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for one in found:
        s, before = one['settings'], None
        for name, r in one['detectors'].items():
            peaks = r['float_peak_rss_mb'], r['peak_rss_mb']
            shown = ('', '') if peaks[0] == before else peaks
            before = peaks[1]
            lines.append(
                f'| {name} | `{s["recipe"]}` | {s["bits"]} '
                f'| {sides(s["size"])} | {s["images"]} '
                f'| {r["calibrate"]:.2f} | {r["float_forward_s"]:.1f} '
                f'| {r["forward"]:.2f} | {shown[0]} | {shown[1]} |'
            )
    return [*lines, '']


def sides(size: int | list[int]) -> str:
    """A size in pixels as text: ``512 x 512``."""
    given = [size] if isinstance(size, int) else size
    return f'{given[0]} x {given[-1]}'


def gpu_section(found: dict) -> list[str]:
    """Ratios, memory and crossings of ``tools/speed/benchmark.py``, on a GPU.

    Args:
        found (dict): ``benchmark_cuda.json``.
    """
    s = found['settings']
    size = ' '.join(map(str, s['size']))
    parts = ('weight ranges', 'calibration', 'activation ranges')
    lines = [
        '## Time on a GPU',
        '',
        f'{found["machine"]}, {found["date"]}; not to be compared with the '
        f'CPU above. {sides(s["size"])}, {s["images"]} images, '
        f'`{s["recipe"]}` {s["bits"]}, random weights. Ratios to float '
        'predictions of the same images: conversion and calibration, and of '
        'it weight ranges, forwards of the calibration and activation '
        'ranges; then median simulated prediction over median float '
        'prediction. Command: '
        f'`{found["command"]} --device {s["device"]} --size {size} '
        f'--images {s["images"]} --repeats {s["repeats"]}`',
        '',
        '| detector | float, ms | convert + calibrate | weight ranges '
        '| forwards | activation ranges | simulated forward | GPU MiB |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for name, r in found['detectors'].items():
        cells = [r['calibrate'], *(r['stages'][p] for p in parts)]
        cells.append(r['forward'])
        ratios = ' | '.join(f'{value:.2f}' for value in cells)
        lines.append(
            f'| {name} | {1e3 * r["float_forward_s"]:.1f} | {ratios} '
            f'| {r["peak_gpu_mb"]} |'
        )
    lines += [
        '',
        'What one prediction makes the GPU and the CPU wait for, float and '
        'simulated: copies between them, waits of the CPU, numbers that it '
        'asks for; and kernels.',
        '',
        '| detector | copies | waits | numbers | kernels |',
        '|---|---|---|---|---|',
    ]
    for name, r in found['detectors'].items():
        both = [r[f'crossings_{one}'] for one in ('float', 'quantized')]
        cells = [
            ', '.join(str(one[key]) for one in both)
            for key in ('copies', 'waits', 'item', 'kernels')
        ]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return [*lines, '', *_step_lines(found.get('steps', {}))]


def _step_lines(steps: dict) -> list[str]:
    """Steps of ``tools/speed/unit_step.py`` by their batch."""
    if not steps:
        return []
    lines = [
        'A step of `qdrop` on `backbone.layer1.1` of a RetinaNet R50, beside '
        'forward and backward of the float unit, and of the float detector '
        'down to the unit, on as many images:',
        '',
        '| batch | step, ms | float unit, ms | float detector, ms '
        '| step / unit | 33 units of 2000 steps, h | GPU MiB |',
        '|---|---|---|---|---|---|---|',
    ]
    lines += [
        f'| {batch} | {r["step_ms"]:.1f} | {r["float_unit_ms"]:.1f} '
        f'| {r["float_detector_ms"]:.1f} | {r["over_float"]:.2f} '
        f'| {r["hours"]:.2f} | {r["peak_gpu_mb"]} |'
        for batch, r in steps.items()
    ]
    return [*lines, '']


def reconstruct_section(found: dict) -> list[str]:
    """Steps, memory and a whole run of ``tools/speed/reconstruct.py``."""
    lines = ['## Time and memory of a reconstruction', '']
    if 'steps' in found:
        s = found['steps']
        lines += [
            'RetinaNet R50, random weights, `reg_ptq` w4a4, '
            f'{sides(s["size"])}, one image a step, {s["threads"]} '
            f'threads, {s["machine"]}, {s["clock"]} time. A step (Fisher and '
            'detection loss, dropping, rounding, steps, codebooks, Adam) '
            'over forward and backward, of a plain sum, of the unit and '
            'what comes after it, with inputs at hand: the unit float, or '
            'quantized as in the step. Then a step in which the prefix is '
            'recomputed, over a step in which it is replayed. Medians over '
            'interleaved runs. '
            f'Command: `{s["command"]}`',
            '',
            '| unit | step / float | step / quantized | without / with '
            'replay | step, s | without replay, s |',
            '|---|---|---|---|---|---|',
        ]
        lines += [
            f'| {unit} | {r["over_float"]:.2f} | {r["over_quantized"]:.2f} '
            f'| {r["without_replay"]:.2f} | {r["step_s"]:.2f} '
            f'| {r["whole_s"]:.2f} |'
            for unit, r in s['found'].items()
        ]
        lines += ['']
    if 'memory' in found:
        s, r = found['memory'], found['memory']['found']
        beside = max(r['beside_mib'].values())
        lines += [
            f'Memory: {s["images"]} images of {s["size"]} x {s["size"]}, '
            f'the first and last block of the backbone and the first layer '
            f'of the head; {r["cached_mib"]:.0f} MiB cached with '
            f'`calibration.cache` of {r["bound_mib"]:.0f} MiB. In memory '
            f'the cache held {r["held_mib"]:.1f} MiB; beside it at most '
            f'{beside:.1f} MiB more than a calibration with two images '
            f'takes. Together {r["over_bound"]:.2f} of the bound. This is '
            'anonymous memory (`RssAnon`) of a process in which malloc '
            'returns what is freed; pages of the cache file are not in it.',
            '',
        ]
    if 'full' in found:
        s, r = found['full'], found['full']['found']
        lines += [
            f'A whole run: {s["size"][0]} x {s["size"][1]}, {s["images"]} '
            f'images, {s["iters"]} steps for each of {r["units"]} units on '
            f'{s["machine"]}: {r["minutes"]:.0f} minutes, '
            f'{r["peak_gib"]:.1f} GiB of GPU memory. '
            f'Command: `{s["command"]}`',
            '',
        ]
    return lines


def document() -> str:
    """The page; parts without result files are left out."""
    parts = [
        '# Measured',
        '',
        'Made by `python -m tools.docs.make_measured_doc` from '
        '`docs/results`.',
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
            f'prediction. Random weights, {sides(s["size"])}, '
            f'`{s["recipe"]}` {s["bits"]}, {s["threads"]} threads, '
            f'{found["machine"]}. Command: `{found["command"]}`',
            '',
            time_table(found),
            '',
        ]
    apart = 'benchmark_cuda.json', 'benchmark_reconstruct.json'
    recipes = [
        json.loads(path.read_text())
        for path in sorted(RESULTS.glob('benchmark_*.json'))
        if path.name not in apart
    ]
    if recipes:
        parts += recipes_section(recipes)
    path = RESULTS / 'benchmark_cuda.json'
    if path.is_file():
        parts += gpu_section(json.loads(path.read_text()))
    path = RESULTS / 'benchmark_reconstruct.json'
    if path.is_file():
        parts += reconstruct_section(json.loads(path.read_text()))
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
