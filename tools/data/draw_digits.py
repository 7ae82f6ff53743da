# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Draws one image of the `digits` set, with a mask for each digit."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = tuple('0123456789')
IMAGE_SIDES = (160, 256)
DIGIT_SIDES = (8, 96)
MAX_ROTATION = 15.0
MIN_VISIBLE = 0.5


def load_digit_bank():
    """Load the handwritten digits, split once for all into two banks.

    Returns:
        dict[str, list[np.ndarray]]: For each split, ten arrays (one a
        class) of indices into ``load_digits().images``. Four fifths of
        each class are in ``train``, the rest in ``val``; the split does not
        depend on the seed of the set.
    """
    target = load_digits().target
    rng = np.random.default_rng(1797)
    bank = {'train': [], 'val': []}
    for label in range(len(CLASSES)):
        index = rng.permutation(np.flatnonzero(target == label))
        cut = len(index) * 4 // 5
        bank['train'].append(np.sort(index[:cut]))
        bank['val'].append(np.sort(index[cut:]))
    return bank


def render_digit(image, side, angle):
    """Draw one 8x8 digit smoothly at a given size and rotation.

    Args:
        image (np.ndarray): 8x8 grey values in 0..16.
        side (float): Wanted longer side of the drawn digit in pixels.
        angle (float): Rotation in degrees.

    Returns:
        np.ndarray: Opacity in 0..1, float32, cropped to the pixels above
        one half and one pixel around them.
    """
    grey = np.pad(image.astype(np.float32) / 16.0, 3)
    source = Image.fromarray(grey)
    scale, centre = side / 8.0, grey.shape[0] / 2.0
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    for _ in range(3):
        size = int(np.ceil(scale * 12)) + 4
        a, b = cos / scale, sin / scale
        matrix = (
            a,
            b,
            centre - (a + b) * size / 2,
            -b,
            a,
            centre - (a - b) * size / 2,
        )
        drawn = source.transform(
            (size, size),
            Image.Transform.AFFINE,
            matrix,
            Image.Resampling.BICUBIC,
        )
        alpha = np.clip((np.asarray(drawn) - 0.3) / 0.3, 0.0, 1.0)
        x1, y1, x2, y2 = mask_box(alpha > 0.5)
        longer = max(x2 - x1, y2 - y1)
        if abs(longer - side) < 1:
            break
        scale *= side / longer
    return alpha[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1]


def mask_box(mask):
    """Tight box of a mask.

    Args:
        mask (np.ndarray): Boolean, (H, W), with at least one pixel set.

    Returns:
        tuple[int]: ``x1, y1, x2, y2``, the last two exclusive.
    """
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)


def make_background(photos, height, width, rng):
    """Cut, flip and recolour a random piece of a photograph.

    Args:
        photos (list[np.ndarray]): RGB photographs, uint8.
        height (int): Height of the result.
        width (int): Width of the result.
        rng (np.random.Generator): Source of randomness.

    Returns:
        np.ndarray: RGB, float32 in 0..255, (height, width, 3).
    """
    photo = photos[rng.integers(len(photos))]
    zoom = rng.uniform(0.6, 1.5)
    crop_h = min(int(height * zoom), photo.shape[0])
    crop_w = min(int(width * zoom), photo.shape[1])
    top = rng.integers(photo.shape[0] - crop_h + 1)
    left = rng.integers(photo.shape[1] - crop_w + 1)
    piece = Image.fromarray(photo[top : top + crop_h, left : left + crop_w])
    piece = piece.resize((width, height), Image.Resampling.BILINEAR)
    result = np.asarray(piece).astype(np.float32)
    if rng.random() < 0.5:
        result = result[:, ::-1]
    if rng.random() < 0.5:
        result = result[::-1]
    mean = result.mean((0, 1))
    result = mean + (result - mean) * rng.uniform(0.35, 0.9)
    return result * rng.uniform(0.75, 1.2, 3) + rng.uniform(-25, 25)


def pick_colour(local, contrast, rng):
    """Pick a colour at about a given distance from what lies below it.

    Args:
        local (np.ndarray): RGB mean of the place.
        contrast (float): Wanted distance, mean over the channels.
        rng (np.random.Generator): Source of randomness.

    Returns:
        np.ndarray: RGB in 0..255.
    """
    best, best_gap = None, np.inf
    for _ in range(12):
        colour = rng.uniform(0, 255, 3)
        gap = abs(np.abs(colour - local).mean() - contrast)
        if abs(colour.mean() - local.mean()) < 0.6 * contrast:
            gap += 50
        if gap < best_gap:
            best, best_gap = colour, gap
    return best


def draw_clutter(image, rng, count):
    """Draw soft blobs and straight lines on an image, in place.

    Args:
        image (np.ndarray): RGB, float32, (H, W, 3).
        rng (np.random.Generator): Source of randomness.
        count (int): How many of them.

    Returns:
        np.ndarray: Boolean, (H, W), what they cover.
    """
    height, width = image.shape[:2]
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    covered = np.zeros((height, width), bool)
    for _ in range(count):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        angle = rng.uniform(0, np.pi)
        along = (xs - cx) * np.cos(angle) + (ys - cy) * np.sin(angle)
        across = (ys - cy) * np.cos(angle) - (xs - cx) * np.sin(angle)
        if rng.random() < 0.5:
            long, thin = rng.uniform(15, 60), rng.uniform(0.6, 1.6)
            alpha = np.clip(thin + 0.5 - np.abs(across), 0, 1)
            alpha *= np.abs(along) < long
        else:
            r1, r2 = rng.uniform(4, 22, 2)
            radius = np.sqrt((along / r1) ** 2 + (across / r2) ** 2)
            alpha = np.clip((1 - radius) * min(r1, r2) / 1.5, 0, 1)
        alpha = (alpha * rng.uniform(0.4, 0.9))[..., None]
        image += alpha * (rng.uniform(0, 255, 3) - image)
        covered |= alpha[..., 0] > 0.35
    return covered


def place_digit(image, visible, areas, alpha, rng):
    """Paste one digit where it hides none of the earlier ones too much.

    Args:
        image (np.ndarray): RGB, float32, (H, W, 3), changed in place.
        visible (list[np.ndarray]): Visible masks so far, changed in place
            and added to.
        areas (list[int]): Full areas of the same digits, added to.
        alpha (np.ndarray): Opacity of the digit.
        rng (np.random.Generator): Source of randomness.

    Returns:
        bool: Whether a place was found.
    """
    height, width = alpha.shape
    for _ in range(8):
        top = int(rng.integers(image.shape[0] - height + 1))
        left = int(rng.integers(image.shape[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        mask = alpha > 0.5
        left_over = [old.sum() - (old[window] & mask).sum() for old in visible]
        if any(
            rest < 0.8 * area
            for rest, area in zip(left_over, areas, strict=True)
        ):
            continue
        place = image[window]
        local = place.mean((0, 1))
        low = rng.random() < 0.1
        contrast = rng.uniform(28, 45) if low else rng.uniform(85, 140)
        colour = pick_colour(local, contrast, rng)
        place += alpha[..., None] * (colour - place)
        for old in visible:
            old[window] &= ~mask
        full = np.zeros(image.shape[:2], bool)
        full[window] = mask
        visible.append(full)
        areas.append(int(mask.sum()))
        return True
    return False


def make_image(digits, bank, photos, rng):
    """Make one image and the objects on it.

    Args:
        digits (np.ndarray): All 8x8 digits, (N, 8, 8).
        bank (list[np.ndarray]): Indices usable here, one array a class.
        photos (list[np.ndarray]): RGB photographs, uint8.
        rng (np.random.Generator): Source of randomness.

    Returns:
        tuple: The image (uint8, (H, W, 3), RGB) and a list of ``(label,
        sample, mask)``: class, index of the digit, visible pixels.
    """
    height, width = rng.integers(IMAGE_SIDES[0], IMAGE_SIDES[1] + 1, 2)
    image = make_background(photos, int(height), int(width), rng)
    draw_clutter(image, rng, int(rng.integers(0, 5)))
    low, high = DIGIT_SIDES
    names, visible, areas = [], [], []
    # large ones first, so that small ones are not hidden under them
    count = int(rng.integers(2, 7))
    sides = low * (high / low) ** rng.beta(3.2, 1.2, count)
    for side in np.sort(sides)[::-1]:
        label = int(rng.integers(len(CLASSES)))
        sample = int(rng.choice(bank[label]))
        angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
        alpha = render_digit(digits[sample], side, angle)
        if place_digit(image, visible, areas, alpha, rng):
            names.append((label, sample))
    before = image.copy()
    covered = draw_clutter(image, rng, int(rng.integers(0, 3)))
    if any(
        (mask & ~covered).sum() < MIN_VISIBLE * area
        for mask, area in zip(visible, areas, strict=True)
    ):
        image, covered = before, np.zeros_like(covered)
    if rng.random() < 0.3:
        image += rng.normal(0, rng.uniform(2, 6), image.shape)
    objects = [
        (label, sample, mask & ~covered)
        for (label, sample), mask in zip(names, visible, strict=True)
    ]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), objects
