# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Pictures of what runs found."""

import json

from tools.docs.make_sensitivity_pictures import main


def trial(recipe, bits, metric, bops, rules=()):
    return dict(
        recipe=recipe,
        bits=bits,
        rules=list(rules),
        drop=0.65 - metric,
        metric=metric,
        mb=1.0,
        bops=bops,
        seconds=1.0,
    )


def test_taken_from_runs_and_drawn(tmp_path):
    """Nothing of the machine goes along."""
    about = dict(title='uniform w4a4', path='/home/somebody', images=[['x']])
    scores = {
        'all': dict(score=1.0),
        'alone/weight/a.conv': dict(score=0.5),
        'alone/act/b.conv': dict(score=0.75),
    }
    sensitivity = dict(
        about=about,
        parts={'a.conv': ['a.conv'], 'b.conv': ['b.conv']},
        scores=dict(output=scores),
        layers={},
        suggestion={},
    )
    auto = dict(
        about=about,
        trials=dict(
            a=trial('uniform', 'w8a8', 0.65, 4e9),
            b=trial('gptq', 'w4a4', 0.6, 1e9, [dict(match='a')]),
            c={},
        ),
        float=dict(metric='coco/bbox_mAP', value=0.65),
        whole=dict(mb=8.0, bops=9e9),
    )
    work, out = tmp_path / 'work', tmp_path / 'out'
    work.mkdir()
    out.mkdir()
    (work / 'sensitivity.json').write_text(json.dumps(sensitivity))
    (work / 'auto.json').write_text(json.dumps(auto))
    given = ['--results', str(out), '--pictures', str(out)]
    words = ['--sensitivity', str(work), '--auto', str(work)]
    assert main([*given, *words]) == 0
    for name in ('sensitivity', 'auto'):
        text = (out / f'{name}.json').read_text()
        assert 'somebody' not in text and json.loads(text)['about'] == dict(
            title='uniform w4a4'
        )
        assert '<svg' in (out / f'{name}.svg').read_text()
    # and again from what was taken over, byte for byte
    before = (out / 'auto.svg').read_bytes()
    assert main(given) == 0
    assert (out / 'auto.svg').read_bytes() == before
