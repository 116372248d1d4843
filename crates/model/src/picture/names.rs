//! What the tensors of the picture side are called in each file layout.
//!
//! A [`Place`] is a path in all layouts at once, built up on the walk over the spec; so the walk is the only list of names.

use crate::names::Naming;

/// The name of a tensor, or of a part that tensors belong to.
#[derive(Clone, Debug)]
pub struct Place {
    gguf: String,
    hf: String,
    original: String,
}

impl Place {
    /// A part of the whole model: its names in our GGUF, in Hugging Face's layout, in the makers' own.
    pub fn root(gguf: &str, hf: &str, original: &str) -> Self {
        Place { gguf: gguf.to_owned(), hf: hf.to_owned(), original: original.to_owned() }
    }

    /// A part of this part.
    pub fn at(&self, gguf: &str, hf: &str, original: &str) -> Self {
        Place {
            gguf: format!("{}.{gguf}", self.gguf),
            hf: format!("{}.{hf}", self.hf),
            original: format!("{}.{original}", self.original),
        }
    }

    /// A part that is called the same everywhere.
    pub fn part(&self, name: &str) -> Self {
        self.at(name, name, name)
    }

    /// The n-th of several.
    pub fn nth(&self, n: usize) -> Self {
        self.part(&n.to_string())
    }

    /// The name in a layout.
    pub fn name(&self, naming: Naming) -> &str {
        match naming {
            Naming::Gguf => &self.gguf,
            Naming::Hf | Naming::HfNested => &self.hf,
            Naming::Original => &self.original,
        }
    }
}
