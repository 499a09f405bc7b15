//! Encodes what crate nftnl has no types for, with the functions of libnftnl.

#![allow(unsafe_code)] // The functions of libnftnl take pointers.

use std::ffi::{CStr, CString, c_void};
use std::ptr::{self, NonNull};

use nftnl::nftnl_sys as sys;
use nftnl::{MsgType, NlMsg, Rule, Table, set};

use crate::firewall::bytecode::{Element, KernelSet, MetaKey, PayloadBase, Register};
use crate::firewall::compile::{TYPE_INTERFACE, TYPE_INTERFACE_NAME};
use crate::firewall::decode::change_elements;
use crate::firewall::model::{CompareOp, Family};

/// `NFT_MSG_DESTROYSETELEM`: removes elements, and ignores missing ones.
const DESTROY_ELEMENTS: i32 = 30;

/// `TCPOPT_MAXSEG`: kind of TCP's option (RFC 9293, section 3.7.1).
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
/// `NFT_EXTHDR_OP_TCPOPT` (linux/netfilter/nf_tables.h).
const TCP_OPTION: u32 = 1;
/// `NFT_RT_TCPMSS`.
const ROUTE_SEGMENT_SIZE: u32 = 3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED` (linux/netfilter/nf_nat.h).
const PORTS_SPECIFIED: u32 = 2;
/// `NFT_HASH_JENKINS`. Without a seed in the attributes, the kernel takes a random one.
const JENKINS: u32 = 0;
/// `NFT_HASH_SYM`.
const SYMMETRIC: u32 = 1;
/// `NFT_REG32_01`: the second 32 bits of register 1.
const AFTER_ADDRESS: u32 = libc::NFT_REG32_01 as u32;
/// `NFT_CONNLIMIT_F_INV`, `NFT_LIMIT_F_INV`: what exceeds the limit matches.
const OVER: u32 = 1;
/// `NFT_LIMIT_PKTS`.
const PACKETS: u32 = 0;

/// An expression by the attributes of libnftnl (libnftnl/expr.h).
pub(super) struct Raw {
    name: &'static CStr,
    attributes: Vec<(u32, Value)>,
}

enum Value {
    Byte(u8),
    Number(u32),
    Wide(u64),
    Data(Vec<u8>),
    Text(CString),
    Expression(Raw),
}

impl Raw {
    fn new(name: &'static CStr, attributes: Vec<(u32, Value)>) -> Self {
        Self { name, attributes }
    }

    pub(super) fn lookup(set: CString, is: CompareOp) -> Self {
        let inverted = match is {
            CompareOp::Equal => 0,
            CompareOp::NotEqual => libc::NFT_LOOKUP_F_INV as u32,
        };
        let attributes = vec![
            (sys::NFTNL_EXPR_LOOKUP_SREG, register(Register::One)),
            (sys::NFTNL_EXPR_LOOKUP_SET, Value::Text(set)),
            (sys::NFTNL_EXPR_LOOKUP_FLAGS, Value::Number(inverted)),
        ];
        Self::new(c"lookup", attributes)
    }

    /// Loads into a 32-bit group of register 1.
    pub(super) fn meta(at: u8, key: MetaKey) -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_META_KEY, Value::Number(key as u32)),
            (sys::NFTNL_EXPR_META_DREG, group(at)),
        ];
        Self::new(c"meta", attributes)
    }

    /// As [`Self::meta`].
    pub(super) fn payload(at: u8, base: PayloadBase, offset: u32, length: u32) -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_PAYLOAD_BASE, Value::Number(base as u32)),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, Value::Number(offset)),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, Value::Number(length)),
            (sys::NFTNL_EXPR_PAYLOAD_DREG, group(at)),
        ];
        Self::new(c"payload", attributes)
    }

    pub(super) fn range(from: &[u8], to: &[u8]) -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_RANGE_SREG, register(Register::One)),
            (
                sys::NFTNL_EXPR_RANGE_OP,
                Value::Number(libc::NFT_RANGE_EQ as u32),
            ),
            (
                sys::NFTNL_EXPR_RANGE_FROM_DATA,
                Value::Data(from.to_owned()),
            ),
            (sys::NFTNL_EXPR_RANGE_TO_DATA, Value::Data(to.to_owned())),
        ];
        Self::new(c"range", attributes)
    }

    pub(super) fn immediate(to: Register, data: &[u8]) -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_IMM_DREG, register(to)),
            (sys::NFTNL_EXPR_IMM_DATA, Value::Data(data.to_owned())),
        ];
        Self::new(c"immediate", attributes)
    }

    pub(super) fn masquerade_ports() -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_MASQ_FLAGS, Value::Number(PORTS_SPECIFIED)),
            (sys::NFTNL_EXPR_MASQ_REG_PROTO_MIN, register(Register::One)),
            (sys::NFTNL_EXPR_MASQ_REG_PROTO_MAX, register(Register::Two)),
        ];
        Self::new(c"masq", attributes)
    }

    pub(super) fn destination_nat() -> Self {
        let kind = libc::NFT_NAT_DNAT as u32;
        let family = libc::NFPROTO_IPV4 as u32;
        let attributes = vec![
            (sys::NFTNL_EXPR_NAT_TYPE, Value::Number(kind)),
            (sys::NFTNL_EXPR_NAT_FAMILY, Value::Number(family)),
            (sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, register(Register::One)),
            (sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, register(Register::Two)),
        ];
        Self::new(c"nat", attributes)
    }

    pub(super) fn hash_connection(modulus: u32) -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_HASH_DREG, Value::Number(AFTER_ADDRESS)),
            (sys::NFTNL_EXPR_HASH_MODULUS, Value::Number(modulus)),
            (sys::NFTNL_EXPR_HASH_TYPE, Value::Number(SYMMETRIC)),
        ];
        Self::new(c"hash", attributes)
    }

    pub(super) fn hash_port(modulus: u32) -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_HASH_SREG, group(2)),
            (sys::NFTNL_EXPR_HASH_DREG, Value::Number(AFTER_ADDRESS)),
            (sys::NFTNL_EXPR_HASH_LEN, Value::Number(2)),
            (sys::NFTNL_EXPR_HASH_MODULUS, Value::Number(modulus)),
            (sys::NFTNL_EXPR_HASH_TYPE, Value::Number(JENKINS)),
        ];
        Self::new(c"hash", attributes)
    }

    pub(super) fn count_connections(set: CString, limit: u32) -> Self {
        let over = Self::new(
            c"connlimit",
            vec![
                (sys::NFTNL_EXPR_CONNLIMIT_COUNT, Value::Number(limit)),
                (sys::NFTNL_EXPR_CONNLIMIT_FLAGS, Value::Number(OVER)),
            ],
        );
        let attributes = vec![
            (sys::NFTNL_EXPR_DYNSET_SREG_KEY, register(Register::One)),
            (
                sys::NFTNL_EXPR_DYNSET_OP,
                Value::Number(libc::NFT_DYNSET_OP_ADD as u32),
            ),
            (sys::NFTNL_EXPR_DYNSET_SET_NAME, Value::Text(set)),
            (sys::NFTNL_EXPR_DYNSET_EXPR, Value::Expression(over)),
        ];
        Self::new(c"dynset", attributes)
    }

    pub(super) fn update(set: CString, timeout_ms: u64, renew: bool) -> Self {
        let attributes = Self::dynamic_set(set, timeout_ms, renew);
        Self::new(c"dynset", attributes)
    }

    pub(super) fn limit_rate(
        set: CString,
        timeout_ms: u64,
        tokens: u64,
        interval_s: u64,
        burst: u32,
    ) -> Self {
        let limit = Self::new(
            c"limit",
            vec![
                (sys::NFTNL_EXPR_LIMIT_RATE, Value::Wide(tokens)),
                (sys::NFTNL_EXPR_LIMIT_UNIT, Value::Wide(interval_s)),
                (sys::NFTNL_EXPR_LIMIT_BURST, Value::Number(burst)),
                (sys::NFTNL_EXPR_LIMIT_TYPE, Value::Number(PACKETS)),
                (sys::NFTNL_EXPR_LIMIT_FLAGS, Value::Number(OVER)),
            ],
        );
        let mut attributes = Self::dynamic_set(set, timeout_ms, true);
        attributes.push((sys::NFTNL_EXPR_DYNSET_EXPR, Value::Expression(limit)));
        Self::new(c"dynset", attributes)
    }

    fn dynamic_set(set: CString, timeout_ms: u64, renew: bool) -> Vec<(u32, Value)> {
        let operation = match renew {
            true => libc::NFT_DYNSET_OP_UPDATE,
            false => libc::NFT_DYNSET_OP_ADD,
        };
        vec![
            (sys::NFTNL_EXPR_DYNSET_SREG_KEY, register(Register::One)),
            (sys::NFTNL_EXPR_DYNSET_OP, Value::Number(operation as u32)),
            (sys::NFTNL_EXPR_DYNSET_TIMEOUT, Value::Wide(timeout_ms)),
            (sys::NFTNL_EXPR_DYNSET_SET_NAME, Value::Text(set)),
        ]
    }

    pub(super) fn route_segment_size() -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_RT_KEY, Value::Number(ROUTE_SEGMENT_SIZE)),
            (sys::NFTNL_EXPR_RT_DREG, register(Register::One)),
        ];
        Self::new(c"rt", attributes)
    }

    pub(super) fn host_to_network() -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_BYTEORDER_SREG, register(Register::One)),
            (sys::NFTNL_EXPR_BYTEORDER_DREG, register(Register::One)),
            (
                sys::NFTNL_EXPR_BYTEORDER_OP,
                Value::Number(libc::NFT_BYTEORDER_HTON as u32),
            ),
            (sys::NFTNL_EXPR_BYTEORDER_LEN, Value::Number(2)),
            (sys::NFTNL_EXPR_BYTEORDER_SIZE, Value::Number(2)),
        ];
        Self::new(c"byteorder", attributes)
    }

    pub(super) fn write_segment_size() -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_EXTHDR_SREG, register(Register::One)),
            (
                sys::NFTNL_EXPR_EXTHDR_TYPE,
                Value::Byte(MAXIMUM_SEGMENT_SIZE),
            ),
            // The size follows the kind and the length of the option.
            (sys::NFTNL_EXPR_EXTHDR_OFFSET, Value::Number(2)),
            (sys::NFTNL_EXPR_EXTHDR_LEN, Value::Number(2)),
            (sys::NFTNL_EXPR_EXTHDR_OP, Value::Number(TCP_OPTION)),
        ];
        Self::new(c"exthdr", attributes)
    }

    fn allocate(&self) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string that outlives the call.
        let expression = unsafe { sys::nftnl_expr_alloc(self.name.as_ptr()) };
        let Some(expression) = NonNull::new(expression) else {
            // malloc(3) failed; Rust's allocator aborts then, too.
            std::process::abort();
        };
        for (attribute, value) in &self.attributes {
            set_attribute(expression, *attribute as u16, value);
        }
        expression
    }
}

fn register(register: Register) -> Value {
    Value::Number(register as u32)
}

/// Returns a 32-bit group of register 1.
fn group(at: u8) -> Value {
    match at {
        0 => register(Register::One),
        at => Value::Number(libc::NFT_REG32_00 as u32 + u32::from(at)),
    }
}

fn set_attribute(expression: NonNull<sys::nftnl_expr>, attribute: u16, value: &Value) {
    let pointer = expression.as_ptr();
    // SAFETY: `expression` is a valid expression. libnftnl copies data and text, whose
    // pointers are valid during the call. It takes ownership of a nested expression.
    unsafe {
        match value {
            Value::Byte(byte) => sys::nftnl_expr_set_u8(pointer, attribute, *byte),
            Value::Number(number) => sys::nftnl_expr_set_u32(pointer, attribute, *number),
            Value::Wide(number) => sys::nftnl_expr_set_u64(pointer, attribute, *number),
            Value::Data(data) => {
                let (start, length) = (data.as_ptr().cast::<c_void>(), data.len() as u32);
                sys::nftnl_expr_set(pointer, attribute, start, length);
            }
            Value::Text(text) => {
                sys::nftnl_expr_set_str(pointer, attribute, text.as_ptr());
            }
            Value::Expression(nested) => {
                let nested = nested.allocate().as_ptr().cast_const().cast::<c_void>();
                sys::nftnl_expr_set(pointer, attribute, nested, 0);
            }
        }
    }
}

impl nftnl::expr::Expression for Raw {
    fn to_expr(&self, _: &Rule<'_>) -> ptr::NonNull<sys::nftnl_expr> {
        self.allocate()
    }
}

/// A key of a set as the kernel keeps it.
pub(super) struct Key(Vec<u8>);

impl set::SetKey for Key {
    // `set` replaces both.
    const TYPE: u32 = 0;
    const LEN: u32 = 0;

    fn data(&self) -> Box<[u8]> {
        self.0.as_slice().into()
    }
}

/// Encodes a set with its elements.
pub(super) fn set<'a>(
    table: &'a Table,
    name: &CStr,
    id: u32,
    compiled: &KernelSet,
) -> set::Set<'a, Key> {
    let mut set = set::Set::<Key>::new_named(name, id, table, table.get_family());
    let pointer = set.as_ptr().as_ptr();
    let number = |attribute: u32, value| {
        // SAFETY: the pointer is valid as long as `set`.
        unsafe { sys::nftnl_set_set_u32(pointer, attribute as u16, value) }
    };
    number(sys::NFTNL_SET_FLAGS, compiled.flags);
    number(sys::NFTNL_SET_KEY_TYPE, compiled.key_type);
    number(sys::NFTNL_SET_KEY_LEN, compiled.key_length);
    if let TYPE_INTERFACE | TYPE_INTERFACE_NAME = compiled.key_type {
        // SAFETY: as above; libnftnl copies the bytes.
        unsafe {
            let (bytes, length) = (HOST_BYTE_ORDER.as_ptr(), HOST_BYTE_ORDER.len() as u32);
            sys::nftnl_set_set_data(
                pointer,
                sys::NFTNL_SET_USERDATA as u16,
                bytes.cast(),
                length,
            );
        }
    }
    if compiled.size > 0 {
        number(sys::NFTNL_SET_DESC_SIZE, compiled.size);
    }
    for element in &compiled.elements {
        set.add(&Key(element.clone()));
    }
    set
}

/// nft(8)'s note that a key is in host byte order: `NFTNL_UDATA_SET_KEYBYTEORDER` with
/// `BYTEORDER_HOST_ENDIAN`. Without it, nft(8) lists other elements.
const HOST_BYTE_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1_u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};

/// Elements of a message: their attributes fit into one attribute, which has a length of
/// 16 bits.
pub(super) const ELEMENTS_PER_MESSAGE: usize = 256;

/// Adds or removes elements of a set.
pub(super) struct ElementsMessage<'a> {
    pub(super) family: Family,
    pub(super) table: &'a str,
    pub(super) set: &'a str,
    /// At most [`ELEMENTS_PER_MESSAGE`].
    pub(super) elements: &'a [Element],
}

// SAFETY: `write` writes less than a page for the names, and 64 bytes for each element.
unsafe impl NlMsg for ElementsMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, kind: MsgType) {
        let (message, flags) = match kind {
            MsgType::Add => (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE),
            MsgType::Del => (DESTROY_ELEMENTS, 0),
        };
        let attributes = change_elements(self.table, self.set, self.elements);
        // SAFETY: the caller passes a buffer with room for the longest message, which is
        // longer than this one.
        unsafe {
            let header = sys::nftnl_nlmsg_build_hdr(
                buffer.cast(),
                message as u16,
                self.family.number() as u16,
                (flags | libc::NLM_F_ACK) as u16,
                sequence,
            );
            let end = buffer.byte_add((*header).nlmsg_len as usize);
            ptr::copy_nonoverlapping(attributes.as_ptr(), end.cast(), attributes.len());
            (*header).nlmsg_len += attributes.len() as u32;
        }
    }
}
