//! `trace info` and `trace convert`.

use mmusim::PageSize;
use mmusim::trace::{self, ConvertOptions, ReadOptions, TraceFormat};
use serde_json::json;

use crate::args::{TraceConvert, TraceInfo};
use crate::output::Output;
use crate::{CliError, SCHEMA_VERSION};

fn reading(format: Option<TraceFormat>) -> ReadOptions {
    ReadOptions { format, ..ReadOptions::default() }
}

/// `trace info`.
pub fn info(args: &TraceInfo) -> Result<(), CliError> {
    let info = trace::info(&args.file, &reading(args.from)).map_err(CliError::input)?;
    let text = if args.json {
        let header = info.header.as_ref();
        let document = json!({
            "schema_version": SCHEMA_VERSION,
            "file": args.file.display().to_string(),
            "format": info.format.name(),
            "compression": info.compression.to_string(),
            "source": header.map(|header| header.source.as_str()),
            "traced_page_bytes": header.and_then(|header| header.page_size).map(PageSize::bytes),
            "decompressed_bytes": info.decompressed_bytes,
            "records": info.counts.records(),
            "fetches": info.counts.fetches,
            "loads": info.counts.loads,
            "stores": info.counts.stores,
            "modifies": info.counts.modifies,
            "references": info.counts.references(),
            "pages_4k": info.pages_4k,
            "page_splits": info.page_splits,
            "lowest": info.lowest.map(|va| va.to_string()),
            "highest": info.highest.map(|va| va.to_string()),
        });
        format!("{document:#}\n")
    } else {
        format!("{info}\n")
    };
    Output::open(None)?.write(&text)
}

/// `trace convert`. The data is the file; what was written is talk.
pub fn convert(args: &TraceConvert) -> Result<(), CliError> {
    let options = ConvertOptions {
        read: reading(args.from),
        format: args.to,
        header: None,
        skip: args.skip,
        take: args.take,
        select: args.select.into(),
    };
    let counts = trace::convert(&args.input, &args.output, &options).map_err(CliError::input)?;
    eprintln!("{}: {} records", args.output.display(), counts.records());
    Ok(())
}
