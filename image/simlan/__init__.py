"""Simulates a LAN in network namespaces, with servers on it and machines in QEMU.

`image/boot`, `image/measure`, the test lanes and the benchmarks use it. It needs root.
The kernel removes namespaces, links and processes when the program ends, even by SIGKILL.

    lan          one LAN: a bridge, cables for NICs, servers on demand
    boot_lan     a LAN with every server that a machine needs to boot and to poll
    ping         a ping(8) from the LAN, and its answers

    dnsmasq kea  DHCP servers: configuration, leases
    web ntp      servers, each a program of its own
    controller   the double of a build2 controller, a program of its own, with
                 build_queue (its rules), manifests, agent_keys

    qemu         QEMU's command line for a machine
    guest        a running machine: console, root shell (shell), QEMU's monitor

    namespace    a network namespace that ends with this program
    process      processes that end with this program
    wait         waiting for a condition up to a deadline
    closing errors
"""
