"""C2PA: a signed manifest in a saved picture, which says that a model made it (extra: fewstep[sign]).

Nothing is asked of the network; without a time stamp of a third party a signature is as old as it says.
"""

from __future__ import annotations

import io
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fewstep import __version__
from fewstep.errors import OutputError, RequestError, describe_error
from fewstep.files.output import write_file
from fewstep.metadata import xmp
from fewstep.metadata.formats import ENDINGS, MEDIA_TYPES
from fewstep.metadata.reading import read_record

ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")  # C2PA 2.1, 13.2.1


def sign(
    path: str | os.PathLike[str],
    *,
    certificate: str | os.PathLike[str],
    key: str | os.PathLike[str],
    algorithm: str = "es256",
) -> None:
    """Put a signed C2PA manifest into a saved picture; the file is replaced when that is done.

    certificate: PEM of the signer's certificate and those above it. key: its private key, PEM (PKCS 8).
    Raises `RequestError` where they cannot be used, or c2pa-python is not installed.
    """
    if find_spec("c2pa") is None:
        raise RequestError("a signature needs c2pa-python: pip install 'fewstep[sign]'")
    if algorithm not in ALGORITHMS:
        raise RequestError(f"algorithm={algorithm!r}: choose one of {', '.join(ALGORITHMS)}")
    target = Path(path)
    source_type = read_record(target).source_type or xmp.MADE
    media_type = MEDIA_TYPES.get(ENDINGS.get(target.suffix.lower(), "png"))
    try:
        signer = (Path(certificate).read_bytes(), Path(key).read_bytes(), algorithm)
        signed = _signed(target.read_bytes(), media_type, _manifest(target, source_type), signer)
    except OSError as error:
        raise RequestError(f"{error.filename!r} cannot be read: {error.strerror}") from error
    except OutputError:
        raise
    except Exception as error:  # c2pa's own kinds
        raise RequestError(
            f"{str(path)!r} cannot be signed with {str(certificate)!r}: {describe_error(error):.300}"
        ) from error
    write_file(target, signed, overwrite=True)


def _manifest(path: Path, source_type: str) -> dict[str, Any]:
    action = {"action": "c2pa.created", "digitalSourceType": xmp.SOURCE_TYPES + source_type}
    return {
        "claim_generator_info": [{"name": "fewstep", "version": __version__}],
        "title": path.name,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def _signed(
    picture: bytes, media_type: str | None, manifest: dict[str, Any], signer: tuple[bytes, bytes, str]
) -> bytes:
    """Return the picture with a manifest, by (certificate, key, algorithm)."""
    import c2pa

    certificate, key, algorithm = signer
    information = c2pa.C2paSignerInfo(getattr(c2pa.C2paSigningAlg, algorithm.upper()), certificate, key, None)
    signed = io.BytesIO()
    with c2pa.Signer.from_info(information) as by, c2pa.Builder(manifest) as builder:
        builder.sign(by, media_type, io.BytesIO(picture), signed)
    return signed.getvalue()
