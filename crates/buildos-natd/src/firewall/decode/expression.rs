//! Decodes expressions: those of natd's tables, and those of foreign tables that
//! decide whether a packet passes.

use netlink_packet_core::{DecodeError, parse_u32_be, parse_u64_be};

use super::attributes::{data_value, each, named_data, numbers, text};
use crate::firewall::bytecode::{ConntrackKey, Expression, MetaKey, PayloadBase, Register};
use crate::firewall::model::CompareOp;

// enum nft_meta_attributes, nft_ct_attributes
const META_REGISTER: u16 = 1;
const META_KEY: u16 = 2;
const CT_REGISTER: u16 = 1;
const CT_KEY: u16 = 2;
// enum nft_payload_attributes
const PAYLOAD_REGISTER: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
// enum nft_bitwise_attributes
const BITWISE_SOURCE: u16 = 1;
const BITWISE_DESTINATION: u16 = 2;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const BITWISE_OPERATION: u16 = 6;
// enum nft_cmp_attributes
const CMP_REGISTER: u16 = 1;
const CMP_OPERATION: u16 = 2;
const CMP_DATA: u16 = 3;
// enum nft_lookup_attributes
const LOOKUP_SET: u16 = 1;
const LOOKUP_REGISTER: u16 = 2;
const LOOKUP_DATA_REGISTER: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
// enum nft_range_attributes
const RANGE_REGISTER: u16 = 1;
const RANGE_OPERATION: u16 = 2;
const RANGE_FROM: u16 = 3;
const RANGE_TO: u16 = 4;
// enum nft_hash_attributes, nft_hash_types
const HASH_SOURCE: u16 = 1;
const HASH_REGISTER: u16 = 2;
const HASH_LENGTH: u16 = 3;
const HASH_MODULUS: u16 = 4;
const HASH_OFFSET: u16 = 6;
const HASH_TYPE: u16 = 7;
const HASH_JENKINS: u32 = 0;
const HASH_SYMMETRIC: u32 = 1;
// enum nft_dynset_attributes
const DYNSET_SET: u16 = 1;
const DYNSET_OPERATION: u16 = 3;
const DYNSET_KEY_REGISTER: u16 = 4;
const DYNSET_DATA_REGISTER: u16 = 5;
const DYNSET_TIMEOUT: u16 = 6;
const DYNSET_EXPRESSION: u16 = 7;
const DYNSET_EXPRESSIONS: u16 = 10;
// enum nft_limit_attributes
const LIMIT_RATE: u16 = 1;
const LIMIT_UNIT: u16 = 2;
const LIMIT_BURST: u16 = 3;
const LIMIT_TYPE: u16 = 4;
const LIMIT_FLAGS: u16 = 5;
/// `NFT_LIMIT_PKTS`.
const LIMIT_PACKETS: u32 = 0;
/// `NFT_LIMIT_F_INV`: packets over the limit match.
const LIMIT_OVER: u32 = 1;
// enum nft_connlimit_attributes
const CONNLIMIT_COUNT: u16 = 1;
const CONNLIMIT_FLAGS: u16 = 2;
/// `NFT_CONNLIMIT_F_INV`: more connections than the limit match.
const CONNLIMIT_OVER: u32 = 1;
// enum nft_masq_attributes
const MASQ_FLAGS: u16 = 1;
const MASQ_FIRST_PORT_REGISTER: u16 = 2;
const MASQ_LAST_PORT_REGISTER: u16 = 3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED` (linux/netfilter/nf_nat.h).
const MASQ_PORTS: u32 = 2;
// enum nft_nat_attributes, nft_nat_types
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_FIRST_ADDRESS_REGISTER: u16 = 3;
const NAT_LAST_ADDRESS_REGISTER: u16 = 4;
const NAT_FIRST_PORT_REGISTER: u16 = 5;
const NAT_LAST_PORT_REGISTER: u16 = 6;
const NAT_FLAGS: u16 = 7;
/// `NF_NAT_RANGE_MAP_IPS` with [`MASQ_PORTS`]: newer kernels add them.
const NAT_ADDRESSES_AND_PORTS: u32 = 1 | MASQ_PORTS;
// enum nft_rt_attributes, nft_rt_keys
const RT_REGISTER: u16 = 1;
const RT_KEY: u16 = 2;
const RT_SEGMENT_SIZE: u32 = 3;
// enum nft_byteorder_attributes
const BYTEORDER_SOURCE: u16 = 1;
const BYTEORDER_DESTINATION: u16 = 2;
const BYTEORDER_OPERATION: u16 = 3;
const BYTEORDER_LENGTH: u16 = 4;
const BYTEORDER_SIZE: u16 = 5;
// enum nft_exthdr_attributes, nft_exthdr_op
const EXTHDR_TYPE: u16 = 2;
const EXTHDR_OFFSET: u16 = 3;
const EXTHDR_LENGTH: u16 = 4;
const EXTHDR_OPERATION: u16 = 6;
const EXTHDR_SOURCE: u16 = 7;
const EXTHDR_TCP_OPTION: u32 = 1;
/// TCP's option for the maximum segment size (RFC 9293, section 3.7.1).
const SEGMENT_SIZE_OPTION: u8 = 2;
// enum nft_immediate_attributes
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
// enum nft_data_attributes, nft_verdict_attributes
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
// enum nft_target_attributes, nft_match_attributes
const EXTENSION_NAME: u16 = 1;
const EXTENSION_INFO: u16 = 3;
// struct xt_conntrack_mtinfo2 and …3 (linux/netfilter/xt_conntrack.h): eight
// addresses, two times, a protocol, four ports, then flags, inverted flags and
// the states, whose bits are those of "ct state".
const CONNTRACK_FLAGS: usize = 8 * 16 + 2 * 4 + 5 * 2;
const CONNTRACK_STATE: usize = CONNTRACK_FLAGS + 4;
/// `XT_CONNTRACK_STATE`.
const CONNTRACK_STATE_ONLY: u16 = 1;

/// Decodes an expression by its name; [`Expression::Other`] if it is not modelled.
pub(super) fn expression(name: String, data: &[u8]) -> Result<Expression, DecodeError> {
    let decoded = match name.as_str() {
        "meta" => meta(data)?,
        "ct" => connection(data)?,
        "payload" => payload(data)?,
        "bitwise" => mask(data)?,
        "cmp" => compare(data)?,
        "counter" => Some(Expression::Counter),
        "range" => range(data)?,
        "lookup" => lookup(data)?,
        "immediate" => immediate(data)?,
        "hash" => hash(data)?,
        "dynset" => dynamic_set(data)?,
        "masq" => masquerade(data)?,
        "nat" => destination_nat(data)?,
        "rt" => route_segment_size(data)?,
        "byteorder" => host_to_network(data)?,
        "exthdr" => write_segment_size(data)?,
        "reject" => Some(Expression::Reject),
        "target" => Some(Expression::XtTarget(extension(data)?)),
        _ => None,
    };
    Ok(decoded.unwrap_or(Expression::Other(name)))
}

fn meta(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, key] = numbers(data, [META_REGISTER, META_KEY])?;
    let keys = [
        MetaKey::InputName,
        MetaKey::OutputName,
        MetaKey::NetworkProtocol,
        MetaKey::TransportProtocol,
        MetaKey::InputInterface,
        MetaKey::InputType,
        MetaKey::OutputInterface,
        MetaKey::InputBridge,
        MetaKey::OutputBridge,
    ];
    let key = keys.into_iter().find(|k| Some(*k as u32) == key);
    Ok(match (group(register), key) {
        (Some(0), Some(key)) => Some(Expression::Meta(key)),
        (Some(at), Some(key)) => Some(Expression::MetaAt(at, key)),
        _ => None,
    })
}

fn connection(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, key] = numbers(data, [CT_REGISTER, CT_KEY])?;
    let keys = [ConntrackKey::State, ConntrackKey::Status];
    let key = keys.into_iter().find(|k| Some(*k as u32) == key);
    Ok(key
        .filter(|_| is_register_1(register))
        .map(Expression::Conntrack))
}

fn payload(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, base, offset, length] = numbers(
        data,
        [
            PAYLOAD_REGISTER,
            PAYLOAD_BASE,
            PAYLOAD_OFFSET,
            PAYLOAD_LENGTH,
        ],
    )?;
    let bases = [
        PayloadBase::Link,
        PayloadBase::Network,
        PayloadBase::Transport,
    ];
    let base = bases.into_iter().find(|b| Some(*b as u32) == base);
    let (Some(base), Some(offset), Some(length)) = (base, offset, length) else {
        return Ok(None);
    };
    Ok(group(register).map(|at| match at {
        0 => Expression::Payload {
            base,
            offset,
            length,
        },
        at => Expression::PayloadAt {
            at,
            base,
            offset,
            length,
        },
    }))
}

fn mask(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [source, destination, operation] = numbers(
        data,
        [BITWISE_SOURCE, BITWISE_DESTINATION, BITWISE_OPERATION],
    )?;
    let (mut mask, mut flip) = (Vec::new(), Vec::new());
    each(data, |kind, value| {
        match kind {
            BITWISE_MASK => mask = data_value(value)?,
            BITWISE_XOR => flip = data_value(value)?,
            _ => {}
        }
        Ok(())
    })?;
    // Operation 0 is mask and xor; Linux before 5.6 has no other.
    let supported = is_register_1(source)
        && is_register_1(destination)
        && operation.unwrap_or(0) == 0
        && flip.iter().all(|byte| *byte == 0);
    Ok(supported.then_some(Expression::Mask(mask)))
}

fn compare(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, operation] = numbers(data, [CMP_REGISTER, CMP_OPERATION])?;
    let mut value = Vec::new();
    each(data, |kind, nested| {
        if kind == CMP_DATA {
            value = data_value(nested)?;
        }
        Ok(())
    })?;
    let is = match operation {
        Some(op) if op == libc::NFT_CMP_EQ as u32 => CompareOp::Equal,
        Some(op) if op == libc::NFT_CMP_NEQ as u32 => CompareOp::NotEqual,
        Some(_) | None => return Ok(None),
    };
    Ok(is_register_1(register).then_some(Expression::Compare(is, value)))
}

/// Decodes a lookup in a set. A lookup in a map is not modelled.
fn lookup(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let kinds = [LOOKUP_REGISTER, LOOKUP_DATA_REGISTER, LOOKUP_FLAGS];
    let [register, value, flags] = numbers(data, kinds)?;
    let mut set = String::new();
    each(data, |kind, name| {
        if kind == LOOKUP_SET {
            set = text(name)?;
        }
        Ok(())
    })?;
    let is = match flags.unwrap_or(0) {
        0 => CompareOp::Equal,
        _ => CompareOp::NotEqual,
    };
    let supported = is_register_1(register) && value.is_none();
    Ok(supported.then_some(Expression::Lookup(is, set)))
}

fn range(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, operation] = numbers(data, [RANGE_REGISTER, RANGE_OPERATION])?;
    let (mut from, mut to) = (Vec::new(), Vec::new());
    each(data, |kind, nested| {
        match kind {
            RANGE_FROM => from = data_value(nested)?,
            RANGE_TO => to = data_value(nested)?,
            _ => {}
        }
        Ok(())
    })?;
    let supported = is_register_1(register) && operation == Some(libc::NFT_RANGE_EQ as u32);
    Ok(supported.then_some(Expression::Range(from, to)))
}

/// Decodes "symhash mod NUMBER" and "jhash tcp sport mod NUMBER" in a key after an IPv4
/// address.
fn hash(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let kinds = [HASH_REGISTER, HASH_MODULUS, HASH_OFFSET, HASH_TYPE];
    let [register, modulus, offset, kind] = numbers(data, kinds)?;
    let [source, length] = numbers(data, [HASH_SOURCE, HASH_LENGTH])?;
    let supported = register == Some(libc::NFT_REG32_01 as u32) && offset.unwrap_or(0) == 0;
    let Some(modulus) = modulus.filter(|_| supported) else {
        return Ok(None);
    };
    let is_port = source == Some(libc::NFT_REG32_02 as u32) && length == Some(2);
    Ok(match kind {
        Some(HASH_SYMMETRIC) => Some(Expression::HashConnection(modulus)),
        Some(HASH_JENKINS) if is_port => Some(Expression::HashPort(modulus)),
        _ => None,
    })
}

/// Decodes an expression that adds to a set: "add @set { … ct count over LIMIT }",
/// "update @set { … timeout TIME limit rate over LIMIT }", "add @set { … timeout TIME }".
fn dynamic_set(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [operation, key, value] = numbers(
        data,
        [DYNSET_OPERATION, DYNSET_KEY_REGISTER, DYNSET_DATA_REGISTER],
    )?;
    let (mut set, mut timeout_ms, mut nested) = (String::new(), 0, None);
    let mut more = false;
    each(data, |kind, value| {
        match kind {
            DYNSET_SET => set = text(value)?,
            DYNSET_TIMEOUT => timeout_ms = parse_u64_be(value)?,
            DYNSET_EXPRESSION => nested = Some(named_data(value)?),
            DYNSET_EXPRESSIONS => more = true,
            _ => {}
        }
        Ok(())
    })?;
    let renew = match operation {
        Some(number) if number == libc::NFT_DYNSET_OP_ADD as u32 => false,
        Some(number) if number == libc::NFT_DYNSET_OP_UPDATE as u32 => true,
        Some(_) | None => return Ok(None),
    };
    if !is_register_1(key) || value.is_some() || more {
        return Ok(None);
    }
    let (name, data) = match nested {
        None => {
            return Ok(Some(Expression::Update {
                set,
                timeout_ms,
                renew,
            }));
        }
        Some((name, data)) => (name, data),
    };
    Ok(match (name.as_str(), renew, timeout_ms) {
        ("connlimit", false, 0) => {
            connection_limit(data)?.map(|limit| Expression::CountConnections { set, limit })
        }
        ("limit", true, _) => rate_limit(data, set, timeout_ms)?,
        _ => None,
    })
}

/// Decodes "limit rate over TOKENS/INTERVAL burst BURST packets".
fn rate_limit(
    data: &[u8],
    set: String,
    timeout_ms: u64,
) -> Result<Option<Expression>, DecodeError> {
    let [burst, kind, flags] = numbers(data, [LIMIT_BURST, LIMIT_TYPE, LIMIT_FLAGS])?;
    let (mut tokens, mut interval_s) = (0, 0);
    each(data, |kind, value| {
        match kind {
            LIMIT_RATE => tokens = parse_u64_be(value)?,
            LIMIT_UNIT => interval_s = parse_u64_be(value)?,
            _ => {}
        }
        Ok(())
    })?;
    let supported = kind == Some(LIMIT_PACKETS) && flags == Some(LIMIT_OVER);
    Ok(burst
        .filter(|_| supported)
        .map(|burst| Expression::LimitRate {
            set,
            timeout_ms,
            tokens,
            interval_s,
            burst,
        }))
}

/// Decodes "ct count over LIMIT".
fn connection_limit(data: &[u8]) -> Result<Option<u32>, DecodeError> {
    let [limit, flags] = numbers(data, [CONNLIMIT_COUNT, CONNLIMIT_FLAGS])?;
    Ok(limit.filter(|_| flags == Some(CONNLIMIT_OVER)))
}

fn masquerade(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let kinds = [
        MASQ_FLAGS,
        MASQ_FIRST_PORT_REGISTER,
        MASQ_LAST_PORT_REGISTER,
    ];
    let [flags, first, last] = numbers(data, kinds)?;
    let ports = first == Some(Register::One as u32) && last == Some(Register::Two as u32);
    Ok(match (flags, first, last) {
        (None | Some(0), None, None) => Some(Expression::Masquerade),
        (Some(MASQ_PORTS), ..) if ports => Some(Expression::MasqueradePorts),
        _ => None,
    })
}

/// Decodes "dnat ip to ADDRESS:PORT". Other kinds of NAT are not modelled.
fn destination_nat(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [kind, family, flags] = numbers(data, [NAT_TYPE, NAT_FAMILY, NAT_FLAGS])?;
    let addresses = [NAT_FIRST_ADDRESS_REGISTER, NAT_LAST_ADDRESS_REGISTER];
    let ports = [NAT_FIRST_PORT_REGISTER, NAT_LAST_PORT_REGISTER];
    // The kernel reports the first register as the last one, too.
    let is_single = |[first, last]: [Option<u32>; 2], register: Register| {
        first == Some(register as u32) && last.is_none_or(|last| Some(last) == first)
    };
    let supported = kind == Some(libc::NFT_NAT_DNAT as u32)
        && family == Some(libc::NFPROTO_IPV4 as u32)
        && matches!(flags, None | Some(0 | NAT_ADDRESSES_AND_PORTS))
        && is_single(numbers(data, addresses)?, Register::One)
        && is_single(numbers(data, ports)?, Register::Two);
    Ok(supported.then_some(Expression::DestinationNat))
}

fn route_segment_size(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, key] = numbers(data, [RT_REGISTER, RT_KEY])?;
    let supported = is_register_1(register) && key == Some(RT_SEGMENT_SIZE);
    Ok(supported.then_some(Expression::RouteSegmentSize))
}

fn host_to_network(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let kinds = [
        BYTEORDER_SOURCE,
        BYTEORDER_DESTINATION,
        BYTEORDER_OPERATION,
        BYTEORDER_LENGTH,
        BYTEORDER_SIZE,
    ];
    let [source, destination, operation, length, size] = numbers(data, kinds)?;
    let supported = is_register_1(source)
        && is_register_1(destination)
        && operation == Some(libc::NFT_BYTEORDER_HTON as u32)
        && (length, size) == (Some(2), Some(2));
    Ok(supported.then_some(Expression::HostToNetwork))
}

fn write_segment_size(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let kinds = [
        EXTHDR_OFFSET,
        EXTHDR_LENGTH,
        EXTHDR_OPERATION,
        EXTHDR_SOURCE,
    ];
    let [offset, length, operation, source] = numbers(data, kinds)?;
    let mut option = None;
    each(data, |kind, value| {
        if kind == EXTHDR_TYPE {
            option = value.first().copied();
        }
        Ok(())
    })?;
    // The size follows the kind and the length of the option.
    let supported = is_register_1(source)
        && option == Some(SEGMENT_SIZE_OPTION)
        && operation == Some(EXTHDR_TCP_OPTION)
        && (offset, length) == (Some(2), Some(2));
    Ok(supported.then_some(Expression::WriteSegmentSize))
}

fn immediate(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register] = numbers(data, [IMMEDIATE_REGISTER])?;
    if register == Some(libc::NFT_REG_VERDICT as u32) {
        return verdict(data);
    }
    let mut constant = Vec::new();
    each(data, |kind, nested| {
        if kind == IMMEDIATE_DATA {
            constant = data_value(nested)?;
        }
        Ok(())
    })?;
    let registers = [Register::One, Register::Two];
    let to = registers.into_iter().find(|r| Some(*r as u32) == register);
    Ok(to.map(|register| Expression::Immediate(register, constant)))
}

fn verdict(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let (mut code, mut chain) = (None, String::new());
    each(data, |kind, value| {
        if kind == IMMEDIATE_DATA {
            each(value, |kind, value| {
                if kind == DATA_VERDICT {
                    each(value, |kind, value| {
                        match kind {
                            VERDICT_CODE => code = Some(parse_u32_be(value)? as i32),
                            VERDICT_CHAIN => chain = text(value)?,
                            _ => {}
                        }
                        Ok(())
                    })?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })?;
    Ok(match code {
        Some(libc::NF_ACCEPT) => Some(Expression::Accept),
        Some(libc::NF_DROP) => Some(Expression::Drop),
        Some(libc::NFT_JUMP) => Some(Expression::Jump(chain)),
        Some(libc::NFT_GOTO) => Some(Expression::Goto(chain)),
        Some(libc::NFT_RETURN) => Some(Expression::Return),
        Some(_) | None => None,
    })
}

/// Decodes a match of iptables.
///
/// `-m conntrack --ctstate …` alone becomes the equivalent of "ct state", because
/// most firewalls use it.
pub(super) fn iptables_match(data: &[u8]) -> Result<Vec<Expression>, DecodeError> {
    let name = extension(data)?;
    let mut info = &[][..];
    each(data, |kind, value| {
        if kind == EXTENSION_INFO {
            info = value;
        }
        Ok(())
    })?;
    let u16_at = |at: usize| Some(u16::from_ne_bytes([*info.get(at)?, *info.get(at + 1)?]));
    let (flags, inverted) = (u16_at(CONNTRACK_FLAGS), u16_at(CONNTRACK_FLAGS + 2));
    Ok(match (name.as_str(), u16_at(CONNTRACK_STATE)) {
        ("conntrack", Some(states)) if flags == Some(CONNTRACK_STATE_ONLY) => vec![
            Expression::Conntrack(ConntrackKey::State),
            Expression::Mask(u32::from(states).to_ne_bytes().into()),
            Expression::Compare(
                match inverted == Some(CONNTRACK_STATE_ONLY) {
                    true => CompareOp::Equal,
                    false => CompareOp::NotEqual,
                },
                0_u32.to_ne_bytes().into(),
            ),
        ],
        _ => vec![Expression::XtMatch(name)],
    })
}

/// Returns the name of a match or target of iptables.
fn extension(data: &[u8]) -> Result<String, DecodeError> {
    let mut name = String::new();
    each(data, |kind, value| {
        if kind == EXTENSION_NAME {
            name = text(value)?;
        }
        Ok(())
    })?;
    Ok(name)
}

/// Returns the number of the 32-bit group of register 1.
fn group(register: Option<u32>) -> Option<u8> {
    if is_register_1(register) {
        return Some(0);
    }
    let first = libc::NFT_REG32_00 as u32;
    let at = register?.checked_sub(first)?;
    u8::try_from(at).ok().filter(|at| (1..4).contains(at))
}

fn is_register_1(register: Option<u32>) -> bool {
    register == Some(libc::NFT_REG_1 as u32)
}

#[cfg(test)]
mod tests {
    use super::super::attributes::attribute;
    use super::*;

    #[test]
    fn expression_outside_the_model_is_other() {
        let register_1 = attribute(META_REGISTER, &1_u32.to_be_bytes());
        let register_2 = attribute(META_REGISTER, &2_u32.to_be_bytes());
        let key = attribute(META_KEY, &(libc::NFT_META_IIFNAME as u32).to_be_bytes());
        for (name, data, expected) in [
            (
                "meta",
                [register_1, key.clone()].concat(),
                Expression::Meta(MetaKey::InputName),
            ),
            (
                "meta",
                [register_2, key].concat(),
                Expression::Other("meta".to_owned()),
            ),
            (
                "masq",
                attribute(MASQ_FLAGS, &4_u32.to_be_bytes()),
                Expression::Other("masq".to_owned()),
            ),
            ("masq", vec![], Expression::Masquerade),
            ("quota", vec![], Expression::Other("quota".to_owned())),
        ] {
            assert_eq!(expression(name.to_owned(), &data).unwrap(), expected);
        }
    }

    #[test]
    fn iptables_ctstate_is_decoded_as_ct_state() {
        // iptables encodes "-m conntrack --ctstate RELATED,ESTABLISHED" like this.
        let mut info = [0; 160];
        info[CONNTRACK_FLAGS..][..2].copy_from_slice(&1_u16.to_ne_bytes());
        info[CONNTRACK_STATE..][..2].copy_from_slice(&6_u16.to_ne_bytes());
        let matched = |info: &[u8]| {
            let name = attribute(EXTENSION_NAME, b"conntrack\0");
            iptables_match(&[name, attribute(EXTENSION_INFO, info)].concat()).unwrap()
        };
        let state = |is| {
            vec![
                Expression::Conntrack(ConntrackKey::State),
                Expression::Mask(6_u32.to_ne_bytes().into()),
                Expression::Compare(is, 0_u32.to_ne_bytes().into()),
            ]
        };
        assert_eq!(matched(&info), state(CompareOp::NotEqual));
        let mut inverted = info;
        inverted[CONNTRACK_FLAGS + 2..][..2].copy_from_slice(&1_u16.to_ne_bytes());
        assert_eq!(matched(&inverted), state(CompareOp::Equal));
        // Any other condition beside the state stays an opaque match.
        info[CONNTRACK_FLAGS] = 3;
        let other = vec![Expression::XtMatch("conntrack".to_owned())];
        assert_eq!(matched(&info), other);
        assert_eq!(matched(&info[..20]), other);
    }
}
