# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Methods that learn, or search, by looking at outputs: who looks where."""

from collections.abc import Collection, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tools.docs.make_levels_picture import draw_lines, lines_of, weights

FLOAT, DONE, NOW = '#ffffff', '#cfe2f7', '#f7c98b'
RED = '#b3261e'
#: the detector drawn: two blocks of two layers, a head
LAYERS = ('conv', 'conv', 'conv', 'conv', 'head')
HEAD = len(LAYERS) - 1


def scheme(
    axes: Axes,
    learned: Collection[int],
    label: str,
    losses: Sequence[tuple[int, str]],
    half: bool = False,
) -> None:
    """The float detector above, the quantized one below, losses between.

    Args:
        axes (Axes): Where to.
        learned (Collection): Layers that are learned now; those before are
            done.
        label (str): What is learned of them.
        losses (Sequence): After which layer outputs are compared, and how.
        half (bool): Whether half of the elements of the input are float.
    """
    first, last = min(learned), max(learned)
    for row, y in ((0, 1.5), (1, 0.0)):
        for i, name in enumerate(LAYERS):
            colour = FLOAT
            if row:
                colour = NOW if i in learned else DONE if i < first else FLOAT
            box(axes, 1.5 * i, y, name, colour)
            axes.annotate(
                '',
                (1.5 * i, y + 0.3),
                (1.5 * i - 0.5, y + 0.3),
                arrowprops=dict(arrowstyle='->', color='grey'),
            )
        name = 'quantized' if row else 'float'
        axes.text(-0.6, y + 0.3, name, ha='right', va='center', fontsize=9)
    middle = 0.75 * (first + last) + 0.5
    axes.text(middle, -0.2, label, ha='center', va='top', fontsize=9)
    if half:
        axes.text(
            1.5 * first - 0.25,
            0.72,
            'half float,\nat random',
            ha='center',
            va='bottom',
            fontsize=7.5,
            color='grey',
        )
    for after, text in losses:
        x = 1.5 * after + 1.22
        axes.annotate(
            '',
            (x, 1.7),
            (x, 0.4),
            arrowprops=dict(arrowstyle='<->', color=RED, linewidth=1.5),
        )
        axes.text(x + 0.08, 1.05, text, color=RED, fontsize=8.5, va='center')
    axes.set_xlim(-2.0, 9.4)
    axes.set_ylim(-0.75, 2.3)
    axes.set_axis_off()


def box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """One layer."""
    patch = FancyBboxPatch(
        (x, y), 1, 0.6, 'round,pad=0,rounding_size=0.1', fc=colour, ec='black'
    )
    axes.add_patch(patch)
    axes.text(x + 0.5, y + 0.3, text, ha='center', va='center', fontsize=9)


def drawn(
    learned: Collection[int],
    label: str,
    *losses: tuple[int, str],
    half: bool = False,
) -> Figure:
    """A picture that is a scheme alone."""
    figure = Figure(figsize=(7.2, 2.3), facecolor='white', layout='tight')
    scheme(figure.subplots(), learned, label, losses, half)
    return figure


def lapq() -> Figure:
    """One exponent for all ranges, then each range, by the outputs."""
    return drawn(range(5), 'ranges of all layers', (HEAD, 'loss of\noutputs'))


def det_ptq() -> Figure:
    """An exponent for each unit, by the outputs."""
    return drawn((2, 3), 'exponent of its ranges', (HEAD, 'loss of\noutputs'))


def adaround() -> Figure:
    """Rounding of one layer, by its output."""
    return drawn((2,), 'rounding of weights', (2, 'error'))


def adaquant() -> Figure:
    """Weights, bias and ranges of one layer, by its output."""
    return drawn((2,), 'weights, bias, ranges', (2, 'error'))


def brecq() -> Figure:
    """Rounding of one block, by its weighed output."""
    label = 'rounding of a block, then steps of inputs'
    return drawn((2, 3), label, (3, 'error,\nweighed'))


def qdrop() -> Figure:
    """Rounding and steps of a block, half of its inputs float."""
    label = 'rounding and steps of a block'
    return drawn((2, 3), label, (3, 'error'), half=True)


def pd_quant() -> Figure:
    """As QDrop, and the classes that the detector predicts."""
    label = 'rounding and steps of a block'
    found = (3, 'error'), (HEAD, 'classes')
    return drawn((2, 3), label, *found, half=True)


def reg_ptq() -> Figure:
    """As QDrop, with classes and boxes, and logarithmic values in heads."""
    figure = Figure(figsize=(7.2, 3.9), facecolor='white', layout='tight')
    top, low = figure.subplots(2, 1, height_ratios=[2.3, 1.6])
    losses = (3, 'error,\nweighed'), (HEAD, 'classes\nand boxes,\nfiltered')
    scheme(top, (2, 3), 'rounding and steps of a block', losses, half=True)
    x, rows = weights(4)
    kept = {k: rows[k] for k in ('Uniform', 'LLAQ')}
    draw_lines(low, 'weights of a head', x, lines_of(x, kept))
    return figure
