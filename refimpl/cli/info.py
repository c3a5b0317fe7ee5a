"""`refimpl info`: what results and times on this machine depend on."""

from __future__ import annotations

import os
from importlib import resources
from typing import Any

import click

from refimpl.cli.output import facts, print_json
from refimpl.environment import environment


@click.command(epilog="\b\nExample:\n  refimpl info --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show versions, CPU features, threads, kernels and folders."""
    found = gather()
    if as_json:
        print_json(found)
    else:
        click.echo(facts(_lines(found)))


def gather() -> dict[str, Any]:
    """The environment as a run folder records it, and where things are kept on this machine."""
    from refimpl.kernels.edge import chosen_kernels
    from refimpl.kernels.jit import cache_folder

    return {
        **environment(),
        "kernels": chosen_kernels(),
        "cache_folder": str(cache_folder()),
        "package_folder": str(resources.files("refimpl")),
        "data_folder": os.environ.get("REFIMPL_DATA"),
    }


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    cpu = found["cpu"]
    packages = ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())
    commit = f" (commit {found['commit']})" if found["commit"] else ""
    return [
        ("refimpl", f"{found['refimpl']}{commit}"),
        ("python", found["python"]),
        ("packages", packages),
        ("platform", found["platform"]),
        ("cpu", f"{cpu['model']} (compiled for {cpu['name']})"),
        ("features", " ".join(cpu["features"])),
        ("threads", f"{found['cores']} (all cores this process may use; --threads changes it)"),
        ("kernels", found["kernels"]),
        ("compiled code", found["cache_folder"]),
        ("package", found["package_folder"]),
        ("data", found["data_folder"] or "REFIMPL_DATA is not set"),
    ]
