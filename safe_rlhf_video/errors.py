"""The one family of errors that users meet; every message is one line and says what to do."""


class SafeRLHFVideoError(Exception):
    """Base of all errors caused by input; scripts print the message and exit with code 1."""


class ConfigError(SafeRLHFVideoError):
    """A configuration key or value is wrong, or two of them contradict each other."""


class SampleError(SafeRLHFVideoError):
    """A record of a data file is wrong; the message names file, row and field."""


class VideoDecodeError(SafeRLHFVideoError):
    """A clip could not be read; the message names the file."""


class CheckpointError(SafeRLHFVideoError):
    """A model or checkpoint folder is incomplete, damaged or does not fit."""


class DeviceMemoryError(SafeRLHFVideoError):
    """A device has too little memory; unlike all others, one process alone may meet it, and ends the run."""
