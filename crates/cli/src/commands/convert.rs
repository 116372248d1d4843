//! `fathom convert`: a model as one GGUF file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use fathom_core::{FormatId, format};
use fathom_files::Archive;
use fathom_model::Model;
use fathom_model::convert::convert;

use crate::args::ReadArgs;
use crate::source::{self, Place};
use crate::term::{self, ByteBar};
use crate::units::{bytes, duration};

/// Write a model as one GGUF file, in a smaller format if wanted
#[derive(clap::Args)]
#[command(after_help = "Examples:
  fathom convert ./Janus-Pro-1B janus-pro-1b.gguf                     as it is (16 bit)
  fathom convert ./Janus-Pro-7B janus-pro-7b-q4.gguf --format Q4_K    a third of the size
  fathom convert model-f16.gguf model-q8.gguf --format Q8_0

Reads what every other command reads, and besides them PyTorch's pytorch_model.bin: only here, and by a reader that can build tensors
and nothing else, whatever the file says.

Matrices of the language model take the format; vectors and routers stay exact; of a picture side, projections take 8 bit at least
and convolutions 16. docs/pictures.md describes the file.")]
pub(crate) struct Args {
    /// A directory with config.json and weights, a GGUF file, or a name fetched with `fathom pull`
    #[arg(value_name = "MODEL")]
    model: String,

    /// The file to write
    #[arg(value_name = "FILE")]
    output: PathBuf,

    /// Format of the matrices [default: BF16 for directories, Q8_0 for GGUF files]
    #[arg(long, value_name = "FORMAT", value_parser = formats())]
    format: Option<FormatId>,

    /// Threads that encode [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Replace the file if it is there
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    read: ReadArgs,
}

/// The formats that can be written and that GGUF has.
fn formats() -> impl clap::builder::TypedValueParser<Value = FormatId> {
    let writes = |f: &FormatId| {
        let n = f.get().block_elems();
        f.get().gguf_code().is_some() && fathom_core::Weight::encode(*f, 1, n, &vec![0.0; n]).is_ok()
    };
    let known: Vec<FormatId> = FormatId::all().filter(writes).collect();
    let names: Vec<&'static str> = known.iter().map(|f| f.name()).collect();
    PossibleValuesParser::new(names).map(move |name| {
        let format = known.iter().find(|f| f.name() == name);
        *format.expect("invariant: clap takes only the names listed")
    })
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.output.exists() && !args.force {
        bail!("{} exists already: name another file, or allow its replacement with --force", args.output.display());
    }
    let start = Instant::now();
    let model = match source::locate(Some(&args.model))? {
        Place::Path(path) => Model::from_archive(Archive::open_unsafe_kinds(&path)?, &args.read.options())?,
        inside => inside.open(&args.read.options())?,
    };
    let wanted = args.format.unwrap_or(if model.archive.metadata().is_some() { format::Q8_0 } else { format::BF16 });
    let threads = match args.threads {
        Some(n) => usize::from(n),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let mut bar = ByteBar::new("converting");
    let done = convert(&model, wanted, &args.output, threads, &mut |read, total| bar.update(read, total, 0))
        .with_context(|| format!("cannot convert {}", args.model))?;
    drop(bar);
    term::note(&format!(
        "{} tensors, {} → {} ({}) in {}",
        done.tensors,
        bytes(done.bytes_in),
        bytes(done.bytes_out),
        wanted.name(),
        duration(start.elapsed()),
    ));
    println!("{}", args.output.display());
    Ok(ExitCode::SUCCESS)
}
