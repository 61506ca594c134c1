"""One family of errors. Each message says what was read, what is wrong with it and what to do, in one line."""


class SOSError(Exception):
    """Anything a user can cause and mend. The command line prints it without a traceback and exits with 2."""


def said_of(error: OSError) -> str:
    """What the system says of a file, a folder or a disk, in one line, with its name where it tells it."""
    return ": ".join(str(part) for part in (error.filename, error.strerror or type(error).__name__) if part is not None)


class ConfigError(SOSError):
    """A setting has an unknown name, a wrong type or an impossible value."""


class ImageError(SOSError):
    """A file cannot be turned into one grey mid-sagittal image."""


class CohortError(SOSError):
    """A manifest, its columns, its boxes or its splits cannot be used."""


class RunError(SOSError):
    """A saved run is missing, incomplete or does not fit what is asked of it."""


class LessonError(SOSError):
    """The source of a notebook's exercises lacks something."""


class OutOfTime(SOSError):
    """The time given by `--stop-after` is used up; everything done so far is saved and the next call goes on from there."""
