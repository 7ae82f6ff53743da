# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The result file and the table of one run."""

import json
import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..calibration import Session
from ..cost import cost_of, storage_mb
from ..errors import PTQError
from ..quant_cfg import QuantConfig
from ..records import reported
from ..structures import LayerGraph, QuantPlan
from ..version import __version__
from .machine import gpu_memory, machine
from .metrics import plain_metrics, row_of
from .outputs import Outputs
from .range_table import print_equalization, print_ranges, print_rounding


class Result:
    """What a run found, written after each stage.

    Args:
        outputs (Outputs): Says where the JSON file is.
        cfg (Config): The detector's config.
        quant (QuantConfig): The checked ``quant_cfg``.
        checkpoint (str): Path of the float checkpoint.
        digest (str): Its SHA-256.
        fingerprint (str): Identifies checkpoint and settings.
        resume (bool): Take float metrics over from a file there already,
            if it is of the same checkpoint and settings.
        command (str): That started the run. Defaults to ''.
    """

    def __init__(
        self,
        outputs: Outputs,
        cfg: Config,
        quant: QuantConfig,
        checkpoint: str,
        digest: str,
        fingerprint: str,
        resume: bool,
        command: str = '',
    ) -> None:
        self.outputs = outputs
        self.title = quant.title
        self.float_metrics: dict | None = None
        self.quantized_metrics: dict | None = None
        self.seconds: dict[str, float] = {}
        self.device = torch.device('cpu')
        self.found: dict[str, Any] = dict(
            started=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            command=command,
            config=cfg.filename or '',
            checkpoint=dict(path=checkpoint, sha256=digest),
            recipe=quant.recipe,
            bits=str(quant.bits) if quant.bits else 'by rule',
            scope=quant.scope,
            quant_cfg=quant.to_dict(),
            fingerprint=fingerprint,
            machine=machine(),
        )
        # ranks on other machines do not see the file
        earlier = outputs.results if resume else []
        parts = (float_part(path, fingerprint) for path in earlier)
        found = [next(filter(None, parts), None)]
        broadcast_object_list(found)
        if found[0] is not None:
            self.float_metrics, seconds = found[0]
            self.seconds['float evaluation'] = seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def add_session(self, session: Session) -> None:
        """Takes over layers, costs, times and notes of a quantization."""
        plans = session.plan.layers
        left = left_float(session.plan, session.graph)
        self.device = session.device
        full, packed = storage_mb(session.model)
        self.found.update(
            machine=machine(session.device),
            layers=dict(
                quantized=len(plans)
                - sum(1 for p in plans.values() if p.why_float),
                float=left,
            ),
            storage_mb=dict(float=round(full, 4), quantized=round(packed, 4)),
            cost=cost_of(session.model, session.graph, session.plan),
            notes=session.notes,
            **reported(session.records),
        )
        self.seconds.update(session.seconds)

    def to_dict(self) -> dict:
        """Everything, as it goes into the file."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return dict(
            self.found,
            float=plain_metrics(self.float_metrics or {}),
            quantized=plain_metrics(self.quantized_metrics or {}),
            seconds={k: round(v, 3) for k, v in self.seconds.items()},
            peak_rss_mb=round(peak, 1),
            **gpu_memory(self.device),
            versions=dict(
                mmdet_ptq=__version__,
                torch=torch.__version__,
                mmdet=mmdet.__version__,
                mmengine=mmengine.__version__,
                mmcv=mmcv.__version__,
                python=platform.python_version(),
            ),
        )

    def write(self) -> None:
        """Writes the file; one there before survives a failure.

        Raises:
            PTQError: If it cannot be written.
        """
        if not is_main_process():
            return
        path = self.outputs.result
        temporary = path.with_suffix('.tmp')
        try:
            temporary.write_text(json.dumps(self.to_dict(), indent=1))
            os.replace(temporary, path)
        except OSError as error:
            raise PTQError(f'cannot write {path}: {error}') from error

    def print_table(self) -> None:
        """Prints metrics, size, layers and times to the terminal."""
        console = Console()
        found = self.to_dict()
        table = Table(title=self.title)
        for column, justify in (
            ('', 'left'),
            ('float', 'right'),
            ('quantized', 'right'),
            ('change', 'right'),
        ):
            table.add_column(column, justify=justify)
        for name, value in found['quantized'].items():
            row = row_of(name, found['float'].get(name), value, 3)
            if row is not None:
                table.add_row(*row)
        table.add_section()
        table.add_row(*_less('parameters (MB)', found['storage_mb'], 1, '.2f'))
        cost = found['cost']
        macs = f'{cost["macs"] / 1e9:.4g}'
        shape = 'x'.join(map(str, cost['input'][2:]))
        table.add_row(f'MACs (G) at {shape}', macs, macs, '')
        table.add_row(*_less('BOPs (T)', cost['bops'], 1e12, '.4g'))
        table.add_row('layers', '', str(found['layers']['quantized']), '')
        console.print(table)
        times = Table('stage', 'seconds', title='time')
        for name, seconds in found['seconds'].items():
            times.add_row(name, f'{seconds:.1f}')
        console.print(times)
        for line in gpu_lines(found):
            console.print(line)
        if found['layers']['float']:
            left = Table('layer left float', 'why')
            for layer in found['layers']['float']:
                left.add_row(layer['name'], layer['why'])
            console.print(left)
        print_equalization(console, found['equalization'])
        print_ranges(console, found['ranges'])
        print_rounding(console, found['rounding'])
        notes = print_units(console, found['reconstruction'], found['notes'])
        for note in notes:
            console.print(f'note: {note}')


def gpu_lines(found: dict) -> list[str]:
    """Which GPU computed, and how much of its memory that took.

    Args:
        found (dict): The result.

    Returns:
        list[str]: One line, none where a CPU computed.
    """
    if 'peak_gpu_mb' not in found:
        return []
    peak = found['peak_gpu_mb']
    return [f'{found["machine"]["gpu"]}: peak memory {peak:,.0f} MiB']


def left_float(plan: QuantPlan, graph: LayerGraph) -> list[dict[str, str]]:
    """What stays float, and why.

    Args:
        plan (QuantPlan): Of the quantized detector.
        graph (LayerGraph): Its survey.

    Returns:
        list[dict[str, str]]: ``name`` and ``why`` of layers, of layers that
        are never called, and of modules that multiply without a layer.
    """
    found = {n: p.why_float for n, p in plan.layers.items() if p.why_float}
    for name in graph.uncalled:
        found[name] = graph.borrowed.get(name, 'not called in the survey')
    found.update(plan.uncovered)
    return [dict(name=name, why=why) for name, why in found.items()]


def print_units(
    console: Console, records: list[dict], notes: list[str]
) -> list[str]:
    """Prints a line for each reconstructed unit, a table for each pass.

    Args:
        console (Console): Where to.
        records (list[dict]): Of the units, as in the result file.
        notes (list[str]): Sentences for the report.

    Returns:
        list[str]: The notes that the tables do not say.
    """
    for learned, group in groupby(records, lambda r: r['learned']):
        units = list(group)
        kept = sum(r['kept'] for r in units)
        table = Table(
            title=f'{", ".join(learned)}: {kept} of {len(units)} units kept',
            caption='loss on held-out images; no: the unit was put back',
            box=SIMPLE_HEAD,
        )
        # long names are broken, not the columns that are looked for
        table.add_column('unit', overflow='fold')
        for column in ('before', 'after', 'seconds'):
            table.add_column(column, justify='right', no_wrap=True)
        table.add_column('kept', no_wrap=True)
        for r in units:
            after = '-' if r['after'] is None else f'{r["after"]:.4g}'
            table.add_row(
                r['unit'],
                f'{r["before"]:.4g}',
                after,
                f'{r["seconds"]:.1f}',
                'yes' if r['kept'] else 'no',
            )
        console.print(table)
    # where the loss did not fall, the two numbers say it
    told = {
        f'{r["unit"]}: put back, {r["why"]}'
        for r in records
        if r['after'] is not None
    }
    return [note for note in notes if note not in told]


def float_part(path: Path, fingerprint: str) -> tuple[dict, float] | None:
    """Float metrics and seconds of an earlier run.

    Args:
        path (Path): The result file.
        fingerprint (str): Of this run.

    Returns:
        tuple[dict, float], optional: None if there is none, it cannot be
        read, or it is of another run.
    """
    try:
        old = json.loads(path.read_text())
        same = old['fingerprint'] == fingerprint and old['float']
        seconds = old['seconds'].get('float evaluation', 0.0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same = False  # not there, or not of ours: the float test runs again
    return (old['float'], seconds) if same else None


def _less(
    name: str, size: dict[str, float], unit: float, form: str
) -> tuple[str, str, str, str]:
    before, after = size['float'], size['quantized']
    ratio = f'÷ {before / after:.2f}' if after else ''
    return name, f'{before / unit:{form}}', f'{after / unit:{form}}', ratio
