//! From what a person calls a model to where it lies.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use fathom_hub::{DISTILS, Hub};

/// The path of the model called `name`: a file or directory if there is one, else a model that was fetched.
pub(crate) fn locate(name: Option<&str>) -> Result<PathBuf> {
    let Some(name) = name else { return Err(nothing_named()) };
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if is_path(name) {
        bail!("{name}: there is no such file or directory");
    }
    match Hub::from_env()?.resolve(name) {
        Ok(Some(path)) => Ok(path),
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

/// No model was named, and none is built in: how to get one.
fn nothing_named() -> anyhow::Error {
    let smallest = &DISTILS[0];
    let mut text = format!(
        "no model was named, and this build has none inside.\n\n\
         These two lines fetch the smallest R1 distil ({:.1} GB, {}) and talk to it:\n\n    \
         fathom pull {short}\n    fathom -m {short}\n",
        smallest.gguf_gb,
        smallest.licence,
        short = smallest.short,
    );
    // What was fetched before; a cache that cannot be read is no reason to hide the lines above.
    let models: Vec<String> =
        Hub::from_env().and_then(|hub| hub.list()).unwrap_or_default().into_iter().flat_map(|c| c.models).collect();
    if !models.is_empty() {
        text += &format!("\nFetched before: {}\n", models.join(", "));
    }
    text += "\nA GGUF file or a directory with config.json and safetensors works as well: fathom -m PATH";
    anyhow::anyhow!(text)
}
