"""Every error Headrace raises on purpose.

HeadraceError
├── ConfigError          a recipe, option or argument that cannot work
├── EventRejected        one event that cannot be accepted (field, value, reason)
├── SourceError          an input file that cannot be read as it should
├── LogError             the log cannot do what it was asked
│   ├── Backpressure     it does not keep up: try again after `retry_after_s`
│   ├── LogFull          no space is left for it
│   └── Fenced           another process has taken over this consumer's work
├── TableFull            no space is left for rows that are kept on disk
├── FeatureError         not what was declared, or no store to keep it (`features.definitions`)
└── ArtefactError        a cut or a version on disk
    └── ArtefactCorrupt  it is incomplete, or a byte of it is not the one written

The command line prints the sentence of a HeadraceError and nothing else; any other exception is
a defect and keeps its traceback.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Root of the tree; `str(error)` is one sentence: what is wrong, where, how to mend it."""


class ConfigError(HeadraceError):
    """A recipe, option or argument that cannot work."""


class EventRejected(HeadraceError):
    """One event that cannot be accepted."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        try:
            shown = repr(value)
        except RecursionError:
            shown = f"a {type(value).__name__} nested too deep to show"
        self.field = field
        self.value = shown if len(shown) <= 120 else shown[:117] + "..."
        self.reason = reason
        super().__init__(f"{field} = {self.value}: {reason}")


class SourceError(HeadraceError):
    """An input file that cannot be read as it should."""


class LogError(HeadraceError):
    """The log cannot do what it was asked."""


class Backpressure(LogError):
    """The log does not keep up; what was to be sent was not accepted."""

    def __init__(self, retry_after_s: float, because: str = "") -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"the log does not keep up{because}: send the event again after {retry_after_s:g} s"
        )


class LogFull(LogError):
    """No space is left for the log."""


class Fenced(LogError):
    """Another process commits for the same group: this one must stop, its work is undone."""


class TableFull(HeadraceError):
    """No space is left for rows that are kept on disk."""


class ArtefactError(HeadraceError):
    """A cut or a version on disk cannot be used."""


class ArtefactCorrupt(ArtefactError):
    """An artefact is incomplete, or a byte of it is not the one that was written."""
