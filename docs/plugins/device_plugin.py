#!/usr/bin/env python3
"""A device plugin in one file: every file of a folder is a device. Copy it, and look at real hardware instead.

The agent starts it, writes one request a line and reads one answer a line (docs/configuration.md#device-plugins). A file
that holds the word `broken` is a sick device. What stands in the configuration:

    client {
      device_plugin "folder" {
        command = "/usr/bin/python3"
        args    = ["/opt/nomadpy/device_plugin.py"]
        config { folder = "/srv/devices" }
      }
    }
"""

import json
import sys
from pathlib import Path

VENDOR, TYPE, MODEL = "example", "file", "plain"


class Plugin:
    """Answers the agent's questions."""

    def __init__(self):
        self.folder = Path("/nonexistent")

    def configure(self, params):
        """Once, first: what the configuration says."""
        self.folder = Path(params["config"]["folder"])
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder")
        return {}

    def fingerprint(self, _params):
        """Which devices are there, and how they are."""
        instances = []
        for path in self.files():
            sick = "broken" in path.read_text()
            instances.append(
                {
                    "id": path.name,
                    "healthy": not sick,
                    "health_description": "the file says so" if sick else "",
                }
            )
        group = {
            "vendor": VENDOR,
            "type": TYPE,
            "name": MODEL,
            "attributes": {"memory": "4 GiB"},
            "instances": instances,
        }
        return {"devices": [group] if instances else []}

    def reserve(self, params):
        """What a task needs to use the devices that it was given."""
        ids = [one for device in params["devices"] for one in device["ids"]]
        for name in ids:
            if not (self.folder / name).is_file():
                raise ValueError(f"device {name} is gone")
        mounts = [
            {"host_path": str(self.folder / name), "task_path": f"/devices/{name}"} for name in ids
        ]
        return {"env": {"EXAMPLE_FILES": ",".join(ids)}, "mounts": mounts, "devices": []}

    def stats(self, _params):
        """What the devices do."""
        instances = {}
        for path in self.files():
            size = {"value": path.stat().st_size, "of": 4096, "unit": "B", "desc": "Bytes used"}
            instances[path.name] = {"summary": size, "figures": {"Bytes": size}}
        group = {"vendor": VENDOR, "type": TYPE, "name": MODEL, "instances": instances}
        return {"devices": [group]}

    def files(self):
        """The files of the folder, in order."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())


def main():
    """Answer until the input ends, which it does with the agent."""
    plugin = Plugin()
    methods = ("configure", "fingerprint", "reserve", "stats")
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"id": request["id"]}
        try:
            if request["method"] not in methods:
                raise ValueError(f"unknown method {request['method']}")
            answer["result"] = getattr(plugin, request["method"])(request["params"])
        except (ValueError, KeyError, OSError) as error:
            answer["error"] = str(error) or type(error).__name__
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
