"""What can go wrong, and the exit code that a stage ends with when it does.

Every error that a user can cause or mend is one of these: its text says what is wrong, where, and what to do. Anything else
that is raised is a defect of ours and keeps its traceback.
"""


class EbmError(Exception):
    """Base of the errors that are shown as one message, without a traceback."""

    exit_code = 1


class ConfigError(EbmError):
    """A key, type, value or combination in a parameter file is wrong."""

    exit_code = 2


class DivergedError(EbmError):
    """A loss or gradient became NaN or infinite, or energies ran away; no weight was touched by it."""

    exit_code = 3


class DataError(EbmError):
    """A data file or shard is missing, truncated, altered or foreign; or a disk refused to take one."""

    exit_code = 4


class CheckpointError(EbmError):
    """No checkpoint is whole, or the one found belongs to another run."""

    exit_code = 5


class ClusterError(EbmError):
    """The cluster lacks what was asked for, or the training job on it failed."""

    exit_code = 6


class RegistryError(EbmError):
    """The tracking server or registry cannot be reached, or refused."""

    exit_code = 7


class RequestError(EbmError):
    """A request to a served model is wrong: status 400."""

    exit_code = 2


class ResultsError(EbmError):
    """A committed result or lock is not backed by a run."""

    exit_code = 1


class Stopped(EbmError):
    """Training was asked to stop, and has, with a checkpoint; the exit code is that of a process ended by SIGTERM."""

    exit_code = 143
