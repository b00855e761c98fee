"""What a result was made on: processor, memory, accelerator, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16")
_PACKAGES = (
    "tessera-vl",
    "torch",
    "transformers",
    "diffusers",
    "peft",
    "accelerate",
    "tokenizers",
    "numpy",
    "scipy",
)


def _cpuinfo() -> dict[str, str]:
    """First value of each line "key : value" of Linux's processor table; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    table: dict[str, str] = {}
    for line in lines:
        key, found, value = line.partition(":")
        if found:
            table.setdefault(key.strip(), value.strip())
    return table


def _memory_gib() -> float | None:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return round(size / 2**30, 1)


def cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _accelerators() -> list[dict[str, Any]]:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [{"name": one.name, "memory_gib": round(one.total_memory / 2**30, 1)} for one in devices]
    return [{"name": "Apple GPU"}] if torch.backends.mps.is_available() else []


def describe_machine() -> dict[str, Any]:
    """Processor with its flags that matter for speed, cores, memory, accelerators and system: JSON values."""
    table = _cpuinfo()
    flags = set((table.get("flags") or table.get("Features") or "").split())
    return {
        "cpu": table.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "accelerators": _accelerators(),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Python and those of the packages that results depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The checked-out commit of the library's own repository, "+changes" added where files differ from it.

    None where the library is not run from a checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "tessera")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
