# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Writes docs/quant_cfg.md from the registries, so that it cannot lag."""

import argparse
import inspect
import re
import sys
from pathlib import Path

from mmengine.registry import Registry

from mmdet_ptq.quant_cfg import (
    SCOPES,
    Calibration,
    load_recipe,
    recipe_names,
)
from mmdet_ptq.quant_cfg.recipes import KEYS, RECIPE_DIR
from mmdet_ptq.quant_cfg.rules import ROLES, RULE_KEYS
from mmdet_ptq.registry import (
    LEARNERS,
    LOSSES,
    OBSERVERS,
    PASSES,
    QUANTIZERS,
)

LEVELS = '![The values of each quantizer](pictures/levels.svg)'
HEAD = """# quant_cfg

Made by `python -m tools.docs.make_quant_cfg_doc` from the registries.

`quant_cfg` says what each tensor becomes (**rules**) and how the numbers are
found (**passes**). A **recipe** is a named pair of both in a config file.

```python
quant_cfg = dict(
    recipe='qdrop',              # rules and passes to start from
    bits='w4a8s4',               # weights, activations, attention softmax
    scope='first_last_8',        # which layers, if not as the recipe says
    rules=[                      # added after the recipe's: later rules win
        dict(match='neck.*', act=dict(bits=8)),
        dict(match='@mask', skip=True),
    ],
    pass_args=dict(              # arguments of the recipe's passes
        Reconstruct=dict(iters=500)),
    calibration=dict(num_samples=64))
```

The keys of `quant_cfg` are {keys}.

## bits

`bits='w4a8s4'` gives weights 4 bits, inputs of layers 8, and those inputs 4
that come from a softmax (`@softmax`): the first operand of softmax times V.
Without the `s` they have the bits of the others. The widths hold where no rule
sets `bits`. An `s` of its own that no input gets is an error: in a detector
without such an input, and where rules set their bits or leave them float.

## scope

A scope is a short list of rules by a name. They say which layers are
quantized, and which of them in 8 bits, as some papers do it; how, the recipe
says. They come after the recipe's rules and before yours. A recipe may have
one; a `scope` beside it takes its place, and `scope=''` takes it out.
`--print-recipe` prints the rules where they stand. Save that as a recipe
file: in a config all rules count as yours, and one of the recipe's that the
scope takes back would be an [error](#rules-without-effect).

| scope | what it makes of a detector |
|---|---|
{scopes}

## Recipe files of your own

`recipe` may be the path of a file of your own. It has the same keys and may
start from another recipe, whose rules come before its own.

```python
recipe = 'qdrop'
rules = [dict(match='@mask', skip=True)]
pass_args = dict(Reconstruct=dict(drop_prob=0.25))
```

To change what stands in the middle of a list, inherit by `_base_` as configs
do: from `mmdet_ptq::recipes/NAME.py` of the installed package, or from the
path of a recipe. A list replaces that of the base. To keep the base's items,
name them as `rules` does here. Names that begin with `_` are helpers of the
file.

```python
_base_ = 'mmdet_ptq::recipes/qdrop.py'
_more = [dict(match='@mask', skip=True)]
rules = [*_base_.rules, *_more]
```

In a config that inherits a `quant_cfg` with rules, `rules=[...]` replaces
them too, and a note says which are gone. Keep them with
`rules=[*_base_.quant_cfg.rules, ...]`.

## Mixed channels of attention heads

`mix_heads=True` puts the pass [MixHeads](#mixheads) behind `FoldBatchNorm`, in
any recipe that has it, and `mix_heads=False` takes it out. The channels of
each attention head of the float model are then mixed by a matrix that leaves
all outputs as they are, so that queries, keys and values quantize better. The
recipe `gptq_codebook_attention` has it.

## Equalized channels

`equalize=True` puts the pass [EqualizeChannels](#equalizechannels) behind
`FoldBatchNorm`, in any recipe that has it. Channels of the float model are
then scaled where that changes no output, so that they quantize better.
`equalize=False` takes the pass out again. Its arguments are changed like
those of any other:

```python
quant_cfg = dict(
    recipe='uniform',
    bits='w4a8',
    equalize=True,
    pass_args=dict(EqualizeChannels=dict(choose='closed')))
```

## A grid for each input channel

`scale_inputs=True` puts the pass [ScaleInputs](#scaleinputs) behind
`FoldBatchNorm`, and behind `MixHeads` and `EqualizeChannels` where there are
any.
`scale_inputs=False` takes it out. The input channels of a layer are then
brought to one scale, where the layer's outputs on images held out become
more exact by it. The recipe `gptq` has it.

## Options of the command line

On a command line `--recipe NAME` takes the place of the config's recipe. The
config's `bits`, `scope`, `rules`, `pass_args` and `calibration` hold for it
as well; what does not fit it is an error. `--scope NAME` sets the scope,
`--iters N` the steps of every reconstruction.

`tools/ptq.py CONFIG --recipe NAME --print-recipe` prints the whole
`quant_cfg` with every default. The output is a recipe file, and can also be
pasted into a config. Every mistake is found before calibration, and the
message has the nearest allowed name.

## rules

A rule is a dict with some of the keys {rule_keys}. One with `skip=True` has
neither `weight` nor `act`.

### match

A glob on names of layers (`'backbone.layer1.*'`), a role, or a list of these.
Roles are found by running the detector on one image:

| role | matches |
|---|---|
{roles}

`@softmax`, `@gelu`, `@query` and `@key` match single inputs of layers, the
others match whole layers. A glob that matches no layer is an error. A role may
match none (`@mask` without a mask head); a note says which of your rules found
nothing.

### weight and act

What the weight and the input of a layer become: a dict with `type`, `bits`
and arguments of a [quantizer](#quantizers). It is merged into what earlier
rules said, so a later rule changes what it says and nothing else.

* A new `type` keeps the bits, and those of the old arguments that it has too.
  Of the rows of an `InstanceGroupQuantizer` others know nothing:
  `granularity='row'` goes with it.
* Without `bits` the widths of `quant_cfg.bits` hold; `bits=None` goes back to
  them.
* `None` keeps the tensor float. A later rule may take it in again, and then
  goes on from what was said before the `None`.
* What no rule speaks of stays float.
* In `act`, `granularity='group'` without `group_size` means the convolution's
  own groups.
* In `act`, `per_level=True` gives each call of a shared head a range of its
  own.
* The axis of channels follows from the layer.

### skip

`skip=True` leaves a layer float, weight and input, whatever later rules say
of it. A later `skip=False` lifts that, and then all rules count. So
`dict(match='@prediction', skip=False)` gives prediction layers, which recipes
skip, what the rules say of their head. With a role of single inputs, such as
`@softmax`, it skips these alone.

### Rules without effect

A rule of yours that matches layers and changes nothing is an error: all of
them are skipped, or later rules take everything back. A rule may say what is
so already, so that the same rules serve several widths and recipes. A width
that the quantizer of a layer does not have is an error that names the layer.

## calibration

"""


def section(title: str, registry: Registry, head: str = '') -> str:
    """Everything in a registry: what it is and its arguments."""
    registry.import_from_location()
    lines = [f'## {title}', '', *([head, ''] if head else [])]
    for name, cls in sorted(registry.module_dict.items()):
        lines += [f'### {name}', '', _description(cls), '']
        args = _args(cls)
        if args:
            lines += ['| argument | meaning | default |', '|---|---|---|']
            lines += [f'| `{n}` | {m} | {d} |' for n, m, d in args]
            lines.append('')
    return '\n'.join(lines) + '\n'


def _description(cls: type) -> str:
    """What a docstring says before its sections, as Markdown."""
    doc = re.split(
        r'^(?:Args|Attributes|Raises|Returns|Examples?):$',
        inspect.getdoc(cls) or '',
        maxsplit=1,
        flags=re.MULTILINE,
    )[0]
    return markdown(doc.strip())


def markdown(text: str) -> str:
    """Markdown of what a docstring marks up for Sphinx.

    Examples:
        >>> markdown('``x`` of :class:`~a.b.C`, :func:`f`::')
        '`x` of `C`, `f`:'
    """
    text = re.sub(r':\w+:`~?(?:[\w.]*\.)?(\w+)`', r'`\1`', text)
    return text.replace('``', '`').replace('::', ':')


def _args(cls: type) -> list[tuple[str, str, str]]:
    documented = _documented(inspect.getdoc(cls) or '')
    found = []
    for p in inspect.signature(cls.__init__).parameters.values():
        if p.name == 'self' or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        if p.name in ('axis', 'role') and 'Quantizer' in cls.__name__:
            continue
        meaning, said = documented.get(p.name, ('', ''))
        default = 'needed' if p.default is p.empty else f'`{p.default!r}`'
        if p.default is None and said:
            default += f': {markdown(said)}'
        found.append((p.name, markdown(meaning), default))
    return found


def _documented(doc: str) -> dict[str, tuple[str, str]]:
    """Argument name to meaning and default, from a Google-style docstring.

    Of a default that is None, the second text is what None stands for.
    """
    found: dict[str, str] = {}
    name, inside = '', False
    for line in doc.splitlines():
        if not line.startswith(' '):
            if line.strip():
                inside = line.strip() == 'Args:'
            continue
        if not inside:
            continue
        if line.startswith('    ') and not line.startswith('     '):
            name, _, text = line.strip().partition(':')
            name = name.split(' ')[0]
            found[name] = text.strip()
        elif name:
            found[name] += ' ' + line.strip()
    # the table has a column for it
    parts = {k: v.partition('Defaults to ') for k, v in found.items()}
    return {
        k: (meaning.strip(), re.sub(r'^None(: )?|\.$', '', default))
        for k, (meaning, _, default) in parts.items()
    }


def document() -> str:
    """The whole page."""
    text = HEAD.format(
        keys=', '.join(f'`{k}`' for k in KEYS),
        rule_keys=', '.join(f'`{k}`' for k in RULE_KEYS),
        scopes='\n'.join(
            f'| `{name}` | {scope.what} |' for name, scope in SCOPES.items()
        ),
        roles='\n'.join(f'| `@{r}` | {what} |' for r, what in ROLES.items()),
    )
    meanings = _meanings_of_fields()
    text += '| key | meaning | default |\n|---|---|---|\n'
    for name, default in vars(Calibration()).items():
        text += (
            f'| `{name}` | {markdown(meanings[name][0])} | `{default!r}` |\n'
        )
    text += '\n## recipes\n\n'
    for name in recipe_names():
        source = (RECIPE_DIR / f'{name}.py').read_text()
        doc = source.split('"""')[1].strip()
        passes = ', '.join(p['type'] for p in load_recipe(name)['passes'])
        text += f'### {name}\n\n{markdown(doc)}\n\nPasses: {passes}.\n\n'
    return (
        text
        + section('passes', PASSES)
        + section('learners of Reconstruct', LEARNERS)
        + section('losses of Reconstruct', LOSSES)
        + section('quantizers', QUANTIZERS, LEVELS)
        + section('observers', OBSERVERS)
    ).rstrip() + '\n'


def _meanings_of_fields() -> dict[str, tuple[str, str]]:
    doc = (inspect.getdoc(Calibration) or '').replace('Attributes:', 'Args:')
    return _documented(doc)


def main() -> int:
    """Writes the page, or with --check compares it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='docs/quant_cfg.md')
    parser.add_argument(
        '--check',
        action='store_true',
        help='exit 1 if the file is not up to date',
    )
    args = parser.parse_args()
    path, text = Path(args.out), document()
    if args.check:
        same = path.is_file() and path.read_text() == text
        print('up to date' if same else f'{path} is out of date')
        return 0 if same else 1
    path.write_text(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
