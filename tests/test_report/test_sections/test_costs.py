# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where bits go, in a report."""

from report_kit import result_of

from mmdet_ptq.report.files import Run
from mmdet_ptq.report.sections.costs import MOST, costs


def run_of(layers, name='a'):
    found = result_of()
    found['cost']['layers'] = layers
    return Run(name, found)


def layer(bits, **elements):
    return dict(
        macs=1,
        calls=1,
        part='backbone',
        bits=bits,
        params=4,
        elements=elements,
    )


LAYERS = dict(
    first=layer([8, 8], weight=10, input=30),
    second=layer([2, 4], weight=30, input=30),
)


def test_bits_are_drawn_once_for_each_run():
    page = costs([run_of(LAYERS)])
    assert page.count('Where bits go.</b>') == 1
    assert '3.50 bits a weight and 6.00 an input' in page
    page = costs([run_of(LAYERS), run_of(LAYERS, 'b')])
    assert page.count('Where bits go, ') >= 2


def test_sizes_are_in_the_unit_of_the_result():
    """10^6 bytes, as of :func:`mmdet_ptq.cost.storage_mb`."""
    assert '>parameters (MB)<' in costs([Run('a', result_of())])


def test_without_elements_there_is_no_chart():
    """As in results of earlier versions, and of very many layers."""
    assert 'Where bits go' not in costs([Run('a', result_of())])
    many = {str(i): layer([4, 4], weight=1, input=1) for i in range(MOST + 1)}
    assert 'Where bits go' not in costs([run_of(many)])
