"""Errors that a user can cause or fix, and the exit code of a stage that raises one.

The text says what is wrong, what was found, and how to fix it. Any other exception is a defect of
this package and keeps its traceback.
"""

import re

_USERINFO = re.compile(r"(?<=://)[^/?#\s'\"]*@")
_SECRET = re.compile(
    r"([?&;][\w.-]*(?:pass|pwd|token|secret|credential|signature|apikey|api_key|access_key)[\w.-]*=)"
    r"[^&;\s'\"]+",
    re.IGNORECASE,
)
_MAX_REASON = 200  # characters


def redact(text: str) -> str:
    """Return a text without the user, password and tokens of the addresses in it."""
    return _SECRET.sub(r"\1***", _USERINFO.sub("***@", text))


def printable(text: str) -> str:
    """Return a text with invisible characters, but newlines, as escapes such as ``\\x1b``.

    Control characters in names then do not move the cursor of a terminal or colour its text.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def reason(error: BaseException) -> str:
    """Return the type and text of an error of a library in one short line, for a message."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


class EbmError(Exception):
    """Base of the errors that are shown as one message, without a traceback.

    ``what`` says what is wrong and what was found. ``fix`` says how to fix it, or is None. The text
    of the error is ``"what; fix"``. Both are redacted: messages reach logs, records and reports.
    """

    exit_code = 1

    def __init__(self, what: str, fix: str | None = None) -> None:
        what, fix = redact(what), None if fix is None else redact(fix)
        super().__init__(what if fix is None else f"{what}; {fix}")
        self.what, self.fix = what, fix


class ConfigError(EbmError):
    """A key, type, value or combination in a parameter file is wrong."""

    exit_code = 2


class DivergedError(EbmError):
    """A loss or gradient became NaN or infinite, or energies diverged; no weight was updated."""

    exit_code = 3


class DataError(EbmError):
    """A data file or shard is missing, truncated, altered or foreign, or cannot be written."""

    exit_code = 4


class InputError(DataError, ValueError):
    """An array or argument in a call is wrong; a ValueError, as scikit-learn's users expect."""


class CheckpointError(EbmError):
    """No checkpoint is complete, or the latest one belongs to another run."""

    exit_code = 5


class ClusterError(EbmError):
    """The cluster lacks the requested resources, or the training job on it failed."""

    exit_code = 6


class CodeChangedError(ClusterError):
    """The source files are no longer those with which a command started."""


class RegistryError(EbmError):
    """The tracking server or registry cannot be reached, or refused a request."""

    exit_code = 7


class RequestError(EbmError):
    """A request to a served model is wrong: HTTP status 400."""

    exit_code = 2


class BusyError(RequestError):
    """A served model has too many large requests at a time: HTTP status 429."""


class ResultsError(EbmError):
    """A committed result or lock is not backed by a run."""

    exit_code = 1


class Stopped(EbmError):
    """Training stopped on request, with a checkpoint.

    The exit code is that of a process ended by the signal that requested it: 130 after Ctrl-C.
    """

    exit_code = 143

    def __init__(self, what: str, fix: str | None = None, *, signal: int = 15) -> None:
        super().__init__(what, fix)
        self.exit_code = 128 + signal
