# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What has been measured so far, in a file that survives a stop."""

import json
from pathlib import Path
from typing import Any

from ..errors import PTQError
from ..report.files import write_text

#: of the form of the file
VERSION = 1


class ScoreFile:
    """A JSON file of one checkpoint, config and choice of images.

    It is written whole after each change, so a stop loses nothing that was
    kept.

    Args:
        path (str | Path): Of the file.
        about (dict): What identifies it: ``checkpoint`` (SHA-256),
            ``fingerprint``, ``images`` and, where annotations are needed,
            ``verify``, and whatever else is told.
        resume (bool): Whether to go on from what is there.

    Attributes:
        found (dict): Its content; plain types.

    Raises:
        PTQError: If the file is there and is not to be gone on from, or is
            of another checkpoint or config, cut off, or of another version.
    """

    def __init__(
        self, path: str | Path, about: dict[str, Any], resume: bool
    ) -> None:
        self.path = Path(path)
        fresh = dict(version=VERSION, about=about)
        self.found: dict[str, Any] = fresh
        if not self.path.exists():
            return
        if not resume:
            raise PTQError(
                f'{self.path} is there already; go on from it by --resume, '
                'or give another --work-dir'
            )
        self.found = self._read()
        self._check(about)
        # those that verify are first needed by a later start
        self.found['about'] = about | {
            'verify': about.get('verify') or self._verify
        }

    @property
    def _verify(self) -> list[str]:
        names: list[str] = self.found['about'].get('verify') or []
        return names

    def part(self, key: str) -> dict[str, Any]:
        """A dict of the content, empty at first; change it and write."""
        found: dict[str, Any] = self.found.setdefault(key, {})
        return found

    def write(self) -> None:
        """Writes the file; the one there before survives a failure.

        Raises:
            PTQError: If it cannot be written.
        """
        write_text(self.path, json.dumps(self.found, allow_nan=False))

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise PTQError(
                f'{self.path} is no whole file ({error}); it was cut off or '
                'changed: delete it, and run without --resume'
            ) from error
        version = found.get('version') if isinstance(found, dict) else None
        if version != VERSION:
            raise PTQError(
                f'{self.path} is of version {version!r}, this package writes '
                f'{VERSION}; delete it, and run without --resume'
            )
        wrong = [
            key
            for key, value in found.items()
            if key != 'version' and not isinstance(value, dict)
        ]
        scores = found.get('scores', {})
        if wrong or 'about' not in found or not _whole(scores):
            raise PTQError(
                f'{self.path} is no file of this package; delete it, and run '
                'without --resume'
            )
        return found

    def _check(self, about: dict[str, Any]) -> None:
        before = dict(self.found['about'])
        if not self._verify or not about.get('verify'):
            before['verify'] = about.get('verify')
        kinds = dict(
            checkpoint='of another checkpoint',
            fingerprint='of another config, quant_cfg or version',
            images='of other images',
            verify='of other images that verify',
        )
        for key, words in kinds.items():
            if before.get(key) != about.get(key):
                raise PTQError(
                    f'{self.path} is {words}; give the same arguments as '
                    'then, or another --work-dir'
                )


def _whole(scores: dict[str, Any]) -> bool:
    """Whether each score is there, by kind and key of an entry."""
    return all(
        isinstance(kind, dict)
        and all(
            isinstance(one, dict) and isinstance(one.get('score'), int | float)
            for one in kind.values()
        )
        for kind in scores.values()
    )
