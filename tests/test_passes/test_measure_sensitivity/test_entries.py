# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is evaluated, and in which order."""

from mmdet_ptq.passes.measure_sensitivity import ALL, Entry, Part, entries_of

A = Part('a', ('a',), ('a',), ('a',))
B = Part('b', ('b',), (), ('b',))
C = Part('{c,d}', ('c', 'd'), ('c', 'd'), ('c',))
ROLE = Part('@neck', ('a', 'c'), ('a', 'c'), ('a', 'c'))


def test_every_way_of_every_part():
    found = {
        e.key: (set(e.weights), set(e.acts)) for e in entries_of([A, B, C])
    }
    assert found == {
        ALL: ({'a', 'c', 'd'}, {'a', 'b', 'c'}),
        'alone/weight/a': ({'a'}, set()),
        'alone/act/a': (set(), {'a'}),
        'alone/act/b': (set(), {'b'}),
        'alone/weight/{c,d}': ({'c', 'd'}, set()),
        'alone/act/{c,d}': (set(), {'c'}),
        'without/weight/a': ({'c', 'd'}, {'a', 'b', 'c'}),
        'without/act/a': ({'a', 'c', 'd'}, {'b', 'c'}),
        'without/act/b': ({'a', 'c', 'd'}, {'a', 'c'}),
        'without/weight/{c,d}': ({'a'}, {'a', 'b', 'c'}),
        'without/act/{c,d}': ({'a', 'c', 'd'}, {'a', 'b'}),
    }


def test_roles_come_last_and_are_no_part_of_all():
    found = entries_of([A, B, C, ROLE])
    assert found[0] == entries_of([A, B, C])[0]
    assert [e.key for e in found[-4:]] == [
        'alone/weight/@neck',
        'alone/act/@neck',
        'without/weight/@neck',
        'without/act/@neck',
    ]
    assert found[-2].weights == {'d'}


def test_what_changes_between_two():
    both = Entry.both(C)
    assert both.changes(Entry('', frozenset({'c'}), frozenset())) == {'c', 'd'}
    assert both.changes(both) == frozenset()
