"""`refimpl info`: shows what results and times on this machine depend on."""

from __future__ import annotations

import os
from importlib import resources
from typing import TYPE_CHECKING, Any

import click

from refimpl.cli.options import Session, session_options
from refimpl.cli.output import answer, exit_unless, facts
from refimpl.cli.progress import working
from refimpl.files.environment import cores, environment

if TYPE_CHECKING:
    from refimpl.machine.doctor import Finding


@click.command(epilog="\b\nExamples:\n  refimpl info --json\n  refimpl info --check")
@click.option("--check", is_flag=True, help="Check the kernels' results, and look for known traps.")
@session_options("threads", "json", "talk")
def command(check: bool, session: Session) -> None:
    """Show versions, CPU features, threads, kernels and folders.

    --check compares the compiled kernels with readable versions of them, bit by bit, or with their formulas
    in NumPy, and compares a compiled program with its layers. It warns of what makes numbers differ or times
    unsteady: denormal numbers that are switched off, more threads than cores, a container's quota, a cache
    that cannot be kept, a busy machine. It exits with 1 if a result is wrong.
    """
    found = gather(session.threads)
    findings = examined(session) if check else []
    content, text = found, facts(_lines(found))
    if check:
        content = {**found, "checks": [finding._asdict() for finding in findings]}
        text += "\n\n" + facts([(state, f"{what}: {detail}") for what, state, detail in findings])
    answer(session, content, text)
    exit_unless(all(finding.state != "failed" for finding in findings))


def examined(session: Session) -> list[Finding]:
    """Make the checks, and show progress: kernels may have to be compiled for them."""
    from refimpl.machine.doctor import CHECKS, examine

    findings = []
    with working(CHECKS, session.talk) as progress:
        for finding in examine(session.threads):
            findings.append(finding)
            progress.step(f"checked {finding.check}")
    return findings


def gather(threads: int | None = None) -> dict[str, Any]:
    """The environment as a run folder records it, and the folders that are used on this machine."""
    from refimpl.kernels.jit import cache_folder, chosen_kernels

    return {
        **environment(threads or cores()),
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
        ("cores", f"{found['cores']} that this process may use"),
        ("threads", f"{found['threads']} (--threads; all cores unless given)"),
        ("kernels", found["kernels"]),
        ("compiled code", found["cache_folder"]),
        ("package", found["package_folder"]),
        ("data", found["data_folder"] or "REFIMPL_DATA is not set"),
    ]
