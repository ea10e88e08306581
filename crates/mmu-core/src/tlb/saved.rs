//! Tables by page shift in snapshots: `serde` knows arrays up to 32 items only.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn serialize<S: Serializer, const N: usize>(tables: &[[u8; 64]; N], to: S) -> Result<S::Ok, S::Error> {
    tables.as_flattened().serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(from: D) -> Result<[[u8; 64]; N], D::Error> {
    let flat = Vec::<u8>::deserialize(from)?;
    let (tables, rest) = flat.as_chunks::<64>();
    let tables = <[[u8; 64]; N]>::try_from(tables).ok().filter(|_| rest.is_empty());
    tables.ok_or_else(|| D::Error::invalid_length(flat.len(), &"64 bytes for each table by page shift"))
}

/// The same for one table.
pub(super) mod one {
    use serde::{Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(table: &[u8; 64], to: S) -> Result<S::Ok, S::Error> {
        super::serialize(std::array::from_ref(table), to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 64], D::Error> {
        super::deserialize::<D, 1>(from).map(|[table]| table)
    }
}
