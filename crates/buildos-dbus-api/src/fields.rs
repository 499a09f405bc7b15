//! Returns the names of the fields of a struct, as it is deserialised.

use std::fmt;

use serde::de::{self, DeserializeOwned, Visitor};

/// Returns the names of the fields of `T`; none unless it is a struct.
pub(crate) fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    match T::deserialize(Probe) {
        Err(Fields(names)) => names,
        Ok(_) => &[],
    }
}

/// A deserializer without data, whose error has the names of the fields.
struct Probe;

#[derive(Debug)]
struct Fields(&'static [&'static str]);

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Fields {}

impl de::Error for Fields {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Self(&[])
    }
}

impl<'de> de::Deserializer<'de> for Probe {
    type Error = Fields;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fields> {
        Err(Fields(names))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fields> {
        Err(Fields(&[]))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
        ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network1::Network;

    #[test]
    fn fields_have_names_of_properties() {
        let names = fields::<Network>();
        assert!(names.contains(&"State"), "{names:?}");
        assert!(
            names.contains(&"DNS") && names.contains(&"FQDN"),
            "{names:?}"
        );
        assert!(!names.contains(&"Lease"), "{names:?}");
        assert!(fields::<String>().is_empty());
    }
}
