# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Make the `digits` detection and instance segmentation set.

Real handwritten digits (``sklearn.datasets.load_digits``) are pasted, at
varied size, rotation, colour and overlap, on random crops of the two
photographs that scikit-learn carries. The result is in COCO format::

    python -m tools.data.make_digits --out data/digits

Nothing is downloaded, and the same seed gives the same bytes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from sklearn.datasets import load_digits, load_sample_image

from tools.data.draw_digits import (
    CLASSES,
    load_digit_bank,
    make_image,
    mask_box,
)

SPLITS = ('train', 'val')
VERSION = 2
SETTINGS = 'settings.json'


def make_split(out, split, count, seed):
    """Make the images and the annotation file of one split.

    Args:
        out (Path): Folder of the set.
        split (str): ``train`` or ``val``.
        count (int): Number of images.
        seed (int): Seed of the set.

    Returns:
        Path: The annotation file.
    """
    digits, bank = load_digits().images, load_digit_bank()[split]
    photos = [load_sample_image(f'{name}.jpg') for name in ('china', 'flower')]
    folder = out / split
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        rng = np.random.default_rng([seed, SPLITS.index(split), i])
        image, objects = make_image(digits, bank, photos, rng)
        name = f'{i:05d}.png'
        Image.fromarray(image).save(folder / name, compress_level=1)
        images.append(
            {
                'id': i + 1,
                'file_name': name,
                'height': image.shape[0],
                'width': image.shape[1],
            }
        )
        for label, sample, mask in objects:
            x1, y1, x2, y2 = mask_box(mask)
            rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle['counts'] = rle['counts'].decode('ascii')
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': i + 1,
                    'category_id': label,
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': int(mask.sum()),
                    'segmentation': rle,
                    'iscrowd': 0,
                    'digit_sample': sample,
                }
            )
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES)]
    path = out / f'{split}.json'
    path.write_text(
        json.dumps(
            {
                'images': images,
                'annotations': annotations,
                'categories': categories,
            }
        )
    )
    return path


def is_complete(out, settings):
    """Whether a folder holds the whole set made with these settings.

    Args:
        out (Path): Folder of the set.
        settings (dict): Settings, as ``make_digits`` writes them.

    Returns:
        bool: True if nothing needs to be made.
    """
    try:
        written = json.loads((out / SETTINGS).read_text())
    except (OSError, ValueError):
        return False
    return written == settings and all(
        (out / f'{split}.json').is_file()
        and len(list((out / split).glob('*.png'))) == settings[split]
        for split in SPLITS
    )


def make_digits(out, train=2000, val=320, seed=0, force=False):
    """Make the set, or leave it alone if it is already there.

    Args:
        out (str | Path): Folder of the set.
        train (int): Number of training images. Defaults to 2000.
        val (int): Number of validation images. Defaults to 320.
        seed (int): Seed of the set. Defaults to 0.
        force (bool): Make it even if it is there. Defaults to False.

    Returns:
        bool: Whether anything was made.
    """
    out = Path(out)
    settings = {'version': VERSION, 'seed': seed, 'train': train, 'val': val}
    if not force and is_complete(out, settings):
        return False
    out.mkdir(parents=True, exist_ok=True)
    (out / SETTINGS).unlink(missing_ok=True)
    for split in SPLITS:
        for old in (out / split).glob('*.png'):
            old.unlink()
        make_split(out, split, settings[split], seed)
    (out / SETTINGS).write_text(json.dumps(settings))
    return True


def main():
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', default='data/digits', help='output folder')
    parser.add_argument('--train', type=int, default=2000, help='images')
    parser.add_argument('--val', type=int, default=320, help='images')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--force', action='store_true', help='make it even if it is there'
    )
    args = parser.parse_args()
    made = make_digits(args.out, args.train, args.val, args.seed, args.force)
    print(f'{args.out}: ' + ('made' if made else 'already complete'))


if __name__ == '__main__':
    main()
