//! Options of the memstress tests that say what a VM looks like: `-m` and `-c`.

use clap::Args;
use mmusim::Bytes;
use mmusim::sim::selftests::SelftestError;

/// Bits of a guest-physical address for each guest mode of Linux 6.6 (`enum vm_guest_mode`): P52V48, P48V48, P40V48, PXXV48, P47V64, P44V64, P36V48, P36V47.
const PHYSICAL_BITS: [u32; 15] = [52, 52, 48, 48, 48, 40, 40, 40, 0, 47, 44, 36, 36, 36, 36];

/// The guest mode.
#[derive(Args, Debug)]
pub struct GuestMode {
    /// Guest mode by its number in Linux 6.6: how wide guest-physical addresses are, and so how many levels the second stage has. The guest's own
    /// tables have the levels of the machine's sheet [default: as the memory needs]
    #[arg(short = 'm', value_name = "ID", value_parser = clap::value_parser!(u32).range(0..=14))]
    guest_mode: Option<u32>,
}

impl GuestMode {
    /// The memory that the second stage must be able to map.
    pub fn memory(&self, used: Bytes) -> Bytes {
        let bits = self.guest_mode.map_or(0, |mode| PHYSICAL_BITS[mode as usize]);
        // 0 is the machine's own choice, which the memory decides.
        if bits == 0 { used } else { Bytes(used.0.max(1 << bits)) }
    }
}

/// Processors.
#[derive(Args, Debug)]
pub struct Pinning {
    /// Processors to pin to: one for each vCPU, and one for the main thread if there is one more. Every thread has a processor of its own anyway
    #[arg(short = 'c', value_name = "LIST", value_delimiter = ',')]
    cpus: Vec<u32>,
}

impl Pinning {
    /// Whether the list fits so many vCPUs.
    pub fn check(&self, vcpus: u32) -> Result<(), SelftestError> {
        let refuse = |what: String| Err(SelftestError::Option { option: "-c".to_owned(), what });
        let (given, vcpus) = (self.cpus.len(), vcpus as usize);
        if given != 0 && given != vcpus && given != vcpus + 1 {
            return refuse(format!(
                "{given} processors for {vcpus} vCPUs: name one for each, and perhaps one for the main thread"
            ));
        }
        let mut sorted = self.cpus.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != given {
            return refuse("two threads on one processor are not simulated: name different ones".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_widens_what_the_second_stage_maps() {
        let memory = |mode| GuestMode { guest_mode: mode }.memory(Bytes(1 << 30));
        assert_eq!([memory(None), memory(Some(2)), memory(Some(8))], [Bytes(1 << 30), Bytes(1 << 48), Bytes(1 << 30)]);
    }

    #[test]
    fn pins_are_counted_and_told_apart() {
        let check = |cpus: &[u32]| Pinning { cpus: cpus.to_vec() }.check(2);
        assert!(check(&[]).is_ok() && check(&[4, 7]).is_ok() && check(&[4, 7, 0]).is_ok());
        assert!(check(&[1]).unwrap_err().to_string().contains("2 vCPUs"));
        assert!(check(&[3, 3]).unwrap_err().to_string().contains("one processor"));
    }
}
