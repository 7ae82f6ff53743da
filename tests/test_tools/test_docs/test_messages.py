# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Errors are one line that tells nothing of the machine."""

from tools.docs import messages


def test_messages_name_no_folders():
    text = messages.without_folders(
        'file "/a/b-1.0/c.py"  at /x/y.cpp":12\n 3 / 4 and a/b'
    )
    assert text == 'file "c.py" at y.cpp":12 3 / 4 and a/b'


def test_said():
    try:
        raise ValueError('wrong /a/b/c.py\nand more')
    except ValueError as error:
        found = messages.said(error)
    assert found.startswith('ValueError at test_messages.py:')
    assert found.endswith(': wrong c.py')
