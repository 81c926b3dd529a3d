"""What a measurement was taken on."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch


def describe_machine() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "deepspeed")},
    }
