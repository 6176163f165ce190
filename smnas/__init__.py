"""Search for the object detector to deploy: on this device, for these images, within this many milliseconds."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("smnas")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"
