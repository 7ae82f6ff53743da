# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How many boxes the two filters of Reg-PTQ's global loss take away.

Of the boxes of RetinaNet and Faster R-CNN on calibration images, the share
of sufficient confidence in the float model (theta_C), and among these the
share whose IoU with the float box is too small (theta_I). The detector is
rounded plainly to 2-bit weights and 4-bit activations, which is worse than
what the loss meets when layers are learned one after the other:

    python -m tools.analysis_tools.loss_filters

writes ``docs/results/loss_filters.json`` and the table ``.md`` made from it.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
from mmdet.apis import init_detector
from mmengine.config import Config

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import from_config
from mmdet_ptq.context import forward_context
from mmdet_ptq.detectors import find_adapter
from mmdet_ptq.losses import DetectionLoss
from mmdet_ptq.quant_cfg import parse_quant_cfg
from tools.accuracy.suites import ROOT, THETA_C, THETA_I, TWO, files_of

BITS = 'w2a4'


@torch.no_grad()
def study(detector: str, images: int) -> list[dict]:
    """Counts boxes of one detector.

    Args:
        detector (str): Name of its config.
        images (int): How many calibration images.

    Returns:
        list[dict]: For each head ``detector, head, boxes`` (all),
        ``confident`` (of them, by theta_C), ``far`` (of these, IoU below
        the largest theta_I, by theta_C).
    """
    files = files_of(detector)
    cfg = Config.fromfile(files['config'])
    model = init_detector(cfg, str(files['checkpoint']), device='cpu')
    wanted = dict(
        recipe='uniform',
        bits=BITS,
        calibration=dict(num_samples=images),
    )
    feed = from_config(cfg, parse_quant_cfg(wanted).calibration)
    batches = [batch for _, batch in feed.batches() if batch is not None]
    losses = {
        c: DetectionLoss(theta_c=c, theta_i=max(THETA_I), topk_per_level=None)
        for c in THETA_C
    }
    adapter = find_adapter(model)
    inputs, targets = [], []
    for batch in batches:
        data = model.data_preprocessor(batch, False)
        # both models look at the proposals of the float one
        inputs.append((data, adapter.anchor(model, data)))
        outputs = adapter.outputs(model, *inputs[-1])
        targets.append([loss.targets(outputs) for loss in losses.values()])
    quantize_detector(model, batches, wanted)
    found: dict[float, Counter] = {c: Counter() for c in losses}
    for (data, anchor), constants in zip(inputs, targets, strict=True):
        with forward_context(len(data['inputs'])):
            outputs = adapter.outputs(model, data, anchor)
        for c, target in zip(losses, constants, strict=True):
            found[c].update(losses[c].parts(outputs, target))
    heads = [n[: -len('.n_ce')] for n in found[0] if n.endswith('.n_ce')]
    return [
        dict(
            detector=detector,
            head=head,
            # a threshold of 0 takes nothing away
            boxes=int(found[0][f'{head}.n_ce']),
            confident={
                f'{c:g}': int(n[f'{head}.n_ce']) for c, n in found.items()
            },
            far={
                f'{c:g}': int(n[f'{head}.n_ce'] - n[f'{head}.n_box'])
                for c, n in found.items()
            },
        )
        for head in heads
    ]


def to_markdown(rows: list[dict], images: int) -> str:
    """One row a head."""
    thetas = [f'{c:g}' for c in THETA_C]
    lines = [
        '# What the filters take away',
        '',
        f'Boxes of {images} calibration images, {BITS} by plain rounding. '
        'Each cell: the share of the boxes whose confidence in the float '
        'model is at least θ_C, and the share of those whose IoU with the '
        f'float box is below θ_I = {max(THETA_I):g}. Made by '
        '`python -m tools.analysis_tools.loss_filters`.',
        '',
        '| detector | head | boxes | '
        + ' | '.join(f'θ_C = {c}' for c in thetas)
        + ' |',
        '|---' * (3 + len(thetas)) + '|',
    ]
    for row in rows:
        cells = []
        for c in thetas:
            kept, far = row['confident'][c], row['far'][c]
            cells.append(
                f'{kept / row["boxes"]:.2%}, {far / max(1, kept):.2%}'
            )
        lines.append(
            f'| {row["detector"]} | {row["head"]} | {row["boxes"]} '
            f'| {" | ".join(cells)} |'
        )
    return '\n'.join([*lines, ''])


def main() -> None:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=32)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/results')
    args = parser.parse_args()
    rows = [row for detector in TWO for row in study(detector, args.images)]
    path = args.out / 'loss_filters.json'
    path.write_text(json.dumps(rows, indent=1))
    path.with_suffix('.md').write_text(to_markdown(rows, args.images))
    print(to_markdown(rows, args.images))


if __name__ == '__main__':
    main()
