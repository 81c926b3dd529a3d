"""Defines the errors that users see; every message is one line that says what to do."""


class SafeRLHFVideoError(Exception):
    """Base of all errors caused by input; scripts print the message and exit with code 1."""


class ConfigError(SafeRLHFVideoError):
    """A configuration key or value is wrong, or two of them contradict each other."""


class SampleError(SafeRLHFVideoError):
    """A record of a data file is wrong; the message names file, row and field."""


class VideoDecodeError(SafeRLHFVideoError):
    """A clip could not be read; the message names the file."""


class DecoderError(SafeRLHFVideoError):
    """A decoding process does not start or was killed; that says nothing about the clip."""


class CheckpointError(SafeRLHFVideoError):
    """A model or checkpoint folder is incomplete, damaged or does not fit the run."""


class DeviceMemoryError(SafeRLHFVideoError):
    """A device has too little memory. One process alone may meet this error, and it ends the run."""
