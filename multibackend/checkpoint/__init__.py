"""Checkpoints: a portable format, written so that nothing is lost, read without believing any of it.

`write_checkpoint` and `read_checkpoint` are for one checkpoint anywhere; `CheckpointStore` keeps
those of a run. `docs/checkpoint_format.md` describes the files.
"""

from multibackend.checkpoint.contents import Contents
from multibackend.checkpoint.listing import list_checkpoints, newest_checkpoint
from multibackend.checkpoint.manifest import Manifest
from multibackend.checkpoint.reading import read_checkpoint, read_manifest, verify
from multibackend.checkpoint.store import CheckpointStore, Handle
from multibackend.checkpoint.writing import write_checkpoint

__all__ = [
    "CheckpointStore",
    "Contents",
    "Handle",
    "Manifest",
    "list_checkpoints",
    "newest_checkpoint",
    "read_checkpoint",
    "read_manifest",
    "verify",
    "write_checkpoint",
]
