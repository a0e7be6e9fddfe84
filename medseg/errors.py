"""Every error medseg raises on purpose.

An error states the rule that was broken, the value that broke it, and the way out. Each class is
also a built-in, so that callers who know nothing of medseg can still catch it by kind.
"""


class MedsegError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    message : str
        The rule and the value that broke it, with the file where there is one.
    hint : str
        The way out, in one sentence.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message


class GeometryError(MedsegError, ValueError):
    """A grid, affine or spacing that cannot be used, or two that do not agree."""


class ShapeError(MedsegError, ValueError):
    """A tensor whose shape is not the one asked for."""


class ScanError(MedsegError, ValueError):
    """A scan that was read but whose content cannot be used."""


class ScanFileError(MedsegError, OSError):
    """A file that is missing, unreadable, truncated or of another format."""


class LabelError(MedsegError, ValueError):
    """A mask with labels that nobody described, or with none at all."""


class DataError(MedsegError, LookupError):
    """A data set with nothing usable in it, or that changed under a saved split."""


class ConfigError(MedsegError, ValueError):
    """A configuration with a wrong key or value."""


class ModelError(MedsegError, ValueError):
    """A model folder that is incomplete, or that does not fit what is asked of it."""


class PriorError(MedsegError, ValueError):
    """A filter prior that does not fit the kernels, or kernels that no prior can be fitted to."""


class TrainingError(MedsegError, RuntimeError):
    """A training that cannot start, or whose loss is no longer a number."""
