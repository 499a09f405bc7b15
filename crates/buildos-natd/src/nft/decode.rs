//! From the kernel's attributes to an [`super::Image`]
//! (linux/netfilter/nf_tables.h). Numbers in attributes are big-endian.

use netlink_packet_core::{
    DecodeError, NLA_HEADER_SIZE, NlasIterator, parse_string, parse_u32_be, parse_u64_be,
};

use super::NftError;
use super::image::{
    ConnectionKey, Count, Expression, Image, ImageChain, ImageRule, MetaKey, PayloadBase,
};
use crate::table::Is;

// enum nft_table_attributes
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
// enum nft_chain_attributes
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
// enum nft_hook_attributes
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
// enum nft_rule_attributes
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
// enum nft_set_attributes
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
// enum nft_set_elem_list_attributes
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
// enum nft_set_elem_attributes
const ELEMENT_KEY: u16 = 1;
// enum nft_lookup_attributes
const LOOKUP_SET: u16 = 1;
const LOOKUP_REGISTER: u16 = 2;
const LOOKUP_DESTINATION: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
/// `NFT_LOOKUP_F_INV`.
const LOOKUP_INVERTED: u32 = 1;
/// `NFT_SET_CONSTANT`, with or without `NFT_SET_ANONYMOUS`: elements that do not
/// change, and are neither ranges nor keys of a map.
const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
// enum nft_expr_attributes
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
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
// enum nft_immediate_attributes
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
// enum nft_data_attributes, nft_verdict_attributes
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
// enum nft_counter_attributes
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
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
// enum nft_gen_attributes
const GENERATION_ID: u16 = 1;
const GENERATION_PID: u16 = 2;
const GENERATION_COMMAND: u16 = 3;
/// `NFTNL_UDATA_RULE_COMMENT`: userdata is libnftnl's own type-length-value list.
const USERDATA_COMMENT: u8 = 0;

/// Kinds of object that can be listed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dump {
    Tables,
    Chains,
    Rules,
    Sets,
    /// Of one set, which the request has to name.
    Elements,
}

impl Dump {
    pub(super) fn request(self) -> i32 {
        match self {
            Self::Tables => libc::NFT_MSG_GETTABLE,
            Self::Chains => libc::NFT_MSG_GETCHAIN,
            Self::Rules => libc::NFT_MSG_GETRULE,
            Self::Sets => libc::NFT_MSG_GETSET,
            Self::Elements => libc::NFT_MSG_GETSETELEM,
        }
    }

    pub(super) fn answer(self) -> i32 {
        match self {
            Self::Tables => libc::NFT_MSG_NEWTABLE,
            Self::Chains => libc::NFT_MSG_NEWCHAIN,
            Self::Rules => libc::NFT_MSG_NEWRULE,
            Self::Sets => libc::NFT_MSG_NEWSET,
            Self::Elements => libc::NFT_MSG_NEWSETELEM,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tables => "the list of tables",
            Self::Chains => "the list of chains",
            Self::Rules => "the list of rules",
            Self::Sets => "the list of sets",
            Self::Elements => "the list of a set's elements",
        }
    }
}

/// A commit, as the kernel announces it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) generation: u32,
    pub(super) pid: u32,
    pub(super) command: String,
}

/// Who made which generation.
pub(super) fn change(attributes: &[u8]) -> Result<Generation, NftError> {
    let mut found = Generation::default();
    each(attributes, |kind, value| {
        match kind {
            GENERATION_ID => found.generation = parse_u32_be(value)?,
            GENERATION_PID => found.pid = parse_u32_be(value)?,
            GENERATION_COMMAND => found.command = text(value)?,
            _ => {}
        }
        Ok(())
    })
    .map_err(NftError::Malformed)?;
    Ok(found)
}

/// A table without its chains.
pub(super) fn table(attributes: &[u8]) -> Result<Image, NftError> {
    let mut table = Image {
        name: String::new(),
        flags: 0,
        chains: Vec::new(),
    };
    each(attributes, |kind, value| {
        match kind {
            TABLE_NAME => table.name = text(value)?,
            TABLE_FLAGS => table.flags = parse_u32_be(value)?,
            _ => {}
        }
        Ok(())
    })
    .map_err(NftError::Malformed)?;
    Ok(table)
}

/// The name of the chain's table, and the chain without its rules.
pub(super) fn chain(attributes: &[u8]) -> Result<(String, ImageChain), NftError> {
    let mut table = String::new();
    let mut chain = ImageChain {
        name: String::new(),
        kind: String::new(),
        hook: None,
        priority: 0,
        policy: None,
        rules: Vec::new(),
    };
    each(attributes, |kind, value| {
        match kind {
            CHAIN_TABLE => table = text(value)?,
            CHAIN_NAME => chain.name = text(value)?,
            CHAIN_TYPE => chain.kind = text(value)?,
            CHAIN_POLICY => chain.policy = Some(parse_u32_be(value)?),
            CHAIN_HOOK => each(value, |kind, value| {
                match kind {
                    HOOK_NUMBER => chain.hook = Some(parse_u32_be(value)?),
                    HOOK_PRIORITY => chain.priority = parse_u32_be(value)? as i32,
                    _ => {}
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })
    .map_err(NftError::Malformed)?;
    Ok((table, chain))
}

/// The table and the name of a set whose elements are plain values that do not
/// change; [`None`] for every other one.
pub(super) fn plain_set(attributes: &[u8]) -> Result<Option<(String, String)>, NftError> {
    let (mut table, mut name, mut flags) = (String::new(), String::new(), 0);
    each(attributes, |kind, value| {
        match kind {
            SET_TABLE => table = text(value)?,
            SET_NAME => name = text(value)?,
            SET_FLAGS => flags = parse_u32_be(value)?,
            _ => {}
        }
        Ok(())
    })
    .map_err(NftError::Malformed)?;
    Ok((flags & !SET_ANONYMOUS == SET_CONSTANT).then_some((table, name)))
}

/// The attributes that ask for a set's elements.
pub(super) fn ask_for_elements(table: &str, set: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name) in [(LIST_TABLE, table), (LIST_SET, set)] {
        let length = NLA_HEADER_SIZE + name.len() + 1;
        // Names have at most 255 bytes (NFT_NAME_MAXLEN).
        bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The keys of a set's elements.
pub(super) fn elements(attributes: &[u8]) -> Result<Vec<Vec<u8>>, NftError> {
    let mut found = Vec::new();
    each(attributes, |kind, list| {
        if kind != LIST_ELEMENTS {
            return Ok(());
        }
        each(list, |_, element| {
            each(element, |kind, key| {
                if kind == ELEMENT_KEY {
                    found.push(data_value(key)?);
                }
                Ok(())
            })
        })
    })
    .map_err(NftError::Malformed)?;
    Ok(found)
}

/// A rule, where it is, and what it has counted.
#[derive(Debug)]
pub(super) struct ListedRule {
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) rule: ImageRule,
    /// Of its first counter.
    pub(super) count: Option<Count>,
}

pub(super) fn rule(attributes: &[u8]) -> Result<ListedRule, NftError> {
    let mut listed = ListedRule {
        table: String::new(),
        chain: String::new(),
        rule: ImageRule {
            expressions: Vec::new(),
            comment: String::new(),
        },
        count: None,
    };
    each(attributes, |kind, value| {
        match kind {
            RULE_TABLE => listed.table = text(value)?,
            RULE_CHAIN => listed.chain = text(value)?,
            RULE_USERDATA => listed.rule.comment = comment(value),
            RULE_EXPRESSIONS => each(value, |_, value| {
                let (name, data) = named_data(value)?;
                if name == "counter" && listed.count.is_none() {
                    listed.count = Some(count(data)?);
                }
                let expressions = &mut listed.rule.expressions;
                match name.as_str() {
                    "match" => expressions.extend(iptables_match(data)?),
                    _ => expressions.push(expression(name, data)?),
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })
    .map_err(NftError::Malformed)?;
    Ok(listed)
}

fn named_data(attributes: &[u8]) -> Result<(String, &[u8]), DecodeError> {
    let (mut name, mut data) = (String::new(), &[][..]);
    each(attributes, |kind, value| {
        match kind {
            EXPRESSION_NAME => name = text(value)?,
            EXPRESSION_DATA => data = value,
            _ => {}
        }
        Ok(())
    })?;
    Ok((name, data))
}

fn count(data: &[u8]) -> Result<Count, DecodeError> {
    let mut count = Count::default();
    each(data, |kind, value| {
        match kind {
            COUNTER_BYTES => count.bytes = parse_u64_be(value)?,
            COUNTER_PACKETS => count.packets = parse_u64_be(value)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(count)
}

fn expression(name: String, data: &[u8]) -> Result<Expression, DecodeError> {
    let ours = match name.as_str() {
        "meta" => meta(data)?,
        "ct" => connection(data)?,
        "payload" => payload(data)?,
        "bitwise" => mask(data)?,
        "cmp" => compare(data)?,
        "counter" => Some(Expression::Counter),
        "immediate" => verdict(data)?,
        // Flags or a range of ports would show as attributes.
        "masq" if data.is_empty() => Some(Expression::Masquerade),
        "lookup" => lookup(data)?,
        "reject" => Some(Expression::Reject),
        "target" => Some(Expression::Target(extension(data)?)),
        _ => None,
    };
    Ok(ours.unwrap_or(Expression::Foreign(name)))
}

fn meta(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, key] = numbers(data, [META_REGISTER, META_KEY])?;
    let keys = [
        MetaKey::InputName,
        MetaKey::OutputName,
        MetaKey::NetworkProtocol,
        MetaKey::TransportProtocol,
    ];
    let key = keys.into_iter().find(|k| Some(*k as u32) == key);
    Ok(key.filter(|_| is_ours(register)).map(Expression::Meta))
}

fn connection(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, key] = numbers(data, [CT_REGISTER, CT_KEY])?;
    let keys = [ConnectionKey::State, ConnectionKey::Status];
    let key = keys.into_iter().find(|k| Some(*k as u32) == key);
    Ok(key
        .filter(|_| is_ours(register))
        .map(Expression::Connection))
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
    let bases = [PayloadBase::Network, PayloadBase::Transport];
    let base = bases.into_iter().find(|b| Some(*b as u32) == base);
    let (Some(base), Some(offset), Some(length)) = (base, offset, length) else {
        return Ok(None);
    };
    Ok(is_ours(register).then_some(Expression::Payload {
        base,
        offset,
        length,
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
    // Operation 0 is mask and xor, the only one before Linux 5.6.
    let ours = is_ours(source)
        && is_ours(destination)
        && operation.unwrap_or(0) == 0
        && flip.iter().all(|byte| *byte == 0);
    Ok(ours.then_some(Expression::Mask(mask)))
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
        Some(op) if op == libc::NFT_CMP_EQ as u32 => Is::Equal,
        Some(op) if op == libc::NFT_CMP_NEQ as u32 => Is::Not,
        Some(_) | None => return Ok(None),
    };
    Ok(is_ours(register).then_some(Expression::Compare(is, value)))
}

fn verdict(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register] = numbers(data, [IMMEDIATE_REGISTER])?;
    if register != Some(libc::NFT_REG_VERDICT as u32) {
        return Ok(None);
    }
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

/// Only of sets: what a map says is not a condition.
fn lookup(data: &[u8]) -> Result<Option<Expression>, DecodeError> {
    let [register, destination, flags] =
        numbers(data, [LOOKUP_REGISTER, LOOKUP_DESTINATION, LOOKUP_FLAGS])?;
    let mut set = String::new();
    each(data, |kind, value| {
        if kind == LOOKUP_SET {
            set = text(value)?;
        }
        Ok(())
    })?;
    let is = match flags.unwrap_or(0) & LOOKUP_INVERTED {
        0 => Is::Equal,
        _ => Is::Not,
    };
    let ours = is_ours(register) && destination.is_none();
    Ok(ours.then_some(Expression::Lookup(is, set)))
}

/// A match of iptables that nf_tables calls. The one that every firewall has,
/// `-m conntrack --ctstate …` and nothing besides, is the same as "ct state".
fn iptables_match(data: &[u8]) -> Result<Vec<Expression>, DecodeError> {
    let name = extension(data)?;
    let mut info = &[][..];
    each(data, |kind, value| {
        if kind == EXTENSION_INFO {
            info = value;
        }
        Ok(())
    })?;
    let word = |at: usize| Some(u16::from_ne_bytes([*info.get(at)?, *info.get(at + 1)?]));
    let (flags, inverted) = (word(CONNTRACK_FLAGS), word(CONNTRACK_FLAGS + 2));
    Ok(match (name.as_str(), word(CONNTRACK_STATE)) {
        ("conntrack", Some(states)) if flags == Some(CONNTRACK_STATE_ONLY) => vec![
            Expression::Connection(ConnectionKey::State),
            Expression::Mask(u32::from(states).to_ne_bytes().into()),
            Expression::Compare(
                match inverted == Some(CONNTRACK_STATE_ONLY) {
                    true => Is::Equal,
                    false => Is::Not,
                },
                0_u32.to_ne_bytes().into(),
            ),
        ],
        _ => vec![Expression::Match(name)],
    })
}

/// The name of a match or target of iptables that nf_tables calls.
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

fn is_ours(register: Option<u32>) -> bool {
    register == Some(libc::NFT_REG_1 as u32)
}

/// `NFTA_DATA_VALUE` in an attribute of type `struct nft_data`.
fn data_value(attributes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let mut found = Vec::new();
    each(attributes, |kind, value| {
        if kind == DATA_VALUE {
            found = value.to_vec();
        }
        Ok(())
    })?;
    Ok(found)
}

/// The numbers in the attributes of these kinds.
fn numbers<const N: usize>(
    attributes: &[u8],
    kinds: [u16; N],
) -> Result<[Option<u32>; N], DecodeError> {
    let mut found = [None; N];
    each(attributes, |kind, value| {
        for (wanted, found) in kinds.iter().zip(&mut found) {
            if *wanted == kind {
                *found = Some(parse_u32_be(value)?);
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Shows each attribute and its value.
fn each<'a>(
    attributes: &'a [u8],
    mut show: impl FnMut(u16, &'a [u8]) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let kind = attribute.kind();
        let length = attribute.length() as usize;
        // The borrow must outlive the iterator's item.
        let value = attribute
            .into_inner()
            .get(NLA_HEADER_SIZE..length)
            .unwrap_or_default();
        show(kind, value)?;
    }
    Ok(())
}

fn text(value: &[u8]) -> Result<String, DecodeError> {
    parse_string(value)
}

/// The comment in a rule's userdata; empty when there is none.
fn comment(userdata: &[u8]) -> String {
    let mut rest = userdata;
    while let [kind, length, tail @ ..] = rest {
        let Some((value, after)) = tail.split_at_checked(usize::from(*length)) else {
            break;
        };
        if *kind == USERDATA_COMMENT {
            return text(value).unwrap_or_default();
        }
        rest = after;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An attribute as the kernel writes it, padded.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = (NLA_HEADER_SIZE + value.len()) as u16;
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn named(name: &[u8], data: &[u8]) -> Vec<u8> {
        [
            attribute(EXPRESSION_NAME, name),
            attribute(EXPRESSION_DATA, data),
        ]
        .concat()
    }

    #[test]
    fn an_expression_of_somebody_else_is_told_from_ours() {
        let ours = attribute(META_REGISTER, &1_u32.to_be_bytes());
        let theirs = attribute(META_REGISTER, &2_u32.to_be_bytes());
        let key = attribute(META_KEY, &(libc::NFT_META_IIFNAME as u32).to_be_bytes());
        for (bytes, expected) in [
            (
                named(b"meta\0", &[ours, key.clone()].concat()),
                Expression::Meta(MetaKey::InputName),
            ),
            (
                named(b"meta\0", &[theirs, key].concat()),
                Expression::Foreign("meta".to_owned()),
            ),
            (
                named(b"masq\0", &attribute(1, &4_u32.to_be_bytes())),
                Expression::Foreign("masq".to_owned()),
            ),
            (named(b"masq\0", &[]), Expression::Masquerade),
            (
                named(b"quota\0", &[]),
                Expression::Foreign("quota".to_owned()),
            ),
        ] {
            let (name, data) = named_data(&bytes).unwrap();
            assert_eq!(expression(name, data).unwrap(), expected);
        }
    }

    #[test]
    fn the_state_that_iptables_matches_is_read() {
        // As iptables writes "-m conntrack --ctstate RELATED,ESTABLISHED".
        let mut info = [0; 160];
        info[CONNTRACK_FLAGS..][..2].copy_from_slice(&1_u16.to_ne_bytes());
        info[CONNTRACK_STATE..][..2].copy_from_slice(&6_u16.to_ne_bytes());
        let matched = |info: &[u8]| {
            let name = attribute(EXTENSION_NAME, b"conntrack\0");
            iptables_match(&[name, attribute(EXTENSION_INFO, info)].concat()).unwrap()
        };
        let state = |is| {
            vec![
                Expression::Connection(ConnectionKey::State),
                Expression::Mask(6_u32.to_ne_bytes().into()),
                Expression::Compare(is, 0_u32.to_ne_bytes().into()),
            ]
        };
        assert_eq!(matched(&info), state(Is::Not));
        let mut inverted = info;
        inverted[CONNTRACK_FLAGS + 2..][..2].copy_from_slice(&1_u16.to_ne_bytes());
        assert_eq!(matched(&inverted), state(Is::Equal));
        // Anything besides the state is not understood.
        info[CONNTRACK_FLAGS] = 3;
        let other = vec![Expression::Match("conntrack".to_owned())];
        assert_eq!(matched(&info), other);
        assert_eq!(matched(&info[..20]), other);
    }

    #[test]
    fn a_comment_is_found_behind_other_data() {
        assert_eq!(
            comment(&[7, 2, 0, 0, USERDATA_COMMENT, 3, b'o', b'k', 0]),
            "ok"
        );
        assert_eq!(comment(&[USERDATA_COMMENT, 9, b'x']), "");
    }

    /// Trees of attributes, so that what is inside is reached too.
    fn attributes() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            any::<Vec<u8>>(),
            any::<u32>().prop_map(|number| number.to_be_bytes().to_vec()),
            proptest::sample::select(vec![
                "meta",
                "ct",
                "payload",
                "bitwise",
                "cmp",
                "immediate",
                "counter",
                "match"
            ])
            .prop_map(|name| format!("{name}\0").into_bytes()),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            proptest::collection::vec((0_u16..9, inner), 0..6).prop_map(|list| {
                list.iter()
                    .flat_map(|(kind, value)| attribute(*kind, value))
                    .collect()
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn no_attributes_do_harm(bytes in attributes()) {
            let _ = (change(&bytes), table(&bytes), chain(&bytes), rule(&bytes));
            let _ = (plain_set(&bytes), elements(&bytes));
            for name in ["meta", "ct", "payload", "bitwise", "cmp", "immediate", "lookup", "target"] {
                let _ = (expression(name.to_owned(), &bytes), comment(&bytes));
            }
            let _ = iptables_match(&bytes);
        }
    }
}
