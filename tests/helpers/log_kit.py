# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is said in the log, whichever stream its handlers hold."""

import logging
from contextlib import contextmanager

from mmengine.logging import MMLogger


class Said(logging.Handler):
    """Keeps messages as one text."""

    text = ''

    def emit(self, record):
        self.text += record.getMessage() + '\n'


@contextmanager
def logged():
    """Gives an object whose ``text`` is what MMEngine's log was told."""
    logger, handler = MMLogger.get_current_instance(), Said()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
