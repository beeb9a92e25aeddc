"""keyring blocks: which provider keeps the key-encryption key, and every way to say it wrongly."""

from __future__ import annotations

import pytest

from nomadpy.config.keyring import KeyringSettings, keyring_settings
from nomadpy.config.load import load_text, unused_settings
from nomadpy.errors import ConfigError

SERVER = 'data_dir = "/d"\nbind_addr = "127.0.0.1"\nserver { enabled = true }\n'
FILE = 'keyring "file" {\n  active = true\n  path = "/k"\n}\n'


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", KeyringSettings()),
        ('keyring "aead" { active = true }', KeyringSettings()),
        (FILE, KeyringSettings(active="file", file="/k")),
        ('keyring "file" { path = "/k" }', KeyringSettings(active="aead", file="/k")),
        (
            'keyring "aead" { active = true }\nkeyring "file" { path = "/k" }',
            KeyringSettings(active="aead", file="/k"),
        ),
    ],
)
def test_a_block_names_the_provider(text: str, settings: KeyringSettings) -> None:
    config = load_text(SERVER + text)
    assert keyring_settings(config) == settings
    assert unused_settings(config) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('keyring "file" { active = true }', 'needs path = "..."'),
        ('keyring "file" { path = "relative" }', "the absolute path"),
        ('keyring "file" { path = 7 }', "the absolute path"),
        ('keyring "awskms" { active = true }', "not part of this version"),
        ('keyring "files" { path = "/k" }', "providers are aead, file"),
        ('keyring "file" {\n path = "/k"\n pth = "/k"\n}', "no setting 'pth'"),
        ('keyring "aead" { active = "yes" }', "active must be true or false"),
        (FILE + 'keyring "aead" { active = true }', "only one keyring block can be active"),
    ],
)
def test_a_wrong_block_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_text(SERVER + text)
    assert words in refused.value.message
