//! Recordings as lines of JSON, and the few rules of JSON that are needed.
//!
//! The first line of a recording says what ran; every further one is an event:
//!
//! ```text
//! {"run":0,"name":"root, 1G then root","arch":"x86","machine":"...","clock_hz":3900000000,"events":2,"lost":0,"lost_since":null,"end":912}
//! {"run":0,"at":104,"track":"vcpu 0","event":"kvm_exit","fields":{"vcpu_id":0,"exit_reason":"fault"}}
//! {"run":0,"at":104,"track":"vcpu 0","event":"sim_in_host","took":808,"fields":{...}}
//! ```
//!
//! Times are cycles. A slice has `took`, and `"unfinished":true` when the run ended first. Addresses and table words are
//! hexadecimal text. An arrow from one track to another has the same `arrow` number at both ends.

use std::fmt::Write;

use super::{Ended, Event, Extent, Recording, Value};

/// Appends a recording; `run` tells it from others of the same file.
pub fn write(text: &mut String, run: usize, recording: &Recording) {
    header(text, run, recording);
    for event in &recording.events {
        line(text, run, event);
    }
}

/// The first line of a recording.
fn header(text: &mut String, run: usize, recording: &Recording) {
    let Recording { name, arch, machine, clock_hz, events, lost, lost_since, end, .. } = recording;
    let since = lost_since.map_or_else(|| "null".to_owned(), |at| at.0.to_string());
    put(text, format_args!("{{\"run\":{run},\"name\":"));
    string(text, name);
    put(text, format_args!(",\"arch\":"));
    string(text, arch);
    put(text, format_args!(",\"machine\":"));
    string(text, machine);
    let events = events.len();
    put(text, format_args!(",\"clock_hz\":{clock_hz},\"events\":{events},\"lost\":{lost},\"lost_since\":{since}"));
    put(text, format_args!(",\"end\":{}}}\n", end.0));
}

fn line(text: &mut String, run: usize, event: &Event) {
    let Event { at, track, extent, what } = event;
    put(text, format_args!("{{\"run\":{run},\"at\":{},\"track\":\"{track}\",\"event\":\"{}\"", at.0, what.name()));
    match extent {
        Extent::Point => {}
        Extent::Slice { took, ended } => {
            put(text, format_args!(",\"took\":{}", took.0));
            if *ended == Ended::WithTheRun {
                text.push_str(",\"unfinished\":true");
            }
        }
        Extent::Departs(arrow) | Extent::Arrives(arrow) => put(text, format_args!(",\"arrow\":{arrow}")),
    }
    text.push_str(",\"fields\":");
    fields(text, event);
    text.push_str("}\n");
}

/// An event's fields as an object.
pub(super) fn fields(text: &mut String, event: &Event) {
    let mut separator = '{';
    event.what.fields(&mut |name, value| {
        text.push(separator);
        separator = ',';
        put(text, format_args!("\"{name}\":"));
        match value {
            Value::Int(number) => put(text, format_args!("{number}")),
            Value::Signed(number) => put(text, format_args!("{number}")),
            Value::Hex(word) => put(text, format_args!("\"{word:#x}\"")),
            Value::Text(word) => string(text, word),
        }
    });
    if separator == '{' {
        text.push('{');
    }
    text.push('}');
}

/// A string with what JSON wants escaped (RFC 8259 section 7).
pub(super) fn string(text: &mut String, content: &str) {
    text.push('"');
    for c in content.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            c if u32::from(c) < 0x20 => put(text, format_args!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// Formatting into a string cannot fail.
pub(super) fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Trace, Track};
    use mmu_core::Cycles;

    #[test]
    fn a_line_per_event_with_words_as_text() {
        let what =
            Trace::KvmTdpMmuSpteChanged { gfn: 0x200, old_spte: u64::MAX, new_spte: 0, level: 2, as_id: 0, count: 512 };
        let event = Event { at: Cycles(7), track: Track::Actor(3), extent: Extent::Point, what };
        let recording = Recording {
            name: "a \"b\"\n".into(),
            arch: "x86",
            machine: "m".into(),
            clock_hz: 5,
            tracks: Vec::new(),
            events: vec![event],
            lost: 4,
            lost_since: Some(Cycles(8)),
            end: Cycles(9),
        };
        let mut text = String::new();
        write(&mut text, 2, &recording);
        let wanted = concat!(
            r#"{"run":2,"name":"a \"b\"\u000a","arch":"x86","machine":"m","clock_hz":5,"events":1,"lost":4,"lost_since":8,"end":9}"#,
            "\n",
            r#"{"run":2,"at":7,"track":"actor 3","event":"kvm_tdp_mmu_spte_changed","fields":{"gfn":"0x200","#,
            r#""old_spte":"0xffffffffffffffff","new_spte":"0x0","level":2,"as_id":0,"count":512}}"#,
            "\n",
        );
        assert_eq!(text, wanted);
    }
}
