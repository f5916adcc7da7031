"""C2PA: a signed picture says that a model made it, can be verified, and keeps its story. Offline."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import fewstep
from fewstep import RequestError, metadata
from fewstep.testing import fake


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate of a root of one's own, and its key, as C2PA 2.1 (14.5) wants them."""
    folder = tmp_path_factory.mktemp("signer")
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("root", root_key, "root", root_key)
    leaf = certificate("signer", key, "root", root_key)
    pem = serialization.Encoding.PEM
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {"certificate": folder / "chain.pem", "key": folder / "key.pem"}


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now, root = datetime.datetime.now(datetime.UTC), name == issuer
    subject, above = (
        x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, n), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A")]
        )
        for n in (name, issuer)
    )
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=above, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not root, key_cert_sign=root, crl_sign=root, **usage),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if not root:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
        ).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_signed_picture_can_be_verified(ending: str, signer: dict[str, Path], tmp_path: Path) -> None:
    with fake():
        result = fewstep.generate("a fox", seed=1)
    (path,) = result.save(tmp_path / f"fox.{ending}")
    metadata.sign(path, certificate=signer["certificate"], key=signer["key"])
    kind = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}[ending]
    with c2pa.Reader(kind, io.BytesIO(path.read_bytes())) as reader:
        manifest = json.loads(reader.json())
    assert manifest["validation_state"] == "Valid"  # "Trusted" needs a root that verifiers know
    told = json.dumps(manifest["manifests"])
    assert "c2pa.created" in told
    assert "trainedAlgorithmicMedia" in told
    assert metadata.read(path) == result.facts()


def test_what_cannot_sign_is_refused_with_its_name(signer: dict[str, Path], tmp_path: Path) -> None:
    with fake():
        (path,) = fewstep.generate("a fox", seed=1).save(tmp_path / "fox.png")
    before = path.read_bytes()
    for changed in ({"key": tmp_path / "no.pem"}, {"key": path}, {"algorithm": "md5"}):
        with pytest.raises(RequestError):
            metadata.sign(path, **{**signer, **changed})  # type: ignore[arg-type]
    assert path.read_bytes() == before
