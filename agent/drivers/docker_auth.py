"""Find the credentials for an image's registry, as the header that the daemon wants.

The docker SDK knows config files and credential helpers; it is large, so it is imported only here and when asked.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from agent.drivers.base import DriverError
from agent.drivers.docker_policy import AuthPolicy, TaskAuth


def registry_header(image: str, task_auth: TaskAuth | None, policy: AuthPolicy) -> str:
    """The X-Registry-Auth value for pulling `image`, "" for an anonymous pull; blocking.

    The job's own credentials come first, then the operator's helper, then a config file. Raises DriverError when a
    helper or file cannot be read.
    """
    if task_auth is not None and (task_auth.username or task_auth.password):
        return _encode(
            {
                "username": task_auth.username,
                "password": task_auth.password,
                "email": task_auth.email,
                "serveraddress": task_auth.server_address,
            }
        )
    if not (policy.config or policy.helper):
        return ""
    from docker import auth, errors

    try:
        if policy.helper:
            config = auth.AuthConfig({"credsStore": policy.helper})
        else:
            config = auth.load_config(config_path=policy.config)
        registry, _ = auth.resolve_repository_name(image)
        found = auth.resolve_authconfig(config, registry)
    except (errors.DockerException, OSError, ValueError) as error:
        raise DriverError(f"failed to find docker auth for {image!r}: {error}") from error
    return _encode(found) if found else ""


def _encode(credentials: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(credentials).encode()).decode()
