"""What the kernel command line says so that the demo's agent runs."""

from __future__ import annotations

from .network import CONTROLLER_URL


def parameters() -> str:
    """Kernel parameters: one bbot agent, which asks the LAN's controller.

    The machine has no KVM of its own to offer, so this need is waived.
    """
    prefix = "buildos.agentd.bbot.default"
    return f"{prefix}.controllers={CONTROLLER_URL} {prefix}.kvm=waived"
