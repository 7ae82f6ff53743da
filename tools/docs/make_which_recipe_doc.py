# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Writes docs/which_recipe.md from the accuracy tables in docs/results."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median

RESULTS = Path('docs/results')
CONVOLUTIONAL = ('retinanet', 'yolof', 'faster-rcnn', 'mask-rcnn_swin')
TRANSFORMER = 'detr'
METRIC = 'coco/bbox_mAP'

HEAD = """# Which recipe?

Made by `python -m tools.docs.make_which_recipe_doc` from `docs/results`.

Take `uniform` if you need 8 bits. It learns nothing and is done in seconds.
With fewer take `gptq`, which learns nothing either and is done in minutes.
If your runtime can look values up, `gptq_codebook` loses least with 4, 3 and
2 bits. `{best}` learns rounding, scales and the values of weights, takes
longer, and loses less than `gptq` where weights have 2 bits. For DETR, whose
head is a transformer, there are `gptq_attention` and, where values can be
looked up, `gptq_codebook_attention`; with 4-bit activations DETR loses much,
whatever the recipe.

```bash
python tools/ptq.py CONFIG CHECKPOINT --recipe uniform --bits w8a8
python tools/ptq.py CONFIG CHECKPOINT --recipe gptq --bits w4a8
python tools/ptq.py CONFIG CHECKPOINT --recipe gptq_codebook --bits w4a4
```

`w4a8` is 4 bits for weights and 8 for activations.

## What you lose and how long it takes

Of the recipes that learn, the table shows the one that loses least at that
width, and `{best}` where that is another.

"""

TAIL = """
* *Loss of AP* is float minus quantized box AP, both from 0 to 1, on the 320
  validation images of [digits](digits.md) with one seed. It is the mean over
  {convolutional}. DETR has a column of its own.
* *Time* is that of a whole run, float and quantized test included, divided by
  that of `uniform` on the same detector; the median over the five detectors.
* Recipes that learn took 200 steps a unit. The default is 2000 (`adaquant`
  1000, `gptq_recon` and `gptq_codebook_recon` 500), which takes longer in
  proportion and gains little at 4 bits
  ([table1_long](results/table1_long.md)).
* Seeds alone move single detectors by up to 0.014 at 2 bits
  ([table2](results/table2.md)), so treat recipes within 0.005 of one another
  as equal. [table1](results/table1.md) has all numbers.

## How many minutes you have

{minutes}

* *Minutes* are those of a whole run on two cores of the CPU that
  [compensated](results/compensated.md) was measured on, while other jobs
  shared it: float test left out, quantized test included; the median over the
  detectors of the row, and over DETR and YOLOX-nano where all recipes of that
  width ran them. How many jobs shared the cores differed, so that minutes are
  good to a factor of two. *Loss of AP* is the mean over the column *of*; the
  table above has other detectors. Recipes that learn took 200 steps a unit.
  [Here](results/compensated_w4a8_gptq_qdrop.md) is how much of the differences
  at w4a8 the choice of images explains.
  [Another CPU](results/compensated_other_cpu.md), with AVX2 in place of
  AVX512, moved AP of `gptq` by at most 0.002 on digits, that of `qdrop` by
  0.005, and `gptq` by 0.014 on YOLOX-nano, which is tested on 164 images.
* `gptq` rounds the columns of a weight one after the other, so that each
  makes up for the errors of those before, and gives the channels of inputs
  grids of their own where images held out gain by it. It learns nothing.
* `gptq_attention` is for DETR and its relatives: features and positional
  encodings are projected apart (encodings in 8 bits), and a softmax is
  quantized before its rows are divided by their sums. Queries and keys choose
  among 16 grids, which a runtime has to be able to do. DETR loses
  {attention} by `gptq`.
* `gptq_codebook` rounds like `gptq`, to values that lie where weights and
  inputs need them, not at equal steps. It is for 2 to 4 bits. Each output
  channel has 2^b values of 32 bits besides its codes. With n weights a channel
  that adds 128 / n to weights of 4 bits: 22 % where 64 channels are convolved
  3 x 3, 6 % where 256 are. A runtime has to look values up: it saves no time
  there.
* `gptq_recon` learns on from there, as `qdrop` does; `gptq_codebook_recon`
  learns the rounding of weights and leaves the values where they are.
* `gptq_mixed`, `gptq_codebook_attention_mixed`, `reg_ptq_mixed`,
  `adalog_mixed` and `igq_mixed` give each tensor the bits that it needs, with
  those of `--bits` on average. A runtime has to have all of these widths.
  `f_lbq_dp` and `f_lbq_lg` do so with groups of channels of the backbone
  alone. Take them where you know the bits that you can spend;
  [auto mode](auto.md) finds the bits too, with two widths a layer.

## How long it takes on your detector

Calibration alone takes about as long as predicting the calibration images
once or twice. A recipe that learns takes `iters` steps for each unit, which is
a residual or transformer block, or a single layer elsewhere. A step costs
little more than a forward and a backward through the unit and what follows it
([measured](measured.md) has ratios). After its first steps a run says how long
it will take. `--iters 200` makes it shorter:

```bash
python tools/ptq.py CONFIG CHECKPOINT --recipe {best} --bits w4a4 --iters 200
```

## Other recipes

* `minmax` takes ranges from minima and maxima, as most toolkits do. It is the
  reference to beat, and gives nothing that `uniform` does not.
* `q_yolo`, `lapq` and `det_ptq` search ranges in other ways and learn
  nothing.
* `adaround`, `adaquant`, `brecq`, `qdrop`, `pd_quant` and `subsetq` are the
  methods that `reg_ptq` is compared with in its paper.
  [Accuracy](accuracy.md) says how they compare here.

If AP is lower than this page lets you expect, read
[My AP dropped](ap_dropped.md).
"""


def losses(cells: Iterable[dict]) -> dict[tuple[str, str], dict]:
    """What each recipe loses at each width.

    Args:
        cells (Iterable[dict]): With ``detector``, ``recipe``, ``bits``,
            ``float``, ``quantized`` and ``seconds``.

    Returns:
        dict: For width and recipe, where all detectors were run, ``loss``
        (mean over the convolutional ones), ``detr`` and ``times``, the
        median of seconds over those of ``uniform`` on the same detector.
    """
    found = {(c['bits'], c['recipe'], c['detector']): c for c in cells}
    out = {}
    for bits, recipe in dict.fromkeys(key[:2] for key in found):
        detectors = (*CONVOLUTIONAL, TRANSFORMER)
        mine = [found.get((bits, recipe, d)) for d in detectors]
        plain = [found.get((bits, 'uniform', d)) for d in detectors]
        if None in mine or None in plain:
            continue
        lost = [c['float'] - c['quantized'] for c in mine]
        out[bits, recipe] = dict(
            loss=mean(lost[:-1]),
            detr=lost[-1],
            times=median(
                c['seconds'] / p['seconds']
                for c, p in zip(mine, plain, strict=True)
            ),
        )
    return out


def minutes(cells: Iterable[dict]) -> list[str]:
    """A row for each width and recipe, the quickest first.

    Args:
        cells (Iterable[dict]): As for :func:`losses`, of one run.

    Returns:
        list[str]: Of a table; at each width all recipes are compared on the
        detectors that all of them were run on. A recipe is left out that was
        run on fewer than half as many as another.
    """
    found: dict[str, dict[str, dict[str, dict]]] = {}
    for c in cells:
        recipes = found.setdefault(c['bits'], {})
        recipes.setdefault(c['recipe'], {})[c['detector']] = c
    lines = [
        '| bits | minutes | recipe | loss of AP | DETR: loss of AP | of |',
        '|---|---|---|---|---|---|',
    ]
    for bits, recipes in found.items():
        most = max(map(len, recipes.values()))
        recipes = {k: v for k, v in recipes.items() if 2 * len(v) >= most}
        common = set.intersection(*(set(one) for one in recipes.values()))
        others = sorted(common - {TRANSFORMER, 'yolox-nano'})
        if not others:
            continue
        rows = []
        for recipe, one in recipes.items():
            lost = {d: one[d]['float'] - one[d]['quantized'] for d in common}
            spent = median(one[d]['seconds'] for d in common) / 60
            detr = lost.get(TRANSFORMER)
            rows.append(
                (
                    spent,
                    f'| {bits} | {spent:.1f} | `{recipe}` '
                    f'| {mean(lost[d] for d in others):.3f} '
                    f'| {"" if detr is None else f"{detr:.3f}"} '
                    f'| {", ".join(others)} |',
                )
            )
        lines += [row for _, row in sorted(rows)]
    return lines


def attention(cells: Iterable[dict]) -> str:
    """What DETR loses with ``gptq_attention`` and with ``gptq``."""
    lost = {
        (c['bits'], c['recipe']): c['float'] - c['quantized']
        for c in cells
        if c['detector'] == TRANSFORMER
    }
    widths = [bits for bits, recipe in lost if recipe == 'gptq_attention']
    return ',\n  '.join(
        f'{lost[bits, "gptq_attention"]:.3f} at {bits} instead of '
        f'{lost[bits, "gptq"]:.3f}'
        for bits in widths
    )


def best_recipe(found: dict[tuple[str, str], dict]) -> str:
    """The recipe with the least loss over widths and detectors."""
    recipes = dict.fromkeys(recipe for _, recipe in found)
    return min(
        recipes,
        key=lambda r: mean(
            (len(CONVOLUTIONAL) * one['loss'] + one['detr'])
            for (_, recipe), one in found.items()
            if recipe == r
        ),
    )


def eight_bits(zoo: list[dict]) -> dict[str, float]:
    """Loss of ``uniform`` w8a8 by detector, from the zoo."""
    return {
        c['detector']: first[METRIC] - c['quantized'][METRIC]
        for c in zoo
        if (c['recipe'], c['bits']) == ('uniform', 'w8a8')
        for first in [c['float']]
    }


def table(found: dict[tuple[str, str], dict], zoo: list[dict]) -> list[str]:
    """A row for each width and recipe that is worth a choice."""
    lines = [
        '| bits | recipe | loss of AP | DETR: loss of AP | time |',
        '|---|---|---|---|---|',
    ]
    plain = eight_bits(zoo)
    lines.append(
        f'| w8a8 | `uniform` | {mean(plain[d] for d in CONVOLUTIONAL):.3f} '
        f'| {plain[TRANSFORMER]:.3f} | 1 |'
    )
    whole = best_recipe(found)
    for bits in ('w4a8', 'w4a4', 'w3a3', 'w2a4'):
        here = {r: one for (b, r), one in found.items() if b == bits}
        least = min(here, key=lambda r: here[r]['loss'])
        for recipe in dict.fromkeys(('uniform', least, whole)):
            one = here[recipe]
            lines.append(
                f'| {bits} | `{recipe}` | {one["loss"]:.3f} '
                f'| {one["detr"]:.3f} | {one["times"]:.0f} |'
            )
    return lines


def document() -> str:
    """The page."""
    found = losses(json.loads((RESULTS / 'table1.json').read_text()))
    zoo = json.loads((RESULTS / 'zoo.json').read_text())['cells']
    compensated = json.loads((RESULTS / 'compensated.json').read_text())
    convolutional = ', '.join(CONVOLUTIONAL[:-1])
    return (
        HEAD.format(best=best_recipe(found))
        + '\n'.join(table(found, zoo))
        + '\n'
        + TAIL.format(
            convolutional=f'{convolutional} and {CONVOLUTIONAL[-1]}',
            best=best_recipe(found),
            minutes='\n'.join(minutes(compensated)),
            attention=attention(compensated),
        )
    )


def main() -> int:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='docs/which_recipe.md')
    args = parser.parse_args()
    Path(args.out).write_text(document())
    return 0


if __name__ == '__main__':
    sys.exit(main())
