"""Other libraries' log lines, kept away from what is told in one line of our own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


_CHATTY = ("huggingface_hub", "datasets", "transformers", "accelerate")


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the libraries that look for models and data log nothing: every retry would be a line, some with a path.

    What goes wrong they raise as well.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
