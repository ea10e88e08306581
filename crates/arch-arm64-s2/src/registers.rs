//! The control registers of the second stage, by field.
//!
//! Before you work on this file read Arm ARM D24.2.220 (`VTCR_EL2`), D24.2.221 (`VTTBR_EL2`) and D24.2.52 (`HCR_EL2`).

use crate::features::{HardwareUpdates, address_bits};
use crate::granule::Granule;
use crate::layout::bits;

macro_rules! register {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        pub struct $name(u64);

        impl $name {
            /// The register with this value.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            /// Its value.
            pub const fn value(self) -> u64 {
                self.0
            }
        }
    };
}
register!(
    /// `VTCR_EL2`: shape and options of the second stage. Any value; [`crate::Stage2`] says which are legal.
    Vtcr
);
register!(
    /// `VTTBR_EL2`: VMID and start table.
    Vttbr
);
register!(
    /// `HCR_EL2`, of which the second stage looks at FWB, PTW, CD and DC.
    Hcr
);

impl Vtcr {
    /// `T0SZ`: 64 less the number of input address bits.
    pub const fn t0sz(self) -> u32 {
        bits(self.0, 5, 0) as u32
    }
    /// `SL0`: start level, with a meaning by granule.
    pub const fn sl0(self) -> u64 {
        bits(self.0, 7, 6)
    }
    /// `SL2`: with DS=1, start at level -1.
    pub const fn sl2(self) -> u64 {
        bits(self.0, 33, 33)
    }
    /// `SH0`: shareability of table walks, and of the memory itself with DS=1.
    pub const fn sh0(self) -> u64 {
        bits(self.0, 13, 12)
    }
    /// `TG0`: the granule; `None` for the reserved value 3.
    pub const fn granule(self) -> Option<Granule> {
        match bits(self.0, 15, 14) {
            0 => Some(Granule::K4),
            1 => Some(Granule::K64),
            2 => Some(Granule::K16),
            _ => None,
        }
    }
    /// `PS`: output address size, encoded.
    pub const fn ps(self) -> u64 {
        bits(self.0, 18, 16)
    }
    /// `PS` in bits of address.
    pub const fn output_bits(self) -> u32 {
        address_bits(self.ps())
    }
    /// `HA` and `HD`; `HD` alone does nothing.
    pub const fn updates(self) -> HardwareUpdates {
        match bits(self.0, 22, 21) {
            0 | 2 => HardwareUpdates::None,
            1 => HardwareUpdates::Accessed,
            _ => HardwareUpdates::AccessedAndDirty,
        }
    }
    /// `DS`: 52-bit descriptors with 4K and 16K.
    pub const fn ds(self) -> bool {
        bits(self.0, 32, 32) != 0
    }
}

impl Vttbr {
    /// `VMID`: the tag of this virtual machine's translations.
    pub const fn vmid(self) -> u16 {
        bits(self.0, 63, 48) as u16
    }
}

impl Hcr {
    /// `FWB`: stage 2 forces memory types.
    pub const fn fwb(self) -> bool {
        bits(self.0, 46, 46) != 0
    }
    /// `PTW`: a stage-1 walk that reads Device memory faults.
    pub const fn ptw(self) -> bool {
        bits(self.0, 2, 2) != 0
    }
    /// `DC`: with stage 1 off, accesses are Normal write-back instead of Device.
    pub const fn dc(self) -> bool {
        bits(self.0, 12, 12) != 0
    }
    /// `CD`: stage 2 makes everything Normal non-cacheable at best.
    pub const fn cd(self) -> bool {
        bits(self.0, 32, 32) != 0
    }
}
