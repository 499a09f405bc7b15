//! Parses the control messages of a received packet (cmsg(3)), for `PACKET_AUXDATA` (packet(7)).

use std::mem::{offset_of, size_of};

use libc::{cmsghdr, tpacket_auxdata};

/// Length of a control message with its padding.
const fn padded(length: usize) -> usize {
    length.next_multiple_of(size_of::<usize>())
}

/// Space for one `struct tpacket_auxdata` with its header, in bytes.
pub(super) const SIZE: usize = padded(size_of::<cmsghdr>()) + padded(size_of::<tpacket_auxdata>());

/// Returns true unless the kernel reports that the UDP checksum is not filled in.
pub(super) fn checksum_ready(control: &[u8]) -> bool {
    status(control).is_none_or(|status| status & libc::TP_STATUS_CSUMNOTREADY == 0)
}

/// Returns `tp_status` of the first `struct tpacket_auxdata`.
fn status(mut control: &[u8]) -> Option<u32> {
    loop {
        let length = usize::from_ne_bytes(field(control, offset_of!(cmsghdr, cmsg_len))?);
        let level = i32::from_ne_bytes(field(control, offset_of!(cmsghdr, cmsg_level))?);
        let kind = i32::from_ne_bytes(field(control, offset_of!(cmsghdr, cmsg_type))?);
        let data = control.get(padded(size_of::<cmsghdr>())..length)?;
        if (level, kind) == (libc::SOL_PACKET, libc::PACKET_AUXDATA)
            && data.len() >= size_of::<tpacket_auxdata>()
        {
            let status = field(data, offset_of!(tpacket_auxdata, tp_status));
            return status.map(u32::from_ne_bytes);
        }
        // The length is at least that of the header and at most that of the rest.
        control = control.get(padded(length)..)?;
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use buildos_fuzz::{Generator, executions, mutate};

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (size_of::<cmsghdr>() + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(padded(bytes.len()), 0);
        bytes
    }

    /// Returns a `struct tpacket_auxdata` of a frame of VLAN 20.
    fn auxdata(status: u32) -> Vec<u8> {
        let mut data = status.to_ne_bytes().to_vec();
        data.extend([0; 12]);
        data.extend([20, 0, 0x00, 0x81]);
        message(libc::SOL_PACKET, libc::PACKET_AUXDATA, &data)
    }

    #[test]
    fn status_is_that_of_first_whole_auxdata() {
        const NOT_READY: u32 = libc::TP_STATUS_CSUMNOTREADY | libc::TP_STATUS_VLAN_VALID;
        let other = message(libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[1; 13]);
        let short = message(libc::SOL_PACKET, libc::PACKET_AUXDATA, &[255; 19]);
        assert_eq!(auxdata(NOT_READY).len(), SIZE);
        assert_eq!(status(&auxdata(NOT_READY)), Some(NOT_READY));
        assert!(!checksum_ready(&auxdata(NOT_READY)));
        assert!(checksum_ready(&auxdata(libc::TP_STATUS_VLAN_VALID)));
        let all = [other, short, auxdata(NOT_READY), auxdata(0)].concat();
        assert_eq!(status(&all), Some(NOT_READY));
        for length in [0, 1, 15, 16, 35] {
            assert!(checksum_ready(&auxdata(NOT_READY)[..length]), "{length}");
        }
    }

    #[test]
    fn mutated_control_messages_have_at_most_one_status() {
        let mut random = Generator::new(1);
        let mut found = 0u64;
        for _ in 0..executions(100_000) {
            let mut control = Vec::new();
            for _ in 0..random.below(4) {
                let status = random.next() as u32;
                control.extend(match random.below(2) {
                    0 => auxdata(status),
                    _ => message(libc::SOL_SOCKET, status as i32, &[0xff; 9]),
                });
            }
            mutate(&mut control, 0, &mut random);
            if let Some(status) = status(&control) {
                found += 1;
                let bytes = status.to_ne_bytes();
                assert!(control.windows(4).any(|window| window == bytes));
                assert!(control.len() >= size_of::<cmsghdr>() + size_of::<tpacket_auxdata>());
            }
        }
        assert!(
            found > executions(100_000) / 10,
            "only {found} with a status"
        );
    }
}
