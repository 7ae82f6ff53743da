# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a measurement of sensitivity is asked for."""

from dataclasses import dataclass

from ..checks import one_of, whole
from ..errors import QuantConfigError
from ..passes.measure_sensitivity import SCORES


@dataclass(frozen=True)
class SensitivityOptions:
    """What is measured.

    Attributes:
        score (str): A key of ``SCORES``. Defaults to ``'output'``.
        rank_num (int): Images for cheap scores. Defaults to 8.
        verify_num (int): Images for AP. Defaults to 64.
        check (int): How many layers are scored by AP too. Defaults to 0.
        keep (int): For how many layers more bits are suggested. Defaults
            to 3.
        resume (bool): Go on from the file in the work dir.

    Raises:
        QuantConfigError: If one is not among the allowed values.
    """

    score: str = 'output'
    rank_num: int = 8
    verify_num: int = 64
    check: int = 0
    keep: int = 3
    resume: bool = False

    def __post_init__(self) -> None:
        try:
            one_of('--score', self.score, SCORES)
            whole('--rank-num', self.rank_num, 1)
            whole('--verify-num', self.verify_num, 1)
            whole('--check', self.check)
            whole('--keep', self.keep, 1)
        except ValueError as error:
            raise QuantConfigError(str(error)) from None
        if self.check == 1:
            raise QuantConfigError(
                '--check 1: one layer has no rank; give 0 or at least 2'
            )
        if self.check and self.score == 'ap':
            raise QuantConfigError(
                '--check compares a cheap score with AP, and --score ap is '
                'AP itself; leave one of them out'
            )

    @property
    def verified(self) -> int:
        """How many images with annotations are needed."""
        wanted = self.score == 'ap' or self.check
        return self.verify_num if wanted else 0
