"""Progress bars of commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager


class Bar:
    """Progress bar of one group of stages on stderr; in a log file only stages that take long leave a line."""

    def __init__(self, label: str, total: float) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=float(total),
            desc=f"{label:>13}",
            bar_format="{desc} {percentage:3.0f}% |{bar:30}| {elapsed} elapsed, {remaining} left",
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 20.0,
            delay=0.0 if sys.stderr.isatty() else 20.0,
            dynamic_ncols=False,
            ncols=90,
        )

    def update_to(self, done: float, total: float | None = None) -> None:
        """Show ``done``."""
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()


@contextmanager
def progress_bar(label: str, quiet: bool = False) -> Iterator[Callable[[float, float], None] | None]:
    """Give a function that is called with (done, total), or None when nothing is to be shown."""
    if quiet:
        yield None
        return
    with closing(Bar(label, 1.0)) as bar:
        yield lambda done, total: bar.update_to(done / total)
