"""A local network of namespaces with machines in QEMU on it.

`image/boot` and the boot lane try the image on it: a LAN segment with a real
DHCP, DNS and TFTP server, a stand-in for a controller and a page to fetch, and
a segment on which nobody answers. It needs root, and leaves nothing behind:
the kernel takes everything away when the program that made it ends, however
it ends.
"""
