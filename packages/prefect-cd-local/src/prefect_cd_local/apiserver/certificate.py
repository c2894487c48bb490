"""A self-signed certificate, made at each start. The kubeconfig contains it, so that clients trust nothing else.

TLS is needed although everything stays on loopback: kubectl sends no token over plain HTTP. The private key is on disk
only while Python's ssl loads it, which it can do from a file only.
"""

import ipaddress
import ssl
import tempfile
from datetime import datetime, timedelta, timezone

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_LIFE, _CLOCKS_DIFFER = timedelta(days=30), timedelta(hours=1)


def make(host: str) -> tuple[ssl.SSLContext, str]:
    """Return a server's TLS context for an address, and the certificate as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=embedded")
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - _CLOCKS_DIFFER).not_valid_after(now + _LIFE)
    names = [x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as both:  # readable by its owner only
        both.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate)
        both.flush()
        context.load_cert_chain(both.name)
    return context, certificate.decode()
