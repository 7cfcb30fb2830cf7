"""What can go wrong, as types.

    InputError(ValueError)      the caller's mistake: a wrong folder, key or number
    ShardError                  damaged or mismatched data
      ManifestError             a manifest that is unreadable, of another version, or not the one of these shards
      SidecarError              the same of a sidecar index
      ShardTruncated            a shard shorter than its manifest says
      ChecksumMismatch          bytes that are not the ones written
      DecodeError               right bytes that no decoder understands
      TooMuchDamage             more damaged samples of a source than its limit
    BuildMismatch(InputError)   a half-finished build made with other settings, input or encoder
    ResumeMismatch(InputError)  a checkpoint of another mixture, plan or recipe

Each message holds the location, what was expected, what was found, and the next move. The command line prints these
(and nothing else) as one line and leaves with exit code 2.
"""


class InputError(ValueError):
    """The caller's mistake."""


class ShardError(Exception):
    """Damaged or mismatched data."""


class ManifestError(ShardError):
    """A manifest that is unreadable, of another version, or not the one of these shards."""


class SidecarError(ShardError):
    """A sidecar index that is unreadable, of another version, or not the one of this shard."""


class ShardTruncated(ShardError):
    """A shard shorter than its manifest says."""


class ChecksumMismatch(ShardError):
    """Bytes that are not the ones written."""


class DecodeError(ShardError):
    """Right bytes that no decoder understands."""


class TooMuchDamage(ShardError):
    """More damaged samples of a source than its limit."""


class BuildMismatch(InputError):
    """A half-finished build made with other settings, input or encoder."""


class ResumeMismatch(InputError):
    """A checkpoint of another mixture, plan or recipe."""
