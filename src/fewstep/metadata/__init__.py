"""What is written into a picture, and read back: its facts for this library, and what other tools read."""

from fewstep.metadata.containers import KEY
from fewstep.metadata.formats import MEDIA_TYPES, Encoding, make_encoding, output_paths
from fewstep.metadata.reading import Record, read, read_record
from fewstep.metadata.signing import sign
from fewstep.metadata.story import MAX_EMBEDDED, encode, pack_pictures

__all__ = [
    "KEY", "MAX_EMBEDDED", "MEDIA_TYPES", "Encoding", "Record", "encode", "make_encoding",
    "output_paths", "pack_pictures", "read", "read_record", "sign",
]  # fmt: skip
