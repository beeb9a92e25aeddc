"""`tls ca ...` and `tls cert ...`: the cluster's certificates, made and shown on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nomadpy.cli.command import Call, command
from nomadpy.cli.errors import CliError, UsageError
from nomadpy.cli.flags import Flag, many, number, text
from nomadpy.cli.output import now_ns, pairs, say
from nomadpy.errors import NomadError


@command(
    "tls ca create [options]",
    "Make the certificate authority of a cluster, in the current folder.\n"
    "Keep its key off the machines of the cluster: who has it can be any server.",
    flags=(
        text("common-name", "The name in the certificate.", "name"),
        number("days", "For how long it is valid; 1825 without the flag.", "days"),
        text("domain", "The first word of the files' names; nomad without the flag.", "domain"),
    ),
    general=False,
)
def ca_create(call: Call) -> int:
    """Write <domain>-agent-ca.pem and its key."""
    from nomadpy.pki import ca  # cryptography is slow to import

    options = call.options
    chosen: dict[str, Any] = {}
    if name := options.text("common-name"):
        chosen["name"] = name
    if (days := options.number("days")) is not None:
        chosen["days"] = days
    if domain := options.text("domain"):
        chosen["domain"] = domain
    try:
        certificate, key = ca.write_ca(Path(), **chosen, now_ns=now_ns())
    except (NomadError, OSError) as error:
        raise CliError(f"Error creating the CA: {error}") from error
    say(f"==> CA certificate saved to {certificate}\n==> CA certificate key saved to {key}")
    return 0


@command(
    "tls cert create [options]",
    "Issue a certificate for a server, a client or the command line, in the current folder.",
    flags=(
        Flag("server", "For a server (server.REGION.nomad)."),
        Flag("client", "For a client (client.REGION.nomad)."),
        Flag("cli", "For the command line (cli.REGION.nomad)."),
        many("additional-dnsname", "A further DNS name it answers to.", "name"),
        many("additional-ipaddress", "A further IP address it answers to.", "address"),
        text("ca", "The CA's certificate; nomad-agent-ca.pem without the flag.", "path"),
        number("days", "For how long it is valid; 365 without the flag.", "days"),
        text("key", "The CA's key; nomad-agent-ca-key.pem without the flag.", "path"),
        text("region", "The region; global without the flag.", "region"),
    ),
    general=False,
)
def cert_create(call: Call) -> int:
    """Write REGION-ROLE-nomad.pem and its key."""
    options = call.options
    chosen = [role for role in ("server", "client", "cli") if options.on(role)]
    if len(chosen) != 1:
        raise UsageError("Exactly one of -server, -client and -cli is needed")
    from nomadpy.pki import ca

    days = options.number("days")
    chosen_days: dict[str, Any] = {} if days is None else {"days": days}
    try:
        certificate, key = ca.write_certificate(
            Path(),
            Path(options.text("ca") or "nomad-agent-ca.pem"),
            Path(options.text("key") or "nomad-agent-ca-key.pem"),
            chosen[0],
            options.text("region") or "global",
            names=options.many("additional-dnsname"),
            ips=options.many("additional-ipaddress"),
            **chosen_days,
            now_ns=now_ns(),
        )
    except (NomadError, OSError) as error:
        raise CliError(
            f"Error creating the certificate: {error}\nThe CA is made with: nomadpy tls ca create"
        ) from error
    say(
        f"==> {chosen[0].capitalize() if chosen[0] != 'cli' else 'CLI'} certificate saved to {certificate}\n"
        f"==> Its key saved to {key}"
    )
    return 0


@command("tls ca info <file>", "Show a CA certificate.", operands=(1, 1), general=False)
def ca_info(call: Call) -> int:
    """Show."""
    return _show(call.operand())


@command("tls cert info <file>", "Show a certificate.", operands=(1, 1), general=False)
def cert_info(call: Call) -> int:
    """Show."""
    return _show(call.operand())


def _show(path: str) -> int:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    try:
        certificate = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except OSError as cause:
        raise CliError(f"Error reading {path}: {cause.strerror}") from cause
    except ValueError as cause:
        raise CliError(f"Error reading {path}: it is not a PEM certificate ({cause})") from cause
    extensions = certificate.extensions
    rows: list[tuple[str, object]] = [
        ("Serial Number", format(certificate.serial_number, "x")),
        ("Subject", certificate.subject.rfc4514_string()),
        ("Issuer", certificate.issuer.rfc4514_string()),
        ("Not Before", certificate.not_valid_before_utc.strftime("%Y-%m-%dT%H:%M:%SZ")),
        ("Not After", certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ")),
        ("SHA-256", certificate.fingerprint(hashes.SHA256()).hex()),
    ]
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        rows.append(("Is CA", constraints.ca))
    except x509.ExtensionNotFound:
        rows.append(("Is CA", False))
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        rows.append(("DNS Names", ", ".join(names.get_values_for_type(x509.DNSName))))
        addresses = names.get_values_for_type(x509.IPAddress)
        rows.append(("IP Addresses", ", ".join(str(a) for a in addresses)))
    except x509.ExtensionNotFound:
        rows.append(("DNS Names", ""))
    say(pairs(rows))
    return 0
