//! Encodes what crate nftnl has no types for, with the functions of libnftnl.

#![allow(unsafe_code)] // The functions of libnftnl take pointers.

use std::ffi::{CStr, CString, c_void};
use std::net::Ipv4Addr;
use std::ptr::{self, NonNull};

use nftnl::nftnl_sys as sys;
use nftnl::{ProtoFamily, Rule, Table, set};

use crate::firewall::bytecode::{KernelSet, Register};

/// `TCPOPT_MAXSEG`: kind of TCP's option (RFC 9293, section 3.7.1).
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
/// `NFT_EXTHDR_OP_TCPOPT` (linux/netfilter/nf_tables.h).
const TCP_OPTION: u32 = 1;
/// `NFT_RT_TCPMSS`.
const ROUTE_SEGMENT_SIZE: u32 = 3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED` (linux/netfilter/nf_nat.h).
const PORTS_SPECIFIED: u32 = 2;
/// `NFT_HASH_SYM`.
const SYMMETRIC: u32 = 1;
/// `NFT_REG32_01`: the second 32 bits of register 1.
const AFTER_ADDRESS: u32 = libc::NFT_REG32_01 as u32;
/// nft(8)'s numbers of the types of a key, six bits each: IPv4 address and mark.
const ADDRESS_AND_NUMBER: u32 = (7 << 6) | 19;
/// `NFT_CONNLIMIT_F_INV`: more connections than the limit match.
const OVER: u32 = 1;

/// An expression by the attributes of libnftnl (libnftnl/expr.h).
pub(super) struct Raw {
    name: &'static CStr,
    attributes: Vec<(u32, Value)>,
}

enum Value {
    Byte(u8),
    Number(u32),
    Data(Vec<u8>),
    Text(CString),
    Expression(Raw),
}

impl Raw {
    fn new(name: &'static CStr, attributes: Vec<(u32, Value)>) -> Self {
        Self { name, attributes }
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

    pub(super) fn hash_connection(modulus: u32) -> Self {
        let attributes = vec![
            (sys::NFTNL_EXPR_HASH_DREG, Value::Number(AFTER_ADDRESS)),
            (sys::NFTNL_EXPR_HASH_MODULUS, Value::Number(modulus)),
            (sys::NFTNL_EXPR_HASH_TYPE, Value::Number(SYMMETRIC)),
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

fn set_attribute(expression: NonNull<sys::nftnl_expr>, attribute: u16, value: &Value) {
    let pointer = expression.as_ptr();
    // SAFETY: `expression` is a valid expression. libnftnl copies data and text, whose
    // pointers are valid during the call. It takes ownership of a nested expression.
    unsafe {
        match value {
            Value::Byte(byte) => sys::nftnl_expr_set_u8(pointer, attribute, *byte),
            Value::Number(number) => sys::nftnl_expr_set_u32(pointer, attribute, *number),
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

/// Encodes a set of IPv4 addresses with a number, without elements.
pub(super) fn set<'a>(
    table: &'a Table,
    name: &CStr,
    id: u32,
    compiled: &KernelSet,
) -> set::Set<'a, Ipv4Addr> {
    let set = set::Set::<Ipv4Addr>::new_named(name, id, table, ProtoFamily::Inet);
    let pointer = set.as_ptr().as_ptr();
    // SAFETY: the pointer is valid as long as `set`.
    unsafe {
        sys::nftnl_set_set_u32(pointer, sys::NFTNL_SET_FLAGS as u16, compiled.flags);
        sys::nftnl_set_set_u32(pointer, sys::NFTNL_SET_DESC_SIZE as u16, compiled.size);
        sys::nftnl_set_set_u32(pointer, sys::NFTNL_SET_KEY_LEN as u16, compiled.key_length);
        sys::nftnl_set_set_u32(pointer, sys::NFTNL_SET_KEY_TYPE as u16, ADDRESS_AND_NUMBER);
    }
    set
}
