//! Decodes nf_tables attributes to [`KernelTable`]s
//! (linux/netfilter/nf_tables.h).

mod attributes;
mod expression;

use netlink_packet_core::{DecodeError, parse_u32_be, parse_u64_be};

use super::bytecode::{Count, Element, KernelChain, KernelRule, KernelSet, KernelTable};
use super::error::FirewallError;
use attributes::{DATA_VALUE, attribute, data_value, each, named_data, numbers, text};
use expression::{expression, iptables_match};

// enum nft_table_attributes
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
// enum nft_set_attributes
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DESCRIPTION: u16 = 9;
// enum nft_set_desc_attributes
const DESCRIPTION_SIZE: u16 = 1;
// enum nft_set_elem_list_attributes, nft_set_elem_attributes
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
/// `NFTA_LIST_ELEM`.
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_TIMEOUT: u16 = 4;
const ELEMENT_EXPIRATION: u16 = 5;
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
// enum nft_counter_attributes
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
// enum nft_gen_attributes
const GENERATION_ID: u16 = 1;
const GENERATION_PID: u16 = 2;
const GENERATION_COMMAND: u16 = 3;
/// `NFTNL_UDATA_RULE_COMMENT`: userdata is libnftnl's own type-length-value list.
const USERDATA_COMMENT: u8 = 0;

/// A kind of object to list.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dump {
    Tables,
    Sets,
    Elements,
    Chains,
    Rules,
}

impl Dump {
    pub(super) fn request(self) -> i32 {
        match self {
            Self::Tables => libc::NFT_MSG_GETTABLE,
            Self::Sets => libc::NFT_MSG_GETSET,
            Self::Elements => libc::NFT_MSG_GETSETELEM,
            Self::Chains => libc::NFT_MSG_GETCHAIN,
            Self::Rules => libc::NFT_MSG_GETRULE,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::Sets => "sets",
            Self::Elements => "elements of sets",
            Self::Chains => "chains",
            Self::Rules => "rules",
        }
    }
}

/// A generation of the ruleset, and the process that committed it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) id: u32,
    pub(super) pid: u32,
    pub(super) command: String,
}

/// Decodes the attributes of `NFT_MSG_NEWGEN`.
pub(super) fn generation(attributes: &[u8]) -> Result<Generation, FirewallError> {
    let mut found = Generation::default();
    each(attributes, |kind, value| {
        match kind {
            GENERATION_ID => found.id = parse_u32_be(value)?,
            GENERATION_PID => found.pid = parse_u32_be(value)?,
            GENERATION_COMMAND => found.command = text(value)?,
            _ => {}
        }
        Ok(())
    })
    .map_err(FirewallError::Malformed)?;
    Ok(found)
}

/// Decodes a table, without its sets and chains.
pub(super) fn table(attributes: &[u8]) -> Result<KernelTable, FirewallError> {
    let mut table = KernelTable {
        name: String::new(),
        flags: 0,
        sets: Vec::new(),
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
    .map_err(FirewallError::Malformed)?;
    Ok(table)
}

/// Decodes the name of a set's table, and the set without its elements.
pub(super) fn set(attributes: &[u8]) -> Result<(String, KernelSet), FirewallError> {
    let mut table = String::new();
    let mut set = KernelSet {
        name: String::new(),
        flags: 0,
        key_type: 0,
        key_length: 0,
        size: 0,
        elements: Vec::new(),
    };
    each(attributes, |kind, value| {
        match kind {
            SET_TABLE => table = text(value)?,
            SET_NAME => set.name = text(value)?,
            SET_FLAGS => set.flags = parse_u32_be(value)?,
            SET_KEY_TYPE => set.key_type = parse_u32_be(value)?,
            SET_KEY_LENGTH => set.key_length = parse_u32_be(value)?,
            SET_DESCRIPTION => {
                let [size] = numbers(value, [DESCRIPTION_SIZE])?;
                set.size = size.unwrap_or(0);
            }
            _ => {}
        }
        Ok(())
    })
    .map_err(FirewallError::Malformed)?;
    Ok((table, set))
}

/// Encodes the attributes that select the elements of a set.
pub(super) fn select_elements(table: &str, set: &str) -> Vec<u8> {
    [
        attribute(ELEMENTS_TABLE, &[table.as_bytes(), &[0]].concat()),
        attribute(ELEMENTS_SET, &[set.as_bytes(), &[0]].concat()),
    ]
    .concat()
}

/// Encodes the attributes that add or remove elements of a set.
pub(super) fn change_elements(table: &str, set: &str, elements: &[Element]) -> Vec<u8> {
    let elements: Vec<u8> = elements.iter().flat_map(encode_element).collect();
    let mut attributes = select_elements(table, set);
    attributes.extend(nested(ELEMENTS_LIST, &elements));
    attributes
}

fn encode_element(element: &Element) -> Vec<u8> {
    let mut attributes = nested(ELEMENT_KEY, &attribute(DATA_VALUE, &element.key));
    if element.timeout_ms > 0 {
        // A rule can extend an element beyond its own timeout. The kernel takes no such
        // element.
        let left = element.remaining_ms.max(1);
        let timeout = element.timeout_ms.max(left);
        attributes.extend(attribute(ELEMENT_TIMEOUT, &timeout.to_be_bytes()));
        attributes.extend(attribute(ELEMENT_EXPIRATION, &left.to_be_bytes()));
    }
    nested(LIST_ELEMENT, &attributes)
}

/// Encodes an attribute of attributes.
fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | libc::NLA_F_NESTED as u16, value)
}

/// Decodes elements of a set.
pub(super) fn elements(attributes: &[u8]) -> Result<Vec<Element>, FirewallError> {
    let mut found = Vec::new();
    each(attributes, |kind, value| {
        if kind == ELEMENTS_LIST {
            each(value, |_, value| {
                found.push(element(value)?);
                Ok(())
            })?;
        }
        Ok(())
    })
    .map_err(FirewallError::Malformed)?;
    Ok(found)
}

fn element(attributes: &[u8]) -> Result<Element, DecodeError> {
    let mut element = Element {
        key: Vec::new(),
        timeout_ms: 0,
        remaining_ms: 0,
    };
    each(attributes, |kind, value| {
        match kind {
            ELEMENT_KEY => element.key = data_value(value)?,
            ELEMENT_TIMEOUT => element.timeout_ms = parse_u64_be(value)?,
            ELEMENT_EXPIRATION => element.remaining_ms = parse_u64_be(value)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(element)
}

/// Decodes the name of a chain's table, and the chain without its rules.
pub(super) fn chain(attributes: &[u8]) -> Result<(String, KernelChain), FirewallError> {
    let mut table = String::new();
    let mut chain = KernelChain {
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
    .map_err(FirewallError::Malformed)?;
    Ok((table, chain))
}

/// A rule with its table, chain and counter.
#[derive(Debug)]
pub(super) struct ListedRule {
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) rule: KernelRule,
    /// Value of the first counter.
    pub(super) count: Option<Count>,
}

/// Decodes a rule.
pub(super) fn rule(attributes: &[u8]) -> Result<ListedRule, FirewallError> {
    let mut listed = ListedRule {
        table: String::new(),
        chain: String::new(),
        rule: KernelRule {
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
    .map_err(FirewallError::Malformed)?;
    Ok(listed)
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

/// Returns the comment in a rule's userdata, or an empty string.
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
    use proptest::prelude::*;

    use super::attributes::{EXPRESSION_DATA, EXPRESSION_NAME};
    use super::*;
    use crate::firewall::bytecode::Expression;

    #[test]
    fn rule_expressions_and_counter_are_decoded() {
        let named = |name: &[u8], data: &[u8]| {
            let expression = [
                attribute(EXPRESSION_NAME, name),
                attribute(EXPRESSION_DATA, data),
            ];
            attribute(1, &expression.concat())
        };
        let counted = attribute(COUNTER_PACKETS, &7_u64.to_be_bytes());
        let expressions = [named(b"counter\0", &counted), named(b"masq\0", &[])].concat();
        let listed = rule(&attribute(RULE_EXPRESSIONS, &expressions)).unwrap();
        assert_eq!(
            listed.rule.expressions,
            [Expression::Counter, Expression::Masquerade]
        );
        assert_eq!(listed.count.unwrap().packets, 7);
    }

    #[test]
    fn comment_after_other_userdata_is_found() {
        assert_eq!(
            comment(&[7, 2, 0, 0, USERDATA_COMMENT, 3, b'o', b'k', 0]),
            "ok"
        );
        assert_eq!(comment(&[USERDATA_COMMENT, 9, b'x']), "");
    }

    /// Returns nested attributes, to reach the inner decoders.
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
                "match",
                "range",
                "hash",
                "dynset",
                "limit",
                "lookup",
                "masq",
                "rt",
                "byteorder",
                "exthdr"
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
        fn random_attributes_do_not_panic(bytes in attributes()) {
            let _ = (generation(&bytes), table(&bytes), set(&bytes), elements(&bytes), chain(&bytes), rule(&bytes));
            for name in [
                "meta", "ct", "payload", "bitwise", "cmp", "immediate", "lookup", "target", "range",
                "hash", "dynset", "masq", "rt", "byteorder", "exthdr",
            ] {
                let _ = (expression(name.to_owned(), &bytes), comment(&bytes));
            }
            let _ = iptables_match(&bytes);
        }
    }
}
