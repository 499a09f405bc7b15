#!/bin/sh
# vlan_rack.sh: process 1 of a guest with Debian's kernel, in which namespaces are a rack.
#
#   host  eth0 ---- trunk  switch (a bridge that filters VLANs)  ---- lab    VLAN 42, 198.51.42.1
#                   VLAN 42 with a tag, VLAN 7 without          ---- office VLAN 7,  198.51.7.1
#
# buildos-netd runs in host, DHCP servers run in lab and office. The script prints lines "fact NAME
# VALUE", which test_vlan.py checks, and switches the guest off.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mountpoint -q /run || mount -t tmpfs tmpfs /run
mountpoint -q /tmp || mount -t tmpfs tmpfs /tmp
conf=/etc/buildos/netd.conf.d
mkdir -p "$conf" /run/buildos

fact() { echo "fact $*"; }

# wait_for SECONDS COMMAND...: returns false if the command does not succeed in time.
wait_for() {
    tries=$(($1 * 20))
    shift
    while ! "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.05
    done
}

# Not for programs in the background, whose process id would be that of a shell.
in_host() { ip netns exec host "$@"; }

# server NAMESPACE VLAN: a DHCP server of 198.51.VLAN.0/24 on a port without tags.
server() {
    ip netns add "$1"
    ip -n switch link add "$1" type veth peer name eth0 netns "$1"
    ip -n switch link set "$1" master sw up
    ip netns exec switch bridge vlan add dev "$1" vid "$2" pvid untagged
    ip -n "$1" link set eth0 up
    ip -n "$1" address add "198.51.$2.1/24" dev eth0
    ip netns exec "$1" dnsmasq --conf-file=/dev/null --port=0 --interface=eth0 --user=root \
        --group=root --no-ping --leasefile-ro --dhcp-authoritative --pid-file= --log-facility=- \
        --dhcp-range="198.51.$2.100,198.51.$2.199,1h" 2>"/tmp/$1.log"
}

# host: a new host on the trunk.
host() {
    ip netns add host
    ip -n switch link add trunk address 02:00:00:00:77:01 type veth peer name eth0 netns host
    ip -n host link set eth0 address 02:00:00:00:77:02
    ip -n host link set lo up
    ip -n switch link set trunk master sw up
    ip netns exec switch bridge vlan add dev trunk vid 42
    ip netns exec switch bridge vlan add dev trunk vid 7 pvid untagged
}

remove_host() {
    kill "$netd" && wait "$netd"
    ip netns del host
    wait_for 5 sh -c '! ip -n switch link show trunk'
    rm -rf /run/buildos/netd
}

# configure VLAN: [uplink.lan] for eth0, or nothing for the VLAN 0.
configure() {
    echo 'include = ["eth0"]' >"$conf/10-veth.toml"
    rm -f "$conf/20-vlan.toml"
    [ "$1" = 0 ] || printf '[uplink.lan]\nlinks = ["eth0"]\nvlan = %s\n' "$1" >"$conf/20-vlan.toml"
}

start_netd() {
    mkdir -p /run/buildos/netd
    ip netns exec host /usr/sbin/buildos-netd >>/tmp/netd.log 2>&1 &
    netd=$!
}

address() { in_host ip -o -4 address show dev br0 | sed -n 's|.* inet \([0-9.]*\)/.*|\1|p'; }
# shellcheck disable=SC2317 # wait_for calls it
has_address() { case $(address) in "$1".*) ;; *) return 1 ;; esac; }
ports() { in_host ip -o link show master br0 | sed 's/^[0-9]*: \([^:@]*\).*/\1/' | sort | xargs; }

# lease NAME VLAN: starts a host; prints the milliseconds from the start of netd to its address.
lease() {
    configure "$2"
    host
    ip netns exec host ip -ts -o monitor address >/tmp/monitor &
    monitor=$!
    wait_for 5 test -e "/proc/$monitor"
    started=$(date +%s%N)
    start_netd
    network=198.51.$2
    [ "$2" != 0 ] || network=198.51.7
    wait_for 30 has_address "$network" || fact "$1" none
    wait_for 5 grep -q "br0 *inet $network" /tmp/monitor
    got=$(sed -n "s/^\[\([^]]*\)\].*br0 *inet $network.*/\1/p" /tmp/monitor | head -n 1)
    kill "$monitor"
    wait "$monitor"
    fact "$1" $(($(date -d "$got" +%s%N) / 1000000 - started / 1000000))
}

modprobe -a veth bridge
ip netns add switch
ip -n switch link add sw type bridge vlan_filtering 1 vlan_default_pvid 0
ip -n switch link set sw up
server lab 42
server office 7
fact loaded_before "$([ -e /sys/module/8021q ] && echo yes || echo no)"

for round in 1 2 3; do
    lease "untagged_$round" 0
    fact untagged_ports "$(ports)"
    fact untagged_links "$(in_host ip -o link show type vlan | wc -l)"
    remove_host
    lease "tagged_$round" 42
    [ "$round" = 3 ] || remove_host
done
fact tagged_address "$(address)"
fact tagged_ports "$(ports)"
fact nic_ipv6 "$(in_host cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6 /proc/sys/net/ipv6/conf/eth0.42/disable_ipv6 | xargs)"
fact served_by_office "$(grep -c DHCPOFFER /tmp/office.log)"

# A container on br0 reaches the VLAN, and nothing of the VLAN without a tag.
ip netns add container
ip -n host link add c0 type veth peer name eth0 netns container
ip -n host link set c0 master br0 up
ip -n container link set eth0 up
ip -n container address add 198.51.42.50/24 dev eth0
ip -n container address add 198.51.7.50/24 dev eth0
ping="ip netns exec container busybox ping -c 1 -W 2"
fact container_to_lab "$($ping 198.51.42.1 >/dev/null && echo yes || echo no)"
fact container_to_office "$($ping 198.51.7.1 >/dev/null && echo yes || echo no)"
ip -n host link del c0

# The VLAN of an administrator stays as it is, and a killed netd keeps its own.
ip -n host link add link eth0 name eth0.9 type vlan id 9
before=$(in_host cat /sys/class/net/eth0.42/ifindex)
kill -9 "$netd"
wait "$netd"
start_netd
wait_for 10 grep -q 198.51.42. /run/buildos/netd/state.json
wait_for 10 sh -c 'grep -q "extended\|bound" /tmp/netd.log'
fact kept "$([ "$before" = "$(in_host cat /sys/class/net/eth0.42/ifindex)" ] && echo yes || echo no)"

# The carrier of the NIC is that of the VLAN.
ip -n switch link set trunk down
wait_for 10 grep -q 'no carrier' /run/buildos/netd/state.json && fact carrier_lost yes
ip -n switch link set trunk up
wait_for 10 sh -c '! grep -q carrier-lost /run/buildos/netd/state.json' && fact carrier_back "$(address)"

# Without the section, netd removes what it made.
configure 0
kill -HUP "$netd"
wait_for 30 has_address 198.51.7 && fact untagged_again "$(ports)"
fact vlans_left "$(in_host ip -o link show type vlan | sed 's/^[0-9]*: \([^:@]*\).*/\1/' | xargs)"

# VLAN 9 belongs to the administrator.
configure 9
kill -HUP "$netd"
wait_for 30 grep -q 'another program made' /run/buildos/netd/state.json && fact other_vlan reported
fact vlans_at_end "$(in_host ip -o link show type vlan | sed 's/^[0-9]*: \([^:@]*\).*/\1/' | xargs)"
fact end yes
grep -v DISCOVER /tmp/netd.log | tail -n 60
echo o >/proc/sysrq-trigger
sleep 60
