# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from tools.docs.house_numbers import count, long_functions


def source(lines):
    """A function whose body has so many lines beside its docstring."""
    return (
        'def f():\n    """Says\n    much.\n    """\n' + '    x = 1\n' * lines
    )


def test_numbers_by_hand():
    found = count(
        {
            'mmdet_ptq/a.py': source(39),  # 40 lines with its first
            'mmdet_ptq/b.py': source(40),
            'mmdet_ptq/recipes/c.py': 'x = 1\ny = 2\n',
            'mmdet_ptq/d.py': 'hasattr(q, "x")\n'
            'isinstance(layer.weight_quantizer, A)\n'
            'getattr(model, "x")\n',
        }
    )
    assert found == {
        'files': '4',
        'lines': '92',
        'median file': '23',
        'longest file': '44 (mmdet_ptq/b.py)',
        'functions over 40 lines': '1',
        'lines in recipes/': '2',
        'hasattr on quantizers': '1',
        'getattr on quantizers': '0',
        'isinstance on quantizers': '1',
    }


def test_long_functions_are_named():
    files = {'a.py': source(39), 'b.py': source(40)}
    assert long_functions(files) == {'b.py:1 f': 41}
