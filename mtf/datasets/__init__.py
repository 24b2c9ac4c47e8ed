"""Versions of the pooled dataset: a git + DVC repository of its own under the state folder, pushed to the store."""

from mtf.datasets.workspace import Revision, checkout, log, unpushed, version_dataset

__all__ = ["Revision", "checkout", "log", "unpushed", "version_dataset"]
