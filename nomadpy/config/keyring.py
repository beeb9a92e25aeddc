"""What `keyring "PROVIDER" { ... }` blocks say: who keeps the key-encryption key of root keys."""

from __future__ import annotations

import msgspec

from nomadpy.config.model import Config
from nomadpy.errors import ConfigError
from nomadpy.hcl.source import did_you_mean

PROVIDERS = ("aead", "file")
ELSEWHERE = ("awskms", "azurekeyvault", "gcpckms", "transit")
"""Key stores that Nomad knows and this version does not."""
_FIELDS = {"aead": ("active",), "file": ("active", "path")}


class KeyringSettings(msgspec.Struct, frozen=True, kw_only=True):
    """active: aead or file, the provider of new keys. file: path of the key, "" without the provider `file`."""

    active: str = "aead"
    file: str = ""


def keyring_settings(config: Config) -> KeyringSettings:
    """Return the settings. Raises ConfigError that names the first fault."""
    faults = keyring_faults(config)
    if faults:
        raise ConfigError(faults[0])
    active = [name for name, block in config.keyring.items() if block.get("active")]
    file = config.keyring.get("file", {}).get("path", "")
    return KeyringSettings(active=active[0] if active else "aead", file=file)


def keyring_faults(config: Config) -> list[str]:
    """Return everything wrong with the keyring blocks, with file and line where known."""
    faults: list[str] = []
    active: list[str] = []
    for name, block in config.keyring.items():
        place = f'keyring "{name}"'
        origin = config.origin("keyring")
        if name in ELSEWHERE:
            faults.append(
                f'{origin}{place}: this key store is not part of this version; keyring "file" keeps keys out of the state'
            )
            continue
        if name not in PROVIDERS:
            faults.append(
                f"{origin}{place}: providers are {', '.join(PROVIDERS)}. {did_you_mean(name, PROVIDERS)}".rstrip()
            )
            continue
        for field, value in block.items():
            if field not in _FIELDS[name]:
                hint = did_you_mean(field, _FIELDS[name])
                faults.append(f"{origin}{place} has no setting {field!r}. {hint}".rstrip())
            elif field == "active" and not isinstance(value, bool):
                faults.append(f"{origin}{place}: active must be true or false")
        path = block.get("path", "")
        if name == "file" and not (isinstance(path, str) and path.startswith("/")):
            faults.append(f'{origin}{place} needs path = "...", the absolute path of the key')
        if block.get("active") is True:
            active.append(name)
    if len(active) > 1:
        faults.append(f"only one keyring block can be active, not both {' and '.join(active)}")
    return faults
