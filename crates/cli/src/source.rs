//! From what a person calls a model to where it lies.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use fathom_files::Archive;
use fathom_hub::{DISTILS, Hub};
use fathom_model::{Model, Options};

/// What the model inside the program is called.
pub(crate) const BUILT_IN: &str = "mini-r1";

/// The miniature that `recipes/mini-r1.toml` grew, aligned as its numbers want to be.
static MINIATURE: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../models/mini-r1.gguf"));

#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// Where a model lies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// In a file or directory.
    Path(PathBuf),
    /// In this program.
    Inside,
}

impl Place {
    /// Reads its description.
    pub(crate) fn open(&self, options: &Options) -> Result<Model> {
        Ok(match self {
            Place::Path(path) => Model::open(path, options)?,
            Place::Inside => {
                Model::from_archive(Archive::from_gguf(self.path(), Arc::new(&MINIATURE.0 as &[u8]))?, options)?
            }
        })
    }

    /// The path, or what stands for it in messages.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Place::Path(path) => path,
            Place::Inside => Path::new(BUILT_IN),
        }
    }
}

/// Where the model called `name` lies: a file or directory if there is one, else a model that was fetched. Without a name, the one in
/// this program.
pub(crate) fn locate(name: Option<&str>) -> Result<Place> {
    let Some(name) = name else { return Ok(Place::Inside) };
    let path = Path::new(name);
    if path.exists() {
        return Ok(Place::Path(path.to_owned()));
    }
    if name == BUILT_IN {
        return Ok(Place::Inside);
    }
    if is_path(name) {
        bail!("{name}: there is no such file or directory");
    }
    match Hub::from_env()?.resolve(name) {
        Ok(Some(path)) => Ok(Place::Path(path)),
        Ok(None) => bail!(
            "{name} is no file here and was not fetched yet; `fathom pull {name}` fetches it, `fathom list` shows what is here"
        ),
        Err(fathom_hub::Error::Invalid { why, .. }) => {
            bail!("{name}: there is no such file or directory, and it cannot be a fetched model's name either: {why}")
        }
        Err(other) => Err(other.into()),
    }
}

/// Whether a name can only mean a path, so that the hub need not be asked.
fn is_path(name: &str) -> bool {
    // `ORG/REPO:FILE.gguf` is a name, and `fathom list` shows it.
    let file = !name.contains(':') && (name.ends_with(".gguf") || name.ends_with(".json"));
    name.starts_with(['/', '.', '~']) || name.ends_with('/') || file
}

/// What to say of the miniature to who talks to it: what it is, and how to get a model that knows more.
pub(crate) fn miniature() -> String {
    let smallest = &DISTILS[0];
    format!(
        "this is mini-r1, a miniature grown from the published recipe: it reckons, sorts and counts, and knows a little about fathom.\n\
         These two lines fetch the smallest real R1 distil ({:.1} GB, {}) and talk to it:\n    \
         fathom pull {short}\n    fathom -m {short}",
        smallest.gguf_gb,
        smallest.licence,
        short = smallest.short,
    )
}
