//! What is known of some bytes of a packet, and of what is said of them.

/// Truth, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    Yes,
    No,
    Maybe,
}

impl Truth {
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            (Self::Maybe | Self::Yes, Self::Maybe | Self::Yes) => Self::Maybe,
        }
    }

    pub(super) fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
        }
    }
}

/// Bytes of which each bit is known or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits(pub(super) Vec<(u8, u8)>);

impl Bits {
    pub(super) fn known(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| (*byte, 0xff)).collect())
    }

    pub(super) fn unknown(length: usize) -> Self {
        Self(vec![(0, 0); length])
    }

    /// The first bits of an address.
    pub(super) fn network(net: ipnet::Ipv4Net) -> Self {
        let bytes = net.network().octets().into_iter();
        Self(bytes.zip(net.netmask().octets()).collect())
    }

    /// A name as the kernel compares it: 16 bytes, filled up with NUL.
    pub(super) fn name(name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(libc::IFNAMSIZ, 0);
        Self::known(&bytes)
    }

    pub(super) fn mask(&mut self, mask: &[u8]) {
        for ((value, known), mask) in self.0.iter_mut().zip(mask) {
            *value &= mask;
            *known |= !mask;
        }
    }

    /// Whether it is one of these values.
    pub(super) fn is_in(&self, set: &[Vec<u8>]) -> Truth {
        let found = set.iter().map(|value| self.begins_with(value));
        found.fold(Truth::No, |any, is| any.not().and(is.not()).not())
    }

    /// Whether it begins with these bytes.
    pub(super) fn begins_with(&self, bytes: &[u8]) -> Truth {
        if bytes.len() > self.0.len() {
            return Truth::Maybe;
        }
        let mut truth = Truth::Yes;
        for ((value, known), byte) in self.0.iter().zip(bytes) {
            if (value ^ byte) & known != 0 {
                return Truth::No;
            }
            if *known != 0xff {
                truth = Truth::Maybe;
            }
        }
        truth
    }
}
