# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Writes the configs of the transformer recipes, a file for each cell.

A recipe or a detector more is one line more in a list below.
"""

import argparse
import sys
from pathlib import Path

FOLDER = Path('configs/ptq')
RECIPES = (
    'adalog',
    'apq_vit',
    'fq_vit',
    'group_static',
    'igq_vit',
    'noisyquant',
    'ptq4vit',
    'ptq_for_vit',
    'repq_vit',
)
DETECTORS = {
    'mask-rcnn_swin-t-p4-w7_fpn_3x_coco': ('w4a4', 'w6a6', 'w8a8'),
    'mask-rcnn_swin-s-p4-w7_fpn_3x_coco': ('w4a4', 'w6a6', 'w8a8'),
    'cascade-mask-rcnn_swin-t-p4-w7_fpn_3x_coco': ('w4a4', 'w6a6', 'w8a8'),
    'cascade-mask-rcnn_swin-s-p4-w7_fpn_3x_coco': ('w4a4', 'w6a6', 'w8a8'),
    'detr_r50_8xb2-150e_coco': ('w6a6', 'w8a8'),
}
HEAD = """# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = '../_base_/transformers/{detector}.py'
quant_cfg = """


def text_of(recipe: str, detector: str, bits: str) -> str:
    """One config file."""
    head = HEAD.format(detector=detector)
    return f"{head}dict(recipe='{recipe}', bits='{bits}')\n"


def files() -> dict[Path, str]:
    """Every config, by its path below the folder."""
    return {
        Path(recipe, f'{detector}_{bits}.py'): text_of(recipe, detector, bits)
        for recipe in RECIPES
        for detector, widths in DETECTORS.items()
        for bits in widths
    }


def main() -> int:
    """Writes the files, or with --check compares them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default=str(FOLDER))
    parser.add_argument(
        '--check',
        action='store_true',
        help='exit 1 if a file is not up to date',
    )
    args = parser.parse_args()
    stale = 0
    for name, text in files().items():
        path = Path(args.out, name)
        if args.check:
            if not path.exists() or path.read_text() != text:
                print(f'{path} is out of date')
                stale = 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return stale


if __name__ == '__main__':
    sys.exit(main())
