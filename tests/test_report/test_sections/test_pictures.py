# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images that changed most, in a report."""

import pytest
from report_kit import data_of, gathered, result_of, scene

from mmdet_ptq.report.files import Run
from mmdet_ptq.report.sections.pictures import pictures


@pytest.mark.parametrize(
    ('before', 'column'), [(scene(), 'float'), (None, 'ground truth')]
)
def test_the_column_with_what_is_lost_is_named(before, column):
    """Without a float test the objects are what is compared with."""
    found, _ = gathered(before, scene(3.0), ('cat', 'dog'), None, {})
    page = pictures([Run('a', result_of(), data_of(**found))])
    assert f'in the {column} column a box that is lost' in page
    assert ('float: ' in page) == (before is not None)
